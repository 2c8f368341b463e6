"""The stages of an open runner. A public function such as `profile` runs one of them, and `tune` runs all."""

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
from .shares import sweep_s

# The search for the largest batch stops here if the data does not end it first. Assumed: larger than any in use.
_CEILING = 131_072
# The same for `tune` on data without a length. Assumed: an eighth of a small image data set.
_TUNE_CEILING = 4096
# Times the baseline's batch, where no knee is known; see `space_for`.
_WITHOUT_KNEE = 4
# No batch larger than one such part of the data is tried: an epoch would have fewer than eight steps. Assumed.
_DATA_SHARE = 8
# The default budget of a profile. Assumed: enough for 2 % intervals at a dozen sizes with steps of milliseconds.
PROFILE_S = 30.0
FEWEST_SWEEP_STEPS, MOST_SWEEP_STEPS = 30, 100  # of `tune`; 100 as in the comparison that was measured
# Assumed: this share of the budget, on top of it, finds out what helps a loader that does not keep up.
_REMEDY_SHARE = 0.5


def check_max_batch_size(size: int | None) -> None:
    """Check that a ceiling leaves a size to try.

    Raises:
        SettingError: the ceiling is below 1.
    """
    if size is not None and size < 1:
        raise SettingError(f"max_batch_size is at least 1; got {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The largest micro-batch to try, and the reason for this limit."""

    size: int
    stands_for: Literal["dataset", "ceiling"]


def ceiling_of(facts: TaskFacts, max_batch_size: int | None) -> Ceiling:
    """The limit for a search of its own: `max_batch_size`, the training data of each process, or 131072."""
    train_size = facts.train_size and facts.train_size // facts.baseline.plan.ranks
    size = min(max_batch_size or _CEILING, train_size or _CEILING)
    return Ceiling(size=size, stands_for="dataset" if size == train_size else "ceiling")


def useful_ceiling(facts: TaskFacts) -> Ceiling:
    """The limit for `tune`: the largest micro-batch that a race could use, and at least the baseline's own."""
    train_size = None if facts.train_size is None else facts.train_size // facts.baseline.plan.ranks
    useful = _TUNE_CEILING if train_size is None else max(1, train_size // _DATA_SHARE)
    if "profile" in facts.without:  # the knee is taken to be at the baseline's, and the race reaches to four times it
        useful = min(useful, _WITHOUT_KNEE * facts.baseline.plan.batch_size)
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
    """The largest micro-batch that fits. `find_max_batch_size` describes the arguments and what it raises."""

    def told(probe: Measurement) -> None:
        on_progress(_of_probe(probe))
        if on_probe is not None:
            on_probe(probe)

    facts = runner.facts()
    own = facts.baseline.plan.batch_size
    return find_max_batch_size(
        runner,
        plan,
        ceiling=ceiling.size,
        ceiling_is=ceiling.stands_for,
        multiple_of=multiple_of,
        power_of_two=power_of_two,
        prove=prove,
        own=own,
        # Where each run has to begin anew, what the task is trained with is the best to begin with: it is known to run.
        first=min(own, ceiling.size) if facts.rung_s else 2,
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
    """The largest micro-batch as the answer of a command, up to `ceiling_of`, with assumptions and warnings."""
    check_max_batch_size(max_batch_size)
    facts = runner.facts()
    ranks = facts.baseline.plan.ranks
    if ranks > 1:
        assumed = (*assumed, f"each of {ranks} processes takes a micro-batch of this size")
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
    """The largest micro-batch that fits while gradients accumulate; 0 if no step is to accumulate.

    Accumulation helps only with batches that do not fit or that the task refuses. If time or a ceiling ended the
    search, larger batches are slow or untried, and splitting them does not change that.

    The candidates are powers of two, because the race's batches are, or multiples that the task accepts. The baseline's
    own micro-batch is a candidate if the baseline accumulates.
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
        probe = runner.probe(replace(facts.smallest_plan, batch_size=size, accumulation_steps=2), final=True)
        on_progress(_of_probe(probe, "accumulating, "))
        if fits(probe, largest.limit, final=True):
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
    """Samples per second at micro-batch sizes up to the largest. The baseline's is measured if it fits."""
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
    """The throughput curve as the answer of a command: it reports each size, and what would help a slow loader."""

    if (why := runner.facts().without.get("profile")) is not None:
        raise SettingError(f"there is no profile of this: {why}")

    def told(measured: Measurement) -> None:
        what = f"batch {measured.plan.batch_size}"
        ran = measured.outcome == "ok"
        came = f"{measured.samples_per_s:,.0f} samples/s" if ran else outcome_text(measured.outcome)
        on_progress(Progress(stage="profile", kind="found" if ran else "failed", key=what, text=f"{what}: {came}"))

    curve = throughput_of(
        runner, plan, max_batch, budget_s=budget_s, refine=True, objective=objective, on_measurement=told
    )
    curve = replace(curve, warnings=runner.facts().warnings)
    curve.recommended  # noqa: B018  # raises now if the objective cannot be judged
    if not curve.loader_bound:
        return curve
    text = "the loader does not keep up: trying what would help"
    on_progress(Progress(stage="profile", kind="note", text=text))
    pins = BACKENDS[runner.device().kind].pins_memory
    return find_remedy(runner, curve, cores=available_cores(), pins_memory=pins, budget_s=_REMEDY_SHARE * budget_s)


def sweep_steps(curve: ThroughputCurve, left_s: float) -> int | None:
    """How many range-test steps at the knee the test's share of the remaining time pays for; None if too few."""
    affordable = int(sweep_s(left_s) / curve.step_s(curve.knee_batch_size))
    return min(MOST_SWEEP_STEPS, affordable) if affordable >= FEWEST_SWEEP_STEPS else None


def lr_curve_of(
    runner: Runner,
    plan: Plan,
    *,
    steps: int,
    seed: int,
    rule: str = "min/10",
    on_progress: Listener = nobody,
) -> LrCurve:
    """Run a range test on an open runner. `find_lr_curve` describes what it raises."""
    if (why := runner.facts().without.get("range test")) is not None:
        raise SettingError(f"there is no range test for this: {why}")
    at = f"at effective batch {plan.effective_batch_size}"
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
