"""The stages of an open runner that several verbs have: the largest batch, and samples a second over batch sizes."""

from __future__ import annotations

from dataclasses import replace

from ..core.measurement import Measurement
from ..core.plan import Plan
from ..core.progress import Listener, Progress, nobody
from ..core.runner import Prober, Runner
from ..devices.backend import BACKENDS
from ..devices.environment import available_cores
from ..errors import SettingError
from ..measuring.memory import MaxBatch, find_max_batch_size
from ..measuring.profiling import find_remedy
from ..measuring.profiling import profile as profile_runner
from ..measuring.throughput import Objective, ThroughputCurve
from .pipeline import CEILING, describe_probe

_REMEDY_SHARE = 0.5  # of the budget again, for a loader that does not keep up. Assumed.


def check_max_batch_size(size: int | None) -> None:
    """That a ceiling leaves something to look for.

    Raises:
        SettingError: it does not.
    """
    if size is not None and size < 1:
        raise SettingError(f"max_batch_size is at least 1; got {size}")


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
    """The largest batch of an open runner; the ceiling is `max_batch_size`, the training data, or 131072."""
    check_max_batch_size(max_batch_size)
    facts = runner.facts()
    ranks = facts.baseline.plan.ranks
    train_size = facts.train_size and facts.train_size // ranks
    if ranks > 1:
        assumed = (*assumed, f"each of {ranks} processes takes batches of this size")
    ceiling = min(max_batch_size or CEILING, train_size or CEILING)

    def told(probe: Measurement) -> None:
        on_progress(Progress(stage="memory", text=describe_probe(probe)))

    found = find_max_batch_size(
        runner,
        plan,
        ceiling=ceiling,
        ceiling_is="dataset" if ceiling == train_size else "ceiling",
        multiple_of=multiple_of,
        power_of_two=power_of_two,
        prove=prove,
        own=facts.baseline.plan.batch_size,
        assumed=(*assumed, *facts.assumptions),
        on_probe=told,
    )
    return MaxBatch(int(found), **(vars(found) | {"warnings": facts.warnings}))


def profile_of(
    runner: Runner,
    plan: Plan,
    max_batch: int,
    *,
    budget_s: float,
    objective: Objective = "throughput",
    on_progress: Listener = nobody,
) -> ThroughputCurve:
    """The throughput curve of an open runner, the baseline's batch size among the measured ones."""

    def told(measured: Measurement) -> None:
        text = f"batch {measured.plan.batch_size}: {measured.outcome}"
        if measured.outcome == "ok":
            text = f"batch {measured.plan.batch_size}: {measured.samples_per_s:,.0f} samples/s"
        on_progress(Progress(stage="profile", text=text))

    facts = runner.facts()
    baseline = facts.baseline.plan.batch_size
    curve = profile_runner(
        runner,
        plan,
        max_batch=max_batch,
        budget_s=budget_s,
        include=[baseline] if baseline <= max_batch else [],
        refine=True,
        objective=objective,
        on_measurement=told,
    )
    curve = replace(curve, warnings=facts.warnings)
    curve.recommended  # noqa: B018  # raises now where the objective cannot be judged
    if not curve.loader_bound:
        return curve
    on_progress(Progress(stage="profile", text="the loader does not keep up: trying what would help it"))
    pins = BACKENDS[runner.device().kind].pins_memory
    return find_remedy(runner, curve, cores=available_cores(), pins_memory=pins, budget_s=_REMEDY_SHARE * budget_s)
