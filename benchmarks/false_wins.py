"""How often does a finalist win by luck, and how often one that is truly better? Simulated races, no training.

    python benchmarks/false_wins.py [--races 1000] [--proven] [--json OUT]

Every full-length score is the configuration's true score and a normal error of one, a seed's standard deviation. From
there on the product's own rules decide: how many seeds are reserved, who gets the next one, and whether the finalist
wins. A row is a kind of race: how many configurations were trained to the end beside the baseline, how many seeds are
reserved, and how many more there is time for.

- equal: all are truly better than the baseline by the gain.
- mixed: the best is, the others lie behind it by an exponential with a mean of two.
- one bad: as "equal", but one of them came to a score that is 30 lower.
- steps: as "equal", and scores move in steps of one, as an accuracy over few samples does.

A win at a gain of 0 or less is a false one, at 0 it costs nobody anything. Above 0 wins of what is truly better count.
A win is a recommendation; with --proven only those count of which "beat" is said. `null_races.py` beside this plays the
whole race.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from provenance import about

from autobatch.core.files import write_json
from autobatch.core.plan import Config, Plan
from autobatch.searching.history import History
from autobatch.searching.trials import Role, Trial
from autobatch.searching.verdict.confirmation import judge, leads_clearly, next_seed_for

GAINS = (-2, -1, 0, 1, 2)
KINDS = ("equal", "mixed", "one bad", "steps")
COUNTS = (3, 4, 8, 16)


def trial(number: int, config: Config, role: Role, score: float) -> Trial:
    """A trial trained to the end."""
    return Trial(
        number=number,
        config=config,
        seed=number,
        total_steps=100,
        role=role,
        origin="made up",
        state="complete",
        scores=((100, score),),
    )


def race(
    rng: random.Random, kind: str, gain: float, count: int, reserved: int, spare: int, *, proven: bool = False
) -> float | None:
    """By how much the winner of one race is truly better than the baseline; None where the baseline stays, or where the
    win is not `proven` but was to be.
    """
    truths = [0.0] + [gain - (rng.expovariate(0.5) if kind == "mixed" and n else 0.0) for n in range(count)]
    configs = [Config(plan=Plan(batch_size=32), lr=1e-3 * (1 + n)) for n in range(count + 1)]

    def score(of: int) -> float:
        found = truths[of] + rng.gauss(0, 1)
        return float(round(found)) if kind == "steps" else found

    trials = [trial(n, configs[n], "search" if n else "baseline", score(n)) for n in range(count + 1)]
    if kind == "one bad":
        trials[-1] = trial(count, configs[-1], "search", score(count) - 30)
    for number in range(reserved + spare):
        kept = 1 if leads_clearly(History(trials=tuple(trials), direction="maximize")) else reserved
        config = next_seed_for(History(trials=tuple(trials), direction="maximize"), kept)
        if config is None or number >= kept + spare:
            break
        trials.append(trial(count + 1 + number, config, "confirmation", score(configs.index(config))))
    verdict = judge(History(trials=tuple(trials), direction="maximize"))
    wins = verdict.is_proven if proven else verdict.finalist_wins
    return truths[configs.index(verdict.finalist)] if verdict.finalist and wins else None


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--spare", type=int, nargs="+", default=[0])
    parser.add_argument("--proven", action="store_true", help="count only what is said to beat the baseline")
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()
    rows = []
    print(f"{'':8} scores reserved spare " + " ".join(f"{gain:+6}" for gain in GAINS))
    for kind in asked.kinds:
        for count in COUNTS:
            for reserved in (1, 2):
                for spare in asked.spare:
                    # The same races whatever rules are looked at.
                    won = []
                    for gain in GAINS:
                        rng = [random.Random(f"{kind} {gain} {count} {number}") for number in range(asked.races)]
                        found = [race(one, kind, gain, count, reserved, spare, proven=asked.proven) for one in rng]
                        won.append(sum(by is not None and (by > 0 or gain <= 0) for by in found) / asked.races)
                    rows.append({"kind": kind, "scores": count, "reserved": reserved, "spare": spare, "won": won})
                    shares = " ".join(f"{100 * share:5.1f}%" for share in won)
                    print(f"{kind:8} {count:6} {reserved:8} {spare:5} {shares}", flush=True)
    if asked.json:
        write_json(asked.json, about() | {"races": asked.races, "proven": asked.proven, "gains": GAINS, "rows": rows})


if __name__ == "__main__":
    main()
