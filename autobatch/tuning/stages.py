"""The stages of an open runner, each once: a verb runs one of them, `tune` all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from ..core.facts import TaskFacts
from ..core.measurement import Measurement
from ..core.plan import Plan
from ..core.progress import Listener, Progress, nobody
from ..core.runner import Prober, Runner
from ..core.units import format_duration, format_lr, format_size
from ..core.words import outcome_text
from ..devices.backend import BACKENDS
from ..devices.environment import available_cores
from ..errors import NoValidResult, SettingError
from ..measuring.allowance import Allowance
from ..measuring.bracket import fits
from ..measuring.learning_rate import LrCurve, find_lr_curve
from ..measuring.memory import MaxBatch, find_max_batch_size
from ..measuring.profiling import find_remedy, profile
from ..measuring.taken import EVERY_SIZE, Rule
from ..measuring.throughput import Objective, ThroughputCurve
from ..searching.budget.advice import SWEEP_SHARE

# No batch beyond this is looked for where the data does not end the search first. Assumed: past any batch in use.
_CEILING = 131_072
# The same for `tune` on data that does not say its size. Assumed: an eighth of a small image data set.
_TUNE_CEILING = 4096
# A batch of more than this share of the data is not tried: it would leave fewer than eight steps an epoch. Assumed.
_DATA_SHARE = 8
FEWEST_SWEEP_STEPS, _MOST_SWEEP_STEPS = 30, 100  # of `tune`; 100 as in the measured comparison of the rules
_REMEDY_SHARE = 0.5  # of the budget again, for a loader that does not keep up. Assumed.


def check_max_batch_size(size: int | None) -> None:
    """That a ceiling leaves something to look for.

    Raises:
        SettingError: it does not.
    """
    if size is not None and size < 1:
        raise SettingError(f"max_batch_size is at least 1; got {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The largest batch that is looked for, and what it stands for."""

    size: int
    stands_for: Literal["dataset", "ceiling"]


def ceiling_of(facts: TaskFacts, max_batch_size: int | None) -> Ceiling:
    """What was asked for, the training data of each process, or 131072."""
    train_size = facts.train_size and facts.train_size // facts.baseline.plan.ranks
    size = min(max_batch_size or _CEILING, train_size or _CEILING)
    return Ceiling(size=size, stands_for="dataset" if size == train_size else "ceiling")


def useful_ceiling(facts: TaskFacts) -> Ceiling:
    """What a race could use, the baseline's own batch at least."""
    train_size = None if facts.train_size is None else facts.train_size // facts.baseline.plan.ranks
    useful = _TUNE_CEILING if train_size is None else max(1, train_size // _DATA_SHARE)
    size = max(useful, facts.baseline.plan.batch_size)
    by_data = train_size is not None and size >= train_size // _DATA_SHARE
    return Ceiling(size=size, stands_for="dataset" if by_data else "ceiling")


def largest_batch(
    runner: Prober,
    plan: Plan,
    ceiling: Ceiling,
    *,
    multiple_of: int = 1,
    power_of_two: bool = False,
    prove: bool = False,
    assumed: tuple[str, ...] = (),
    allowance: Allowance | None = None,
    on_probe: Callable[[Measurement], None] | None = None,
    on_progress: Listener = nobody,
) -> MaxBatch:
    """The largest batch of an open runner; see `find_max_batch_size` for what it takes and raises."""

    def told(probe: Measurement) -> None:
        on_progress(_of_probe(probe))
        if on_probe is not None:
            on_probe(probe)

    return find_max_batch_size(
        runner,
        plan,
        ceiling=ceiling.size,
        ceiling_is=ceiling.stands_for,
        multiple_of=multiple_of,
        power_of_two=power_of_two,
        prove=prove,
        own=runner.facts().baseline.plan.batch_size,
        allowance=allowance,
        assumed=assumed,
        on_probe=told,
    )


def max_batch_of(
    runner: Prober,
    plan: Plan,
    *,
    max_batch_size: int | None = None,
    multiple_of: int = 1,
    power_of_two: bool = False,
    prove: bool = False,
    assumed: tuple[str, ...] = (),
    on_progress: Listener = nobody,
) -> MaxBatch:
    """The largest batch as an answer of its own: up to `ceiling_of` the task, with what was assumed and warned of."""
    check_max_batch_size(max_batch_size)
    facts = runner.facts()
    ranks = facts.baseline.plan.ranks
    if ranks > 1:
        assumed = (*assumed, f"each of {ranks} processes takes batches of this size")
    found = largest_batch(
        runner,
        plan,
        ceiling_of(facts, max_batch_size),
        multiple_of=multiple_of,
        power_of_two=power_of_two,
        prove=prove,
        assumed=(*assumed, *facts.assumptions),
        on_progress=on_progress,
    )
    return MaxBatch(int(found), **(vars(found) | {"warnings": facts.warnings}))


def largest_micro_batch(runner: Prober, largest: MaxBatch, *, on_progress: Listener = nobody) -> int:
    """The largest that fits beside gradients that are kept; 0 where no step is to accumulate.

    Accumulation is for what does not fit or is not taken. Past a size that only time or a ceiling kept from being
    probed, larger ones are slow or unknown, and no less so in parts.

    Of the powers of two, because the race's batches are, and so their largest divisors, or of the multiples that the
    task takes; and of the baseline's own, where it accumulates.
    """
    facts = runner.facts()
    if not facts.accumulates or largest.limited_by in ("time", "ceiling"):
        return 0
    if not largest.has_no_room_above:
        return int(largest)
    own, most = facts.baseline.plan, int(largest)
    step = largest.rule.multiple_of
    sizes = {size for exponent in range(most.bit_length()) if (size := step << exponent) <= most}
    sizes = set(filter(largest.rule.takes, sizes))
    if own.accumulation_steps > 1 and own.batch_size <= most:
        sizes.add(own.batch_size)
    for size in sorted(sizes, reverse=True):
        probe = runner.probe(replace(facts.smallest_plan, batch_size=size, accumulation_steps=2), verdict=True)
        on_progress(_of_probe(probe, "accumulating, "))
        if fits(probe, largest.limit, verdict=True):
            return size
    return 0


def _of_probe(probe: Measurement, how: str = "") -> Progress:
    what = f"batch {probe.plan.batch_size}"
    peak = "" if probe.peak_bytes is None else f", peak {format_size(probe.peak_bytes)}"
    kind: Literal["found", "failed"] = "found" if probe.outcome == "ok" else "failed"
    text = f"{how}{what}: {outcome_text(probe.outcome)}{peak}"
    return Progress(stage="memory", kind=kind, key=f"{how}{what}", text=text)


def throughput_of(
    runner: Runner,
    plan: Plan,
    largest: int,
    *,
    budget_s: float,
    rule: Rule = EVERY_SIZE,
    refine: bool = False,
    objective: Objective = "throughput",
    on_measurement: Callable[[Measurement], None] | None = None,
) -> ThroughputCurve:
    """Samples a second over batch sizes up to the largest, the baseline's among them; see `profiling.profile`."""
    baseline = runner.facts().baseline.plan.batch_size
    return profile(
        runner,
        plan,
        max_batch=largest,
        budget_s=budget_s,
        include=[baseline] if baseline <= largest else [],
        rule=rule,
        refine=refine,
        objective=objective,
        on_measurement=on_measurement,
    )


def profile_of(
    runner: Runner,
    plan: Plan,
    max_batch: int,
    *,
    budget_s: float,
    objective: Objective = "throughput",
    on_progress: Listener = nobody,
) -> ThroughputCurve:
    """The throughput curve as an answer of its own: each size is told, and what would help a loader that lags."""

    def told(measured: Measurement) -> None:
        what = f"batch {measured.plan.batch_size}"
        if measured.outcome == "ok":
            text = f"{what}: {measured.samples_per_s:,.0f} samples/s"
            on_progress(Progress(stage="profile", kind="found", key=what, text=text))
        else:
            text = f"{what}: {outcome_text(measured.outcome)}"
            on_progress(Progress(stage="profile", kind="failed", key=what, text=text))

    curve = throughput_of(
        runner, plan, max_batch, budget_s=budget_s, refine=True, objective=objective, on_measurement=told
    )
    curve = replace(curve, warnings=runner.facts().warnings)
    curve.recommended  # noqa: B018  # raises now where the objective cannot be judged
    if not curve.loader_bound:
        return curve
    text = "the loader does not keep up: trying what would help it"
    on_progress(Progress(stage="profile", kind="note", text=text))
    pins = BACKENDS[runner.device().kind].pins_memory
    return find_remedy(runner, curve, cores=available_cores(), pins_memory=pins, budget_s=_REMEDY_SHARE * budget_s)


def sweep_steps(curve: ThroughputCurve, left_s: float) -> int | None:
    """Steps of a range test at the knee that its share of the time that is left pays for; None where too few."""
    affordable = int(SWEEP_SHARE * left_s / curve.step_s(curve.knee_batch_size))
    return min(_MOST_SWEEP_STEPS, affordable) if affordable >= FEWEST_SWEEP_STEPS else None


def lr_curve_of(
    runner: Runner,
    plan: Plan,
    *,
    steps: int,
    seed: int,
    rule: str = "min/10",
    on_progress: Listener = nobody,
) -> LrCurve:
    """The range test of an open runner; see `find_lr_curve` for what it raises."""
    at = f"at batch {plan.effective_batch_size}"
    on_progress(Progress(stage="range test", kind="began", text=f"{steps} steps {at}"))
    try:
        curve = find_lr_curve(runner, plan, steps=steps, seed=seed, rule=rule)
    except NoValidResult as error:
        on_progress(Progress(stage="range test", kind="failed", text=str(error)))
        raise
    left_out = ", without the task's schedule" if curve.sweep.without_schedule else ""
    about = f"{at}{left_out} ({format_duration(curve.sweep.seconds)})"
    if curve.suggestion is None:
        on_progress(Progress(stage="range test", kind="failed", text=f"{rule} suggests nothing {about}"))
    else:
        text = f"{rule} suggests {format_lr(curve.suggestion)} {about}"
        on_progress(Progress(stage="range test", kind="found", text=text))
    return curve
