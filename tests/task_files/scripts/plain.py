"""A training script as people write them, in nothing but Python: it follows the mean of noise.

With --how it does what scripts should not do.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--accum", type=int, default=1)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--max-steps", type=int)
parser.add_argument("--max-seconds", type=float)
parser.add_argument("--checkpoint")
parser.add_argument("--kib-a-sample", type=int, default=64)
parser.add_argument("--how", default="well")
parser.add_argument("--pids", help="a file for the processes that this one starts")
args = parser.parse_args()

held = []
for _ in range(max(1, args.batch_size * args.kib_a_sample // 4096)):
    held.append(b"x" * min(4 << 20, args.batch_size * args.kib_a_sample << 10))
    if len(held) > 4:
        time.sleep(0.01)  # so that no test takes a machine's memory before somebody sees it
if args.batch_size >= 64:
    time.sleep(0.3)  # a peak between two looks is not seen
if args.how == "slow":
    time.sleep(1.0)  # so that it is seen at any size

if args.how == "fails at many" and args.batch_size > 64:
    raise ValueError("no batch above 64")
if args.how == "says oom" and args.batch_size > 64:
    sys.exit("jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 11.95MiB.")
if args.how == "garbage":
    sys.stdout.buffer.write(os.urandom(1 << 20) + b"\n" + bytes(range(256)) * 4096 + b"\n")
    sys.stdout.flush()
if args.how == "forks":
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    children = [subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True)]
    with open(args.pids, "a") as file:
        file.writelines(f"{child.pid}\n" for child in children)
if args.how == "ignores the signal":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

weight, done, noise = 0.0, 0, random.Random(args.seed)
if args.checkpoint and os.path.exists(args.checkpoint + ".json"):
    with open(args.checkpoint + ".json") as file:
        weight, done, state = json.load(file)
    noise.setstate((state[0], tuple(state[1]), state[2]))


def is_over():
    if args.max_steps is not None:
        return done >= args.max_steps
    if args.max_seconds is not None:
        return time.monotonic() - begun >= args.max_seconds
    return False


def report():
    score = (weight - 1) ** 2
    if args.how == "nan" or (args.how == "nan at high rates" and args.lr > 0.5):
        score = float("nan")
    if args.how != "silent":
        print(f"step {done}: val_loss={score}")


begun = time.monotonic()
while not is_over():
    count = args.batch_size * args.accum
    target = 1 + noise.gauss(0.0, 1.0) / count**0.5
    weight -= args.lr * 2 * (weight - target)
    done += 1
    if args.max_steps is None and done % 16 == 0:
        report()
        time.sleep(0.001)

report()
if args.checkpoint:
    with open(args.checkpoint + ".json", "w") as file:
        json.dump([weight, done, noise.getstate()], file)
