"""Which batch sizes are timed, for how long, and what would help a loader that does not keep up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from itertools import chain
from typing import Any

from ..core.measurement import Energy, Measurement
from ..core.medians import is_settled, likely_range
from ..core.plan import Plan
from ..core.runner import Runner
from ..errors import NoValidResult, TaskError
from .taken import EVERY_SIZE, Rule
from .throughput import Objective, Remedy, ThroughputCurve

# Shares of the time: for the first pass, and for the neighbourhoods of the knee and the fastest size. Then comes
# energy, if the device measures it (more time if the objective needs it), and further visits to all sizes take the
# rest. Assumed.
_FIRST_PASS_SHARE, _REFINE_SHARE = 0.2, 0.2
_ENERGY_SHARE, _ENERGY_SHARE_OF_ITS_OWN = 0.2, 0.4
# Seconds in which the energy of a size is measured: ten ticks of the slowest counter, and no more than an accurate
# value needs (see worker/energy.py).
_ENERGY_LEAST_S, _ENERGY_MOST_S = 0.5, 2.0
_ROUNDS = 8  # rounds of such visits, each to every size. Assumed: slow moments of the machine then affect all sizes.
# Visits to each size without `refine`. Measured (a busy AMD EPYC, two small models, eight profiles each): the step
# times of one size relative to another were wrong by 6.5 and 7.9 % in the mean after one visit in 11 s, by 5.2 and 4.9
# % after two in 5.5 s, and by 2.6 and 3.7 % after four in 5.5 s.
_VISITS = 4
_FEWEST_VISITS = 3  # a size with fewer is not settled. Assumed: two moments may be alike by chance.
_VISITS_DIFFER = 0.05  # a larger difference between visits to one size is remarked. Assumed.
_SPACING = 8  # tensor cores and vector units work in multiples of 8 (NVIDIA, Matrix Multiplication Background Guide)
_FINEST = 0.1  # assumed: sizes that are closer together than a tenth show nothing new
# A processor is fully busy with few samples, but there the cost of a step is no straight line. Measured (an AMD EPYC,
# six models up to 32): without 3 and 6 the fitted time was up to 13 % off, nearly always at its worst between 2 and 8.
_FEW_SAMPLES = (2, 3, 4, 6)
_SMALLEST_SIZE = 8  # assumed: below it an accelerator is mostly idle and every step costs about the same
# The number of steps that `Runner.time` takes if they are slow: warming up and three whole ones; with parts, one more
# for each part.
_FEWEST_STEPS, FEWEST_STEPS_WITH_PARTS = 6, 9
_MOST_WORKERS = 16  # assumed: more loader processes than this are not what a machine lacks
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
    rule: Rule = EVERY_SIZE,
    on_measurement: Callable[[Measurement], None] | None = None,
) -> ThroughputCurve:
    """The throughput curve over the powers of two up to `max_batch`, `max_batch` itself and `include`.

    If the task takes only multiples of a size, it is over powers of two times that size. The time is shared evenly
    among the sizes that are still to come, so that slow sizes get what quick ones leave. The sizes of `include` come
    first, then the smallest. When the budget is spent, the remaining sizes are skipped, and the result says so. A size
    outside `include` that the task cannot train on, as batch norm cannot on one sample, is left out. Every size is
    visited several times if the budget allows it, in rising and falling order. So a slow moment of the machine affects
    all sizes, and the interval of a median covers the differences between moments.

    Args:
        plan: the precision of every measurement. Each step has one micro-batch, whatever the plan's accumulation steps.
        max_batch: the largest size that is known to run.
        budget_s: wall seconds for all of it. At least one size is measured.
        include: further sizes, such as the user's own. Those above `max_batch` are left out.
        refine: whether to look more closely where it matters: at multiples of 8 around the knee and the fastest size,
            and below `max_batch`. Every size is then visited until its median is known.
        objective: what the recommended size should be best in.
        rule: the sizes that the task is sure to take. No others are timed, except those of `include`.
        on_measurement: called with each measurement as it comes.

    Raises:
        NoValidResult: not one size could be timed.
        TaskError: the task failed at a size of `include`, at `max_batch`, or at one that it had trained on before.
    """
    first = sorted({size for size in include if 1 <= size <= max_batch})
    smallest = _SMALLEST_SIZE if max_batch >= _SMALLEST_SIZE else 1
    powers = {rule.multiple_of << power for power in range(max_batch.bit_length())}
    powers = {size for size in powers if smallest <= size <= max_batch and rule.takes(size)}
    coarse = {*powers, max_batch}
    if refine:
        coarse |= {size for size in (*_FEW_SAMPLES, max_batch // _SPACING * _SPACING) if 0 < size <= max_batch}
    sizes = first + sorted(coarse - {*first})
    visits: dict[int, list[Measurement]] = {}
    refused: set[int] = set()
    energies: dict[int, Energy] = {}
    left_s = budget_s

    def measure(size: int, share_s: float) -> None:
        nonlocal left_s
        asked = replace(plan, batch_size=size, accumulation_steps=1)
        try:
            measurement = runner.time(asked, budget_s=share_s, parts=size not in visits)
        except TaskError:
            # A loss over pairs cannot take three samples, and the user did not choose three. If the task itself is at
            # fault, a size that it is known to run at shows it.
            if size in visits or size in first or size == max_batch:
                raise
            refused.add(size)
            return
        left_s -= measurement.seconds
        visits.setdefault(size, []).append(measurement)
        if on_measurement is not None:
            on_measurement(_pooled(visits[size]))

    def so_far() -> ThroughputCurve:
        return ThroughputCurve(
            measurements=tuple(
                replace(_pooled(runs), joules=energies[size].joules, watts=energies[size].watts)
                if size in energies
                else _pooled(runs)
                for size, runs in visits.items()
            )
        )

    def measure_energy(share: float) -> None:
        """Measure the energy of the most important sizes first. Time that is not used goes to further visits."""
        nonlocal left_s
        curve, spent_s = so_far(), 0.0
        best = [curve.recommended, curve.knee_batch_size, curve.fastest]
        wanted = list(dict.fromkeys([*best, *(m.plan.batch_size for m in reversed(curve.timed))]))
        window_s = min(_ENERGY_MOST_S, max(_ENERGY_LEAST_S, share * budget_s / len(wanted)))
        for size in wanted:
            if spent_s + max(window_s, curve.step_s(size)) > share * budget_s:
                continue
            energy = runner.energy(replace(plan, batch_size=size, accumulation_steps=1), budget_s=window_s)
            if energy is None and not energies:
                return  # the device does not measure energy
            if energy is not None:
                energies[size] = energy
            seconds = window_s if energy is None else energy.seconds
            spent_s, left_s = spent_s + seconds, left_s - seconds

    first_pass_s = (_FIRST_PASS_SHARE if refine else 1 / _VISITS) * budget_s
    for done, size in enumerate(sizes):
        has_timed = any(first.outcome == "ok" and first.step_s for first, *_ in visits.values())
        left_of_pass_s = left_s - (budget_s - first_pass_s)
        # A new size shows more than a further visit, but less than the refinement.
        if (left_of_pass_s if refine else left_s) <= 0 and has_timed:
            break
        # Even the fewest steps would take longer than the budget, where a neighbour of the knee matters more; or twice
        # as long.
        most_s = left_s if refine else left_s + budget_s
        if has_timed and FEWEST_STEPS_WITH_PARTS * so_far().step_s(size) > most_s:
            continue
        measure(size, max(0.0, left_of_pass_s) / (len(sizes) - done))
    if not any(first.outcome == "ok" and first.step_s for first, *_ in visits.values()):
        outcomes = "; ".join(f"{m.plan.batch_size}: {m.outcome} {m.message or ''}".strip() for m, *_ in visits.values())
        raise NoValidResult(f"one batch size at least must run when it is timed; got {outcomes}: see the messages")
    if refine:
        share_s = first_pass_s / len(sizes)
        while left_s > (1 - _FIRST_PASS_SHARE - _REFINE_SHARE) * budget_s:
            telling = _most_telling(so_far(), {*visits} | refused)
            if telling is None:
                break
            measure(telling, share_s)
        if 1 not in {*visits} | refused:
            measure(1, share_s)
        measure_energy(_ENERGY_SHARE if objective == "throughput" else _ENERGY_SHARE_OF_ITS_OWN)
    again = sorted((size for size in visits if visits[size][0].outcome == "ok"), reverse=not refine)
    visit_s = left_s / ((_ROUNDS if refine else _VISITS - 1) * len(again))
    while left_s > 0 and not all(map(_is_settled, visits.values())):
        curve = so_far()
        affordable = [size for size in again if _FEWEST_STEPS * curve.step_s(size) <= left_s]
        if not affordable:
            break
        for size in affordable:
            if left_s > 0:
                measure(size, visit_s)
        again.reverse()
    # Only now: the refinement may have timed a size that the first pass had no time for.
    skipped = tuple(sorted({*sizes} - {*visits} - refused))
    return replace(so_far(), skipped=skipped, objective=objective)


def _is_settled(visits: Sequence[Measurement]) -> bool:
    """Whether a size needs no further visit: its median is known to 2 % over several moments, or it failed."""
    pooled = _pooled(visits)
    return pooled.outcome != "ok" or (len(visits) >= _FEWEST_VISITS and is_settled(pooled.step_s, pooled.visits_s))


def _pooled(visits: Sequence[Measurement]) -> Measurement:
    """All visits to one size as one measurement; the first one if only that ran.

    The parts of a step are those of the first visit.
    """
    first, *_ = visits
    ran = [visit for visit in visits if visit.outcome == "ok" and visit.step_s]
    if len(ran) < 2:
        return first
    medians = tuple(visit.median_step_s for visit in ran)
    remarks = dict.fromkeys(remark for visit in ran for remark in visit.remarks)
    if max(medians) > (1 + _VISITS_DIFFER) * min(medians):
        remarks[f"visits differed by {max(medians) / min(medians) - 1:.0%}"] = None
    return replace(
        first,
        step_s=tuple(chain.from_iterable(visit.step_s for visit in ran)),
        visits_s=medians,
        remarks=tuple(remarks),
        seconds=sum(visit.seconds for visit in visits),
    )


def _most_telling(curve: ThroughputCurve, seen: Set[int]) -> int | None:
    """The size to time next: in the middle of the widest gap beside the fastest or the knee; None if there is none.

    Gaps are ratios. It is a multiple of 8 if there is one.

    Args:
        curve: of the sizes that were timed.
        seen: those sizes, and the ones that could not be timed.
    """
    sizes = sorted(seen)
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
    runner: Runner, curve: ThroughputCurve, *, cores: int, pins_memory: bool, budget_s: float
) -> ThroughputCurve:
    """The curve with a change of the loader that measurably helps at its knee; unchanged if none does.

    It tries more and fewer worker processes, in powers of two up to the number of cores, and pinned memory with the
    best number of workers, if the device copies from pinned memory. A change helps if it is faster by more than 5 %,
    and by more than both medians are uncertain.

    Args:
        runner: the runner of the curve's task.
        curve: one whose loader does not keep up.
        cores: the cores that loader processes may use.
        pins_memory: whether the device copies from pinned memory.
        budget_s: seconds for everything that is tried.
    """
    now = runner.facts().loader
    if now is None:
        return curve
    plan = next(m.plan for m in curve.timed if m.plan.batch_size == curve.knee_batch_size)
    counts = [0, *(1 << power for power in range(min(cores, _MOST_WORKERS).bit_length()))]
    trials: list[dict[str, Any]] = [{"num_workers": count} for count in counts if count != now["num_workers"]]
    share_s = budget_s / (len(trials) + 3)
    # The present setting is timed before and after the others: a change must be faster than both, or the machine itself
    # may have become faster.
    before = runner.time(plan, budget_s=share_s)
    best, change = before, dict[str, Any]()
    for trial in trials:
        best, change = _better(runner, best, change, trial, share_s)
    if pins_memory and not now["pin_memory"]:
        best, change = _better(runner, best, change, change | {"pin_memory": True}, share_s)
    if best is before:
        return curve
    after = runner.time(plan, budget_s=share_s)
    as_it_is = [measured for measured in (before, after) if measured.outcome == "ok"]
    if not as_it_is or not all(_is_faster(best, measured) for measured in as_it_is):
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
    try:
        measured = runner.time(best.plan, budget_s=budget_s, loader=trial)
    except TaskError:  # for example data that no other process can read: not the task's fault
        return best, change
    if measured.outcome == "ok" and (best.outcome != "ok" or measured.median_step_s < best.median_step_s):
        return measured, trial
    return best, change


def _is_faster(one: Measurement, other: Measurement) -> bool:
    """Whether it is faster by more than 5 %, with medians whose likely ranges do not overlap."""
    if one.samples_per_s < _HELPS * other.samples_per_s:
        return False
    return likely_range(one.step_s)[1] < likely_range(other.step_s)[0]
