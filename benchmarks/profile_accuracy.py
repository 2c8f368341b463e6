"""Does a quick profile find what an exhaustive sweep finds, and does it find it twice?

    python benchmarks/profile_accuracy.py [--models NAME ...] [--up-to 48] [--budget 8s] [--json OUT]

For each standard model in its small size: a profile, the same again, a sweep that times every batch size up to
`--up-to` ten times as often, going round all sizes ten times, so that a slow minute of the machine meets all of them,
and a third profile. Printed are the speed of the recommended size as a share of the best one (the project asks for
98 %), the time of the profile as a share of the sweep (10 %), how far the step times fitted by the profile are from
those of the sweep at sizes that the profile did not see (5 % in the median and at worst), how far two halves of the
sweep are from one another at worst ("noise": what the sweep itself is sure of), and the share of the reported
medians that agree between the first two profiles, which is where their 95 % intervals overlap (90 %). Exit code 1 where
one of them is missed. That share between the second profile and the third, with minutes of sweep between them, is
printed as "later": it is the machine's as much as the profiler's, and nothing is asked of it.

The best of many sizes that were all timed with an error is one that the error favoured. So the best size is chosen by
every second round of the sweep and its speed taken from the others, and the other way round, and the recommended size
is compared with it in those same rounds: the share is the mean of both, and may be a little over 100 %. The best by all
rounds, with its error in it, is in the JSON too.

Fitted times are compared after division by the median ratio of profile and sweep at the sizes that both timed, since a
machine is faster at one time than at another; that ratio, and the errors without it, are in the JSON. A size's time in
the sweep is that of its second fastest round of ten. A machine that others use too is slowed down by them and never
sped up, by up to a factor of two for seconds on end; over sizes those times lie on a smooth curve where medians of all
rounds do not. The medians are in the JSON too.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from provenance import about

from autobatch.bench.standard_models import standard_models
from autobatch.core.measurement import Measurement
from autobatch.core.medians import likely_range
from autobatch.core.plan import Plan
from autobatch.core.runner import Runner
from autobatch.core.units import parse_duration
from autobatch.devices.environment import default_threads
from autobatch.engines.remote import RemoteRunner
from autobatch.engines.served import RunnerSpec
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.tuning.stages import profile_of

ROUNDS = 10
SPEED, TIME, FIT, AGREE = 0.98, 0.10, 0.05, 0.90


Times = dict[int, list[tuple[float, ...]]]


def sweep(runner: Runner, up_to: int, share_s: float) -> tuple[Times, float]:
    """Step times of every batch size in each round, and the seconds that they took."""
    began = time.perf_counter()
    found: Times = {size: [] for size in range(1, up_to + 1)}
    for number in range(ROUNDS):
        for size in sorted(found, reverse=number % 2 == 1):
            found[size].append(runner.time(Plan(batch_size=size), budget_s=share_s).step_s)
    return found, time.perf_counter() - began


def undisturbed_s(rounds: list[tuple[float, ...]]) -> float:
    """The median step in the second fastest of some rounds; in the fastest, where there are few."""
    return sorted(map(median, rounds))[len(rounds) // 8]


def share_of_best(times: Times, recommended: int) -> float:
    """The speed of that size as a share of the best one's, which half of the rounds choose and the other half time."""
    shares = []
    for half in (0, 1):
        chosen_by = {size: size / undisturbed_s(rounds[half::2]) for size, rounds in times.items()}
        timed_by = {size: size / undisturbed_s(rounds[1 - half :: 2]) for size, rounds in times.items()}
        shares.append(timed_by[recommended] / timed_by[max(chosen_by, key=lambda size: chosen_by[size])])
    return sum(shares) / 2


def agree(one: Measurement, other: Measurement) -> bool:
    """Whether the intervals of the two medians overlap; of few steps, what was seen."""
    first, second = likely_range(one.step_s, one.visits_s), likely_range(other.step_s, other.visits_s)
    return first[0] <= second[1] and second[0] <= first[1]


def measure(name: str, path: Path, up_to: int, budget_s: float) -> dict[str, Any]:
    """Both profiles and the sweep of one model."""
    spec = RunnerSpec(path=path, device="cpu", threads=default_threads())
    runner = RemoteRunner(spec, environment={"AUTOBATCH_BENCH_SIZE": "small"})
    try:
        began = time.perf_counter()
        curve = profile_of(runner, Plan(batch_size=1), up_to, budget_s=budget_s)
        took_s = time.perf_counter() - began
        again = profile_of(runner, Plan(batch_size=1), up_to, budget_s=budget_s)
        times, sweep_s = sweep(runner, up_to, budget_s / len(curve.measurements))
        later = profile_of(runner, Plan(batch_size=1), up_to, budget_s=budget_s)
    finally:
        runner.close()
    return {"model": name, "up_to": up_to} | judge((curve, again, later), times, took_s, sweep_s)


def between_halves(times: Times) -> float:
    """How far the two halves of the sweep are from one another at worst, beside what the machine did to all sizes."""
    one, other = ({size: undisturbed_s(rounds[half::2]) for size, rounds in times.items()} for half in (0, 1))
    typical = median(one[size] / other[size] for size in times)
    return max(abs(one[size] / other[size] / typical - 1) for size in times)


def agreeing(one: ThroughputCurve, other: ThroughputCurve) -> tuple[int, int]:
    """How many medians agree, of how many sizes that both timed."""
    both = {m.plan.batch_size: m for m in other.timed}
    pairs = [(m, both[m.plan.batch_size]) for m in one.timed if m.plan.batch_size in both]
    return sum(agree(*pair) for pair in pairs), len(pairs)


def judge(
    profiles: tuple[ThroughputCurve, ThroughputCurve, ThroughputCurve], times: Times, took_s: float, sweep_s: float
) -> dict[str, Any]:
    """What came of it, as plain JSON values."""
    curve, again, later = profiles
    truth = {size: undisturbed_s(rounds) for size, rounds in times.items()}
    rates = {size: size / seconds for size, seconds in truth.items()}
    seen = {m.plan.batch_size for m in curve.timed}
    typical = median(curve.step_s(size) / truth[size] for size in seen)  # the machine's speed then and now
    errors = {size: curve.step_s(size) / typical / truth[size] - 1 for size in truth if size not in seen}
    return {
        "recommended": curve.recommended,
        "best": max(rates, key=lambda size: rates[size]),
        "share_of_best": share_of_best(times, curve.recommended),
        "share_of_best_of_all_rounds": rates[curve.recommended] / max(rates.values()),
        "profile_s": took_s,
        "sweep_s": sweep_s,
        "sizes": sorted(seen),
        "speed_between": typical,
        "fit_error_median": median(abs(error) for error in errors.values()),
        "fit_error_worst": max(abs(error) for error in errors.values()),
        "fit_error_worst_unscaled": max(abs(typical * (1 + error) - 1) for error in errors.values()),
        "sweep_between_halves": between_halves(times),
        "fit_errors": {str(size): error for size, error in errors.items()},
        "agree": agreeing(curve, again),
        "agree_later": agreeing(again, later),
        "remarks": [f"{m.plan.batch_size}: {remark}" for m in curve.timed for remark in m.remarks],
        "profiles": [
            {
                str(m.plan.batch_size): {
                    "median_s": m.median_step_s,
                    "visits_s": m.visits_s,
                    "range_s": likely_range(m.step_s, m.visits_s),
                    "steps": len(m.step_s),
                }
                for m in profile.timed
            }
            for profile in profiles
        ],
        "sweep": {
            str(size): {
                "undisturbed_s": truth[size],
                "median_s": median(chain.from_iterable(rounds)),
                "rounds_s": [median(seconds) for seconds in rounds],
                "steps": sum(map(len, rounds)),
            }
            for size, rounds in times.items()
        },
    }


def main() -> int:
    """Measure all models; 0 where every target is met."""
    parser = argparse.ArgumentParser(description="a quick profile against an exhaustive sweep")
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--up-to", type=int, default=48)
    parser.add_argument("--budget", default="8s")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print(
        f"{'model':12} {'recommended':>11} {'best':>5} {'speed':>7} {'time':>6} {'fit':>6} {'worst':>6} {'noise':>6} "
        f"{'agree':>8} {'later':>8}"
    )
    for name, path in standard_models().items():
        if options.models and name not in options.models:
            continue
        found = measure(name, path, options.up_to, parse_duration(options.budget))
        results.append(found)
        print(
            f"{name:12} {found['recommended']:>11} {found['best']:>5} {found['share_of_best']:>7.1%} "
            f"{found['profile_s'] / found['sweep_s']:>6.1%} {found['fit_error_median']:>6.1%} "
            f"{found['fit_error_worst']:>6.1%} {found['sweep_between_halves']:>6.1%} "
            f"{' of '.join(map(str, found['agree'])):>8} {' of '.join(map(str, found['agree_later'])):>8}",
            flush=True,
        )
        if options.json is not None:
            options.json.write_text(json.dumps(about() | {"models": results}, indent=1) + "\n")
    share = sum(found["agree"][0] for found in results) / sum(found["agree"][1] for found in results)
    checks = {
        f"the recommended size has {SPEED:.0%} of the best speed": all(r["share_of_best"] >= SPEED for r in results),
        f"in {TIME:.0%} of the sweep's time": all(r["profile_s"] <= TIME * r["sweep_s"] for r in results),
        f"the fit is within {FIT:.0%} where it has not seen, in the median": all(
            r["fit_error_median"] <= FIT for r in results
        ),
        "and at worst": all(r["fit_error_worst"] <= FIT for r in results),
        f"{AGREE:.0%} of the medians agree ({share:.0%})": share >= AGREE,
    }
    for what, is_met in checks.items():
        print(f"{'met   ' if is_met else 'MISSED'} {what}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
