"""Which batch sizes are timed, for how long, and what would help a loader that does not keep up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from typing import Any

from .errors import NoValidResult
from .medians import median_interval
from .plan import Measurement, Plan, Runner
from .throughput import Objective, Remedy, ThroughputCurve

_REFINE_SHARE = 0.3  # of the time, for the neighbourhoods of the knee and the fastest. Assumed.
_SPACING = 8  # tensor cores and vector units work in multiples of 8 (NVIDIA, Matrix Multiplication Background Guide)
_FINEST = 0.1  # assumed: sizes that lie closer together than a tenth tell nothing new
_SMALLEST_SIZE = 8  # assumed: below it an accelerator is idle and a step costs about the same
_FEWEST_STEPS = 9  # that `Runner.time` takes of a slow step: warming up, three whole ones, one for each further time
_MOST_WORKERS = 16  # assumed: beyond it a machine has other limits than the number of its loader's processes
_HELPS = 1.05  # assumed: a smaller gain is not worth another process


def profile(
    runner: Runner,
    plan: Plan,
    *,
    max_batch: int,
    budget_s: float,
    include: Iterable[int] = (),
    refine: bool = False,
    objective: Objective = "throughput",
    on_measurement: Callable[[Measurement], None] | None = None,
) -> ThroughputCurve:
    """The throughput curve over the powers of two up to `max_batch`, `max_batch` itself and `include`.

    Time is shared evenly among the sizes still to come, so that what a quick one leaves goes to the slow ones. The
    sizes of `include` come first, then the smallest; when the budget is spent, the rest is skipped and said so.

    Args:
        plan: precision of every measurement; always one micro-batch a step, whatever its accumulation steps.
        max_batch: the largest size that is known to run.
        budget_s: wall seconds for all of it; one size at least is measured.
        include: further sizes, such as the user's own; those above `max_batch` are left out.
        refine: look closer where it tells most: at multiples of 8 around the knee and the best, and below `max_batch`.
        objective: what the recommended size is to be best in.
        on_measurement: called with each measurement as it comes.

    Raises:
        NoValidResult: not one size could be timed.
    """
    first = sorted({size for size in include if 1 <= size <= max_batch})
    smallest = _SMALLEST_SIZE if max_batch >= _SMALLEST_SIZE else 1
    powers = [1 << power for power in range(max_batch.bit_length()) if smallest <= 1 << power <= max_batch]
    coarse = {*powers, max_batch}
    if refine:
        # Not 1, which batch norm refuses to train on.
        coarse |= {min(2, max_batch), max_batch // _SPACING * _SPACING} - {0}
    sizes = first + sorted(coarse - {*first})
    measurements: list[Measurement] = []
    left_s = budget_s

    def measure(size: int, share_s: float) -> None:
        nonlocal left_s
        measurement = runner.time(replace(plan, batch_size=size, accumulation_steps=1), budget_s=share_s)
        left_s -= measurement.seconds
        measurements.append(measurement)
        if on_measurement is not None:
            on_measurement(measurement)

    kept_s = _REFINE_SHARE * budget_s if refine else 0.0
    for done, size in enumerate(sizes):
        has_timed = any(m.outcome == "ok" and m.step_s for m in measurements)
        if left_s <= kept_s and has_timed:
            break
        if refine and has_timed and _FEWEST_STEPS * _so_far(measurements).step_s(size) > left_s:
            continue  # even the fewest steps would outlast the budget; a neighbour of the knee tells more
        measure(size, max(0.0, left_s - kept_s) / (len(sizes) - done))
    if not any(m.outcome == "ok" and m.step_s for m in measurements):
        found = "; ".join(f"{m.plan.batch_size}: {m.outcome} {m.message or ''}".strip() for m in measurements)
        raise NoValidResult(f"one batch size at least must run when it is timed; found {found}: see the messages")
    skipped = tuple(sorted({*sizes} - {m.plan.batch_size for m in measurements}))
    share_s = budget_s / (len(sizes) + len(sizes) // 2)  # assumed: half as many again will be wanted
    while refine and left_s > 0:
        telling = _most_telling(_so_far(measurements), {m.plan.batch_size for m in measurements})
        if telling is None:
            break
        measure(telling, min(share_s, left_s))
    return ThroughputCurve(measurements=tuple(measurements), skipped=skipped, objective=objective)


def _so_far(measurements: Sequence[Measurement]) -> ThroughputCurve:
    return ThroughputCurve(measurements=tuple(measurements))


def _most_telling(curve: ThroughputCurve, measured: Set[int]) -> int | None:
    """The size to look at next: in the middle of the widest gap beside the fastest or the knee; None where all is seen.

    Gaps are measured as ratios. A multiple of 8 where there is one.
    """
    sizes = sorted(measured)
    gaps = []
    for centre in {curve.fastest, curve.knee_batch_size}:
        place = sizes.index(centre)
        gaps += list(zip(sizes[max(0, place - 1) : place + 1], sizes[max(0, place - 1) + 1 : place + 2], strict=False))
    for low, high in sorted(set(gaps), key=lambda gap: gap[0] / gap[1]):
        middle = round(math.sqrt(low * high))
        aligned = round(middle / _SPACING) * _SPACING
        size = aligned if low < aligned < high else middle
        if low < size < high and high >= (1 + _FINEST) * low and high - low > 1:
            return size
    return None


def find_remedy(
    runner: Runner, curve: ThroughputCurve, *, cores: int, on_cuda: bool, budget_s: float
) -> ThroughputCurve:
    """The curve with a change of the loader that was measured to help at its knee; as it is where none did.

    Tried are more and fewer worker processes, by powers of two up to the number of cores, and on a CUDA device memory
    that is pinned, with the number of workers that was best. A change helps where it is faster by more than 5 %, and
    by more than both medians are uncertain.

    Args:
        runner: of the task that the curve is of.
        curve: one whose loader does not keep up.
        cores: that loader processes may use.
        on_cuda: whether the device takes copies from pinned memory.
        budget_s: seconds for all that is tried.
    """
    now = runner.facts().loader
    if now is None:
        return curve
    plan = next(m.plan for m in curve.timed if m.plan.batch_size == curve.knee_batch_size)
    counts = [0, *(1 << power for power in range(min(cores, _MOST_WORKERS).bit_length()))]
    trials: list[dict[str, Any]] = [{"num_workers": count} for count in counts if count != now["num_workers"]]
    share_s = budget_s / (len(trials) + 3)
    # As it is, before and after the others: what is faster than both is not so because the machine has become so.
    before = runner.time(plan, budget_s=share_s)
    best, change = before, dict[str, Any]()
    for trial in trials:
        best, change = _better(runner, best, change, trial, share_s)
    if on_cuda and not now["pin_memory"]:
        best, change = _better(runner, best, change, change | {"pin_memory": True}, share_s)
    if best is before:
        return curve
    after = runner.time(plan, budget_s=share_s)
    as_it_is = [measured for measured in (before, after) if measured.outcome == "ok"]
    if not all(_is_faster(best, measured) for measured in as_it_is):
        return curve
    samples_per_s = max(measured.samples_per_s for measured in as_it_is)
    remedy = Remedy(
        batch_size=plan.batch_size,
        loader=change,
        before={name: now[name] for name in change},
        samples_per_s=best.samples_per_s,
        samples_per_s_before=samples_per_s,
    )
    return replace(curve, remedy=remedy)


def _better(
    runner: Runner, best: Measurement, change: dict[str, Any], trial: dict[str, Any], budget_s: float
) -> tuple[Measurement, dict[str, Any]]:
    measured = runner.time(best.plan, budget_s=budget_s, loader=trial)
    if measured.outcome == "ok" and (best.outcome != "ok" or measured.median_step_s < best.median_step_s):
        return measured, trial
    return best, change


def _is_faster(one: Measurement, other: Measurement) -> bool:
    """Whether by more than 5 %, and the intervals of the medians lie apart; of few steps, those that were seen."""
    if one.samples_per_s < _HELPS * other.samples_per_s:
        return False
    first = median_interval(one.step_s) or (min(one.step_s), max(one.step_s))
    second = median_interval(other.step_s) or (min(other.step_s), max(other.step_s))
    return first[1] < second[0]
