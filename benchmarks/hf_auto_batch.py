"""The largest batch of a Hugging Face Trainer under a real memory limit on a CPU: `auto_find_batch_size` and ours.

    python benchmarks/hf_auto_batch.py [--json OUT] [--starts 8 64 256] [--memory-limit 96MiB]

A causal language model with random weights is trained on texts of 8 to 128 tokens. `auto_find_batch_size` is given
several sizes to start with, as users do, and trains for as many steps as it takes to see each text once; each run is a
process of its own under the limit, which counts memory to the page. Ours is asked once, and proves that the next size
fails. What is true is what ours proved; an answer above it fails on a batch of the longest texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import about

SAMPLES, LONGEST, WORDS = 512, 128, 512


class Texts:
    """Texts of unlike lengths."""

    def __init__(self) -> None:
        import torch

        draw = torch.Generator().manual_seed(0)
        lengths = torch.randint(8, LONGEST + 1, (SAMPLES,), generator=draw).tolist()
        self.samples = [torch.randint(1, WORDS, (length,), generator=draw) for length in lengths]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.samples[index]}


def pad(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch as wide as its longest text."""
    from torch.nn.utils.rnn import pad_sequence

    inputs = pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    return {
        "input_ids": inputs,
        "attention_mask": (inputs != 0).long(),
        "labels": inputs.masked_fill(inputs == 0, -100),
    }


def trainer_of(folder: str, **arguments: Any) -> Any:
    """The Trainer that both are asked about."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=WORDS, n_embd=64, n_layer=2, n_head=2, n_positions=LONGEST, bos_token_id=0, eos_token_id=0
    )
    args = TrainingArguments(
        output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **arguments
    )
    return Trainer(model=GPT2LMHeadModel(config), args=args, data_collator=pad, train_dataset=Texts())


def theirs(folder: str, start: int, limit: int) -> dict[str, Any]:
    """One training with `auto_find_batch_size`, in this process."""
    import accelerate.utils.memory as memory

    from autobatch.devices import open_device
    from autobatch.devices.environment import count_exactly

    refused = 0
    reduces = memory.should_reduce_batch_size

    def counting(error: Exception) -> bool:
        nonlocal refused
        found: bool = reduces(error)
        refused += found
        return found

    memory.should_reduce_batch_size = counting
    trainer_of(folder)  # so that all is imported, which is nobody's share of the limit
    count_exactly()
    open_device("cpu").set_limit(limit, 0.0)
    trainer = trainer_of(folder, auto_find_batch_size=True, per_device_train_batch_size=start, num_train_epochs=1)
    begun = time.perf_counter()
    failed = None
    try:
        trainer.train()
    except Exception as error:  # noqa: BLE001  # whatever ends it is its answer
        failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return {
        "start": start,
        "returned": None if failed else trainer._train_batch_size,
        "failed": failed,
        "oom": refused,
        "seconds": time.perf_counter() - begun,
        "lines_added": 1,
    }


def ours(folder: str, limit: int) -> dict[str, Any]:
    """The same question to `find_max_batch`."""
    import autobatch

    trainer = trainer_of(folder)
    begun = time.perf_counter()
    found = autobatch.find_max_batch(trainer, device="cpu", memory_limit=limit, headroom=0.0, prove=True)
    return {
        "returned": int(found),
        "proved": found.proof is not None,
        "oom": sum(probe.outcome != "ok" for probe in found.probes),
        "probes": len(found.probes),
        "seconds": time.perf_counter() - begun,
        "lines_added": 2,
    }


def main() -> int:
    """Ask both; 0 where ours was proved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--memory-limit", default="96MiB")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a search, in a process of its own
    options = parser.parse_args()

    from autobatch.core.units import parse_size

    limit = parse_size(options.memory_limit)
    if options.one is not None:
        with tempfile.TemporaryDirectory() as folder:
            found = ours(folder, limit) if options.one == "ours" else theirs(folder, int(options.one), limit)
        print(json.dumps(found))
        return 0

    def ask(which: object) -> dict[str, Any]:
        command = [sys.executable, __file__, "--one", str(which), "--memory-limit", options.memory_limit]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(which, answer, flush=True)
        return answer

    mine = ask("ours")
    found = {"limit": options.memory_limit, "true_maximum": mine["returned"], "ours": mine}
    found["auto_find_batch_size"] = [ask(start) for start in options.starts]
    if options.json is not None:
        options.json.write_text(json.dumps(about("transformers", "accelerate") | found, indent=1) + "\n")
    return 0 if mine["proved"] else 1


if __name__ == "__main__":
    sys.exit(main())
