"""The largest batch that ran, with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from ..core.facts import MemoryLimit
from ..core.measurement import Measurement
from ..core.plan import Plan
from ..core.runner import Prober
from ..core.units import format_size
from ..core.words import no_proof_sentence
from ..errors import AutobatchError, DoesNotFit, SettingError, TaskError, WorkerDied
from .allowance import Allowance
from .bracket import Probing, fits
from .sizes import Sizes
from .taken import EVERY_SIZE, Rule, sure_for

LimitedBy = Literal["memory", "dataset", "ceiling", "task", "time"]


class MaxBatch(int):
    """The largest batch size that ran, as an int that carries its evidence; `int(x)` drops the evidence.

    Attributes:
        final_probe: the run of this size that makes it the answer: whole steps on worst-case samples.
        probes: everything that was run, in order.
        limit: the memory that a step may use.
        limited_by: why no larger size is the answer: "memory", the "dataset", a "ceiling", the "task", whose code
            refuses larger batches, or the "time" that they would take.
        assumed: a sentence for each assumption.
        proof: a final probe of the next larger size, which did not fit; None if there was none.
        warnings: of the task's check, about things that do not stop it.
        rule: the sizes that the task is sure to take, if it refused some.

    Raises:
        ValueError: the evidence does not show that this size ran and fits, or that `proof` did not.
    """

    final_probe: Measurement
    probes: tuple[Measurement, ...]
    limit: MemoryLimit
    limited_by: LimitedBy
    assumed: tuple[str, ...]
    proof: Measurement | None
    warnings: tuple[str, ...]
    rule: Rule

    def __new__(
        cls,
        batch_size: int,
        *,
        final_probe: Measurement,
        probes: Iterable[Measurement],
        limit: MemoryLimit,
        limited_by: LimitedBy,
        assumed: Iterable[str] = (),
        proof: Measurement | None = None,
        warnings: Iterable[str] = (),
        rule: Rule = EVERY_SIZE,
    ) -> MaxBatch:
        probes = tuple(probes)
        if (
            final_probe not in probes
            or final_probe.plan.batch_size != batch_size
            or not fits(final_probe, limit, final=True)
        ):
            raise ValueError(
                f"a batch size is an answer only if it ran within the memory limit; {batch_size} comes with a run of "
                f"{final_probe.plan.batch_size} that ended {final_probe.outcome!r}"
            )
        if proof is not None and (proof.plan.batch_size <= batch_size or not _has_no_room(proof, limit)):
            raise ValueError(
                f"a proof is a larger size that does not fit; {batch_size} comes with a run of "
                f"{proof.plan.batch_size} that ended {proof.outcome!r}"
            )
        answer = super().__new__(cls, batch_size)
        answer.__dict__.update(
            final_probe=final_probe,
            probes=probes,
            limit=limit,
            limited_by=limited_by,
            assumed=tuple(assumed),
            proof=proof,
            warnings=tuple(warnings),
            rule=rule,
        )
        return answer

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the evidence of a batch size does not change; {name} cannot be set")

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, Any]]:
        return (int(self),), dict(self.__dict__)

    def __getstate__(self) -> None:
        """No state beyond the arguments: a copy or a pickle is built, and checked, again."""

    def __repr__(self) -> str:
        peak = "" if self.peak_bytes is None else f", peak {format_size(self.peak_bytes)}"
        return (
            f"MaxBatch({int(self)}, limited by {self.limited_by}{peak} of {format_size(self.limit.budget_bytes)}, "
            f"{len(self.probes)} probes{', proved' if self.proof else ''})"
        )

    def __str__(self) -> str:
        return int.__repr__(self)

    @property
    def peak_bytes(self) -> int | None:
        """The peak memory of the final probe; None if the device has no counter."""
        return self.final_probe.peak_bytes

    @property
    def has_no_room_above(self) -> bool:
        """Whether a larger size is known not to fit."""
        return any(p.plan.batch_size > self and not fits(p, self.limit, final=True) for p in self.probes)

    @property
    def curve(self) -> tuple[tuple[int, int], ...]:
        """(batch size, peak bytes) of every probe with a known peak, by size. The last run of a size counts."""
        return tuple(sorted({p.plan.batch_size: p.peak_bytes for p in self.probes if p.peak_bytes is not None}.items()))

    @property
    def why_not_proved(self) -> str | None:
        """A sentence if there is no proof that the next larger size fails; None if there is a proof."""
        if self.proof is not None:
            return None
        after = next((probe for probe in reversed(self.probes) if probe.plan.batch_size > self), None)
        crashed_at = after.plan.batch_size if after is not None and after.outcome == "crashed" else None
        return no_proof_sentence(self.limited_by, int(self), crashed_at)

    def _repr_html_(self) -> str:
        """What the command prints, as a notebook shows it."""
        # Imported here: results are made without anything that draws them.
        from ..render.evidence import max_batch_section
        from ..render.notebook import section_frame

        return section_frame(max_batch_section(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """The answer and its evidence as plain JSON values, with sizes in bytes and times in seconds."""
        return {
            "batch_size": int(self),
            "limited_by": self.limited_by,
            "peak_bytes": self.peak_bytes,
            "allocated_bytes": self.final_probe.allocated_bytes,
            "limit_bytes": self.limit.budget_bytes,
            "probes": [
                {
                    "batch_size": probe.plan.batch_size,
                    "outcome": probe.outcome,
                    "peak_bytes": probe.peak_bytes,
                    "allocated_bytes": probe.allocated_bytes,
                    "alloc_retries": probe.alloc_retries,
                    "seconds": probe.seconds,
                    "fresh": probe.fresh,
                }
                for probe in self.probes
            ],
            "assumed": list(self.assumed),
            "proved": self.proof is not None,
            "warnings": list(self.warnings),
        }


def find_max_batch_size(
    runner: Prober,
    plan: Plan,
    *,
    ceiling: int,
    ceiling_is: Literal["dataset", "ceiling"],
    multiple_of: int = 1,
    power_of_two: bool = False,
    prove: bool = False,
    own: int = 1,
    first: int = 2,
    allowance: Allowance | None = None,
    assumed: Iterable[str] = (),
    on_probe: Callable[[Measurement], None] | None = None,
) -> MaxBatch:
    """The largest batch size up to `ceiling` that ran within the runner's memory limit.

    The first probe is 2 by default, not the ceiling and not 1: the ceiling is likely to run out of memory, and batch
    normalisation cannot train on one sample. The second probe is already the ceiling if growth in proportion to the
    batch would still fit. So with ample memory a ceiling of 200 or of 131072 takes two probes. A probe that would end
    the probing is a final probe at once. If a final probe contradicts an exploring one, all exploring results are
    discarded, and only final probes follow. The number of probes never exceeds `bracket.most_probes`.

    Args:
        plan: the accumulation steps and precision of every probe. Its batch size is ignored.
        ceiling: the largest size to try, in samples.
        ceiling_is: the meaning of the ceiling, which becomes `limited_by` if the answer reaches it.
        multiple_of: try only multiples of this size.
        power_of_two: try only powers of two.
        prove: run a final probe of the next larger size too, and go on upwards if it fits after all.
        own: the batch size that the task is trained with, so that it must accept it.
        first: the size to begin with; another one than 2 if it is known to run and each probe is expensive.
        allowance: how far to go; None for as far as memory and the ceiling allow. If it ended the probing,
            `limited_by` is "time", and no larger size was refused.
        assumed: sentences to keep in the answer.
        on_probe: called with each measurement as it comes.

    Raises:
        SettingError: there is no size to try, or both `multiple_of` and `power_of_two` are set.
        DoesNotFit: not even the smallest size fits.
        WorkerDied: the worker crashed at the smallest size, which memory alone does not explain.
        TaskError: the task fails at every size that was tried.
    """
    if power_of_two and multiple_of != 1:
        raise SettingError(f"power_of_two and multiple_of exclude each other; got multiple_of={multiple_of}: give one")
    if not 1 <= multiple_of <= ceiling:
        raise SettingError(
            f"multiple_of is at least 1 and at most the {ceiling_is} of {ceiling}; got {multiple_of}: "
            f"no batch size can be tried"
        )
    sizes = Sizes(step=multiple_of, power_of_two=power_of_two, ceiling=ceiling)
    probing = Probing(
        runner=runner,
        plan=plan,
        limit=runner.memory(),
        wanted=sizes,
        own=own,
        first=first,
        allowance=allowance,
        on_probe=on_probe,
    )
    smallest = sizes.above(0)
    try:
        batch_size = probing.settle(prove=prove)
    except TaskError as error:
        too_large = probing.high
        if too_large is None or too_large != sizes.above(smallest):
            raise
        # All sizes but the smallest are too large, and the task does not train with the smallest one: batch norm with
        # one sample.
        raise DoesNotFit(f"{_refusal(probing, too_large)}. A batch of {smallest} does not train: {error}") from None
    if batch_size == 0:
        too_large = probing.high
        assert too_large is not None  # a size ran and did not fit
        untrained = [size for size in probing.refused if size < too_large]
        if untrained:
            size = max(untrained)
            why = f"A batch of {size} does not train: {probing.refused[size]}"
            raise DoesNotFit(f"{_refusal(probing, too_large)}. {why}")
        raise _refusal(probing, too_large)
    high = probing.high
    after = None if high is None else probing.final_probes.get(high)
    return MaxBatch(
        batch_size,
        final_probe=probing.final_probes[batch_size],
        probes=probing.probes,
        limit=probing.limit,
        limited_by=_ended_by(probing, batch_size, ceiling_is),
        assumed=(*assumed, *probing.remarks()),
        proof=after if after is not None and _has_no_room(after, probing.limit) else None,
        rule=sure_for(probing.took | {own}, set(probing.refused)) if probing.refused else EVERY_SIZE,
    )


def _ended_by(probing: Probing, size: int, ceiling_is: Literal["dataset", "ceiling"]) -> LimitedBy:
    if probing.is_cut:
        return "time"
    if probing.high is not None:
        return "memory"
    return "task" if probing.ends_with_task(size) else ceiling_is


def _has_no_room(probe: Measurement, limit: MemoryLimit) -> bool:
    """Whether a run shows that memory is too small. A crash may have any cause."""
    return probe.outcome != "crashed" and not fits(probe, limit, final=True)


def _refusal(probing: Probing, size: int) -> AutobatchError:
    """The error that says why a size that ran does not fit."""
    limit = probing.limit
    last = next(probe for probe in reversed(probing.probes) if probe.plan.batch_size == size)
    if last.outcome == "crashed":
        return WorkerDied(
            f"a worker must get through a batch of {size}; it crashed ({last.message}): memory cannot be found "
            f"until that batch size runs"
        )
    need = f"needs {format_size(last.peak_bytes)}" if last.peak_bytes is not None else "was refused by the allocator"
    if last.peak_bytes is None and last.message is not None:
        need = f"{need}: {last.message}"
    if last.outcome == "ok":
        need = f"ran only after the allocator had freed memory and tried again {last.alloc_retries} times"
    return DoesNotFit(
        f"a batch of {size} must fit in {format_size(limit.budget_bytes)} "
        f"({format_size(limit.capacity_bytes)} from {limit.source}, less headroom); it {need}. "
        "Allow more memory or less headroom, or need less: bf16, gradient checkpointing, shorter samples, a small model"
        + ("" if probing.sizes.step == 1 else f", a multiple_of below {probing.sizes.step}")
    )
