"""Probes and out-of-memory errors of the search for the largest batch, on 42 simulated cases.

Six shapes of peak memory over the batch size, seven true limits each, against doubling and bisecting on the same
runner. Nothing is timed and nothing is random: the same table comes out everywhere.

    python benchmarks/max_batch.py [--headroom 0.05] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from autobatch.memory import find_max_batch_size
from autobatch.plan import Plan
from autobatch.sim import SimRunner, draw, sim_facts

GIB = 1 << 30
MIB = 1 << 20
CAPACITY = 24 * GIB
STATIC = 2 * GIB  # parameters, gradients and optimizer state
LIMITS = (7, 100, 1000, 1337, 5000, 50_000, 131_072)
CEILING = 1 << 22  # far above every limit: no search is helped by it

Shape = Callable[[int], int]


def affine(limit: int) -> Shape:
    """A fixed part, and the same for every sample."""
    return lambda batch: STATIC + (CAPACITY - STATIC) * batch // limit


def maximum_of_lines(limit: int) -> Shape:
    """Flat while the optimizer step dominates, then the backward pass."""
    line = affine(limit)
    return lambda batch: max(3 * STATIC + (line(batch) - STATIC) * 3 // 100, line(batch))


def quadratic(limit: int) -> Shape:
    """A loss over all pairs: nearly flat at first, all of the growth at the end."""
    return lambda batch: STATIC + (CAPACITY - STATIC) * (batch * limit + 9 * batch * batch) // (10 * limit * limit)


def stepped(limit: int) -> Shape:
    """Forty large tensors, each rounded up to 2 MiB, and a workspace of 8 % of the card from 55 % of the limit on."""

    def peak(batch: int) -> int:
        tensor = (CAPACITY - STATIC) * 92 * batch // (40 * 100 * limit)
        rounded = -(-tensor // (2 * MIB)) * 2 * MIB
        return STATIC + 40 * rounded + (CAPACITY * 8 // 100 if 100 * batch >= 55 * limit else 0)

    return peak


def noisy(limit: int) -> Shape:
    """Affine with 1 % of noise that belongs to the batch size: the same at every run of it."""
    line = affine(limit)
    return lambda batch: int(line(batch) * (1 + 0.01 * (2 * draw("noise", limit, batch).random() - 1)))


def not_monotone(limit: int) -> Shape:
    """Affine with 4 % more for odd multiples of an eighth of the limit: an algorithm that comes and goes."""
    line = affine(limit)
    return lambda batch: line(batch) * (104 if (8 * batch // limit) % 2 else 100) // 100


SHAPES: dict[str, Callable[[int], Shape]] = {
    "affine": affine,
    "maximum of lines": maximum_of_lines,
    "quadratic": quadratic,
    "stepped": stepped,
    "noisy by 1 %": noisy,
    "not monotone": not_monotone,
}
MONOTONE = ("affine", "maximum of lines", "quadratic", "stepped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape at one limit; `truth` is the largest batch such that it and every smaller one fit in the budget."""

    shape: str
    limit: int
    truth: int
    found: int
    probes: int
    ooms: int
    bisect_found: int
    bisect_probes: int
    bisect_ooms: int


def simulate(peak: Shape, headroom: float) -> SimRunner:
    """A runner with that memory and a dataset that never ends the search."""
    return SimRunner(known=sim_facts(train_size=CEILING), peak_bytes=peak, capacity_bytes=CAPACITY, headroom=headroom)


def double_and_bisect(runner: SimRunner) -> tuple[int, int, int]:
    """(batch size, probes, OOMs) of doubling until a size fails and halving the gap: the best in the field."""
    probes = ooms = 0

    def runs(batch_size: int) -> bool:
        nonlocal probes, ooms
        measurement = runner.probe(Plan(batch_size=batch_size))
        probes, ooms = probes + 1, ooms + (measurement.outcome == "oom")
        return measurement.outcome == "ok"

    low, high = 0, 1
    while runs(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low, probes, ooms


def run_case(shape: str, limit: int, headroom: float) -> Case:
    """Both searches on one case."""
    peak = SHAPES[shape](limit)
    runner = simulate(peak, headroom)
    budget = runner.memory().budget_bytes
    truth = 0
    while peak(truth + 1) <= budget:
        truth += 1
    answer = find_max_batch_size(runner, Plan(batch_size=1), ceiling=CEILING, ceiling_is="ceiling")
    found = int(answer)
    assert peak(found) <= budget, "an answer fits"
    assert found in [plan.batch_size for plan in runner.probes], "an answer has run"
    bisected, bisect_probes, bisect_ooms = double_and_bisect(simulate(peak, headroom))
    return Case(
        shape=shape,
        limit=limit,
        truth=truth,
        found=found,
        probes=len(answer.probes),
        ooms=sum(probe.outcome == "oom" for probe in answer.probes),
        bisect_found=bisected,
        bisect_probes=bisect_probes,
        bisect_ooms=bisect_ooms,
    )


def main() -> None:
    """Print the table and its sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headroom", type=float, default=0.05, help="share of the capacity kept free (default 0.05)")
    parser.add_argument("--json", action="store_true", help="the cases and the sums as JSON")
    options = parser.parse_args()
    cases = [run_case(shape, limit, options.headroom) for shape in SHAPES for limit in LIMITS]
    monotone = [case for case in cases if case.shape in MONOTONE]
    sums = {
        "cases": len(cases),
        "probes": sum(case.probes for case in cases),
        "ooms": sum(case.ooms for case in cases),
        "exact_where_monotone": sum(case.found == case.truth for case in monotone),
        "monotone_cases": len(monotone),
        "lowest_share_of_truth": min(case.found / case.truth for case in cases),
        "bisect_probes": sum(case.bisect_probes for case in cases),
        "bisect_ooms": sum(case.bisect_ooms for case in cases),
    }
    if options.json:
        print(json.dumps({"headroom": options.headroom, **sums, "table": [asdict(case) for case in cases]}, indent=2))
        return
    head = f"{'shape':<18}{'limit':>8}{'truth':>8}{'found':>8}{'probes':>8}{'OOMs':>6}"
    print(f"{head}   doubling and bisecting: {'found':>7}{'probes':>8}{'OOMs':>6}")
    for case in cases:
        line = f"{case.shape:<18}{case.limit:>8}{case.truth:>8}{case.found:>8}{case.probes:>8}{case.ooms:>6}"
        print(f"{line}{case.bisect_found:>35}{case.bisect_probes:>8}{case.bisect_ooms:>6}")
    print(
        f"\n{sums['cases']} cases: {sums['probes']} probes ({sums['probes'] / len(cases):.1f} a case) and "
        f"{sums['ooms']} OOMs; doubling and bisecting: {sums['bisect_probes']} probes and {sums['bisect_ooms']} OOMs.\n"
        f"Exact in {sums['exact_where_monotone']} of {sums['monotone_cases']} cases where memory is monotone; "
        f"lowest share of the truth anywhere: {sums['lowest_share_of_truth']:.3f}."
    )


if __name__ == "__main__":
    main()
