"""Where to probe next: a bracket around the largest size that fits, guided by the peaks that were measured.

Peak memory over the batch is a maximum of lines with intercepts above zero (parameters and optimizer state come first),
so it grows at most in proportion to the batch. Sometimes it is quadratic (losses over all pairs) and sometimes not
monotone (algorithms change, allocators round). So the curve guides, but only runs decide.

A size that the task's own code refuses says nothing about memory: probing continues with sizes that the task may take
(taken.py). Probing that must be brief stops at its allowance (allowance.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ..core.facts import MemoryLimit
from ..core.measurement import Measurement
from ..core.plan import Plan
from ..core.runner import Prober
from ..core.units import format_size
from ..errors import TaskError, first_line
from .allowance import Allowance
from .sizes import Sizes
from .taken import Rule, rule_for, rules_for, sure_for

# While no size is known not to fit, the next one aims at `_AIMS[i]` of the budget, where i is the number of `_STAGES`
# that the peak has passed. Assumed: they leave room for a bend or a cliff above the last probe. benchmarks/max_batch.py
# shows how many probes they cost.
_STAGES = (0.45, 0.80)
_AIMS = (0.60, 0.90, 1.0)
_GROWTH_CAP = 32  # assumed: the next size is at most this many times the last one
_NOISE = 0.002  # assumed: a rise of the peak below this share of the budget says nothing about the slope
_LEFT_FLAT = 0.05  # assumed: the flat part ends when the peak has risen by this share of the budget
_SAME_SLOPE = 0.1  # assumed: two secants this close lie on one line
_SLOW_STEPS, _SLOW_GROWTH = (
    3,
    0.005,
)  # assumed: free steps below a doubling, then growth of at least 0.5 %, 1 %, 2 %, ...
_FALL = 0.75  # assumed: no change of a library's algorithm saves a quarter of a step's memory
_NOTICED = 0.01  # assumed: a change of other processes' memory worth a sentence, as a share of the budget
_SHRINK = 4  # assumed: the factor between steps down from a size that failed without a known peak
# The most sizes that a task may refuse before its error is taken to have another cause: for each doubling up to the
# ceiling, and at least. Assumed: a rule shows in fewer (tests/measuring/test_taken.py), and most refusals cost no step.
_MOST_REFUSED, _MOST_REFUSED_LEAST = 3, 16


def fits(measurement: Measurement, limit: MemoryLimit, *, final: bool) -> bool:
    """Whether a run shows that its size fits.

    A loss that is not a number says nothing about memory: the peak decides. In a final probe, a size does not fit if
    the allocator had to free memory and try again: every such step waits for the device.
    """
    if measurement.outcome == "nonfinite":
        within = measurement.peak_bytes is None or measurement.peak_bytes <= limit.budget_bytes
    else:
        within = measurement.outcome == "ok"
    return within and not (final and measurement.alloc_retries)


def most_probes(num_sizes: int) -> int:
    """The most probes among `num_sizes` sizes, whatever the runner answers.

    With L = log2(num_sizes), rounded up: growing takes L doublings and, in each stage, at most `_SLOW_STEPS` + 9 slower
    steps. Of four splits at least one halves the bracket, and L more bring it within a factor of four. Stepping down
    takes L / 2 + 2. All of that happens at most twice (the second time with final probes alone), with a final probe and
    a proof each.
    """
    doublings = math.ceil(math.log2(num_sizes + 1))
    growing = doublings + (len(_STAGES) + 1) * (_SLOW_STEPS + 9)
    return 2 * (growing + 5 * (doublings + 2) + doublings // 2 + 4)


@dataclass(slots=True, kw_only=True)
class Probing:
    """What is known so far, and what to probe next.

    `low` and `high` are the bracket: the largest size known to fit, below the smallest size known not to. Invariants:
    no size outside the bracket is run, except for those of `_unsure`, and no final probe is run twice. So every probe
    brings the end nearer.

    Attributes:
        wanted: the sizes that the answer may have.
        own: the batch size that the task is trained with. If another size is refused, it shows whether the task or the
            size is at fault.
        first: the size to begin with.
        allowance: how far to go; None for no limit.
        sizes: the wanted sizes that the task takes.
        took, refused: the sizes that the task ran at, or is trained with; and those that its own code refused, each
            with its error.
        is_cut: whether the allowance ended the probing.
    """

    runner: Prober
    plan: Plan
    limit: MemoryLimit
    wanted: Sizes
    own: int
    first: int
    allowance: Allowance | None
    on_probe: Callable[[Measurement], None] | None
    sizes: Sizes = field(init=False)
    rule: Rule | None = None
    took: set[int] = field(default_factory=set)
    refused: dict[int, TaskError] = field(default_factory=dict)
    is_cut: bool = False
    probes: list[Measurement] = field(default_factory=list)
    final_probes: dict[int, Measurement] = field(default_factory=dict)
    fitting: dict[int, bool] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)
    final_only: bool = False
    stage: int = 0
    num_slow_steps: int = 0
    num_steps_down: int = 0
    widths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes = self.wanted

    @property
    def high(self) -> int | None:
        return min((size for size, fit in self.fitting.items() if not fit), default=None)

    @property
    def low(self) -> int:
        high = self.high
        return max((size for size, fit in self.fitting.items() if fit and (high is None or size < high)), default=0)

    def settle(self, *, prove: bool) -> int:
        """The answer: a size with a final probe, above which no size fits or is to be tried; 0 if none fits."""
        while True:
            assert len(self.probes) <= (1 + len(self.refused)) * most_probes(self.wanted.count), "probing must end"
            low, high = self.low, self.high
            is_open = low < self.sizes.top and (high is None or self.sizes.above(low) < high)
            most = self._allowed(low)
            self.is_cut = is_open and self.sizes.above(low) > most
            if is_open and not self.is_cut:
                size = min(self._next(low, high), self.sizes.floor(most))
                if self.ends_with_task(
                    self.sizes.top
                ):  # the guess is only that the task takes smaller sizes than it refused
                    size = min(size, max(self.sizes.between(max(low, 1), self.sizes.top + 1), self.sizes.above(low)))
                closes = size == self.sizes.top or (high is not None and self.sizes.above(size) >= high)
                self._run(size, final=closes or self.final_only)
            elif low == 0:
                if (last := self._left_out_below(high)) is None:
                    return 0
                self._run(last, final=False)
            elif low not in self.final_probes:
                self._run(low, final=True)
            elif prove and high is not None and high not in self.final_probes:
                self._run(high, final=True)
            elif (doubted := self._doubted(low, high)) is not None:
                self._run(doubted, final=False)
            else:
                return low

    def _allowed(self, low: int) -> float:
        """The largest size that the allowance lets us try. One size is always tried."""
        if self.allowance is None or not low:
            return math.inf
        return max(self.allowance.most(self.probes), self.own)

    def _doubted(self, low: int, high: int | None) -> int | None:
        """The next size up that only the guessed rule leaves out; None if there is none.

        First comes the next size itself, as the task may have a rule that we do not know, then the next size of each
        other rule that agrees with the sizes taken and refused. Each size that the task refuses refutes a rule, so they
        are few.
        """
        if self.rule is None:
            return None
        if self.allowance is not None:
            return self._unsure()
        others = [self.wanted.narrowed(rule) for rule in rules_for(self.took, set(self.refused))]
        doubted = {size for sizes in others if sizes is not None and (size := sizes.above(low)) <= sizes.ceiling}
        doubted |= {self.wanted.above(low)} - self.refused.keys()
        most = self.wanted.ceiling if high is None else high - 1
        return min((size for size in doubted if size <= most), default=None)

    def _left_out_below(self, high: int | None) -> int | None:
        """A size below the smallest that does not fit, which only the guessed rule leaves out; None if there is none.

        First come sizes of other rules that agree with those taken and refused, then those where a least size may lie.
        """
        if self.rule is None or high is None:
            return None
        shapes = (rule for rule in rules_for(self.took, set(self.refused)) if rule.least == 1)
        smallest = {sizes.above(0) for shape in shapes if (sizes := self.wanted.narrowed(shape)) is not None}
        untried = {size for size in smallest | {self.wanted.above(0)} if size < high} - self.refused.keys()
        if untried:
            return min(untried)
        below = max((size for size in self.refused if size < high), default=0)
        middle = self.wanted.floor((below + high) / 2)
        return middle if below < middle < high else None

    def _unsure(self) -> int | None:
        """The next size down that the task may refuse because of a least size; None if there is none.

        With an allowance this is not asked: the stages that follow use small sizes only if a rule makes them sure.
        """
        below = max((size for size in self.refused if size < min(self.took)), default=None)
        if below is None:
            return None
        step = sure_for(self.took | {self.own}, set(self.refused)).multiple_of
        sizes = [step << exponent for exponent in range(min(self.took).bit_length())]
        return max((size for size in sizes if below < size < min(self.took)), default=None)

    def ends_with_task(self, size: int) -> bool:
        """Whether the task, and not memory, is the reason why no larger size is taken."""
        return self.rule is not None and self.rule.most is not None and size == self.sizes.top

    def remarks(self) -> Iterable[str]:
        """A sentence for each probe whose outcome needed an interpretation."""
        for probe in self.probes:
            size = probe.plan.batch_size
            if probe.outcome == "nonfinite":
                yield f"the loss at batch size {size} was not finite; its memory was measured and counts all the same"
            elif probe.outcome == "crashed":
                yield f"the worker crashed at batch size {size} ({probe.message}); it is taken as too large"
            elif probe.outcome == "ok" and probe is self.final_probes.get(size) and probe.alloc_retries:
                yield (
                    f"batch size {size} fits, but thrashes: the allocator had to free memory and try again "
                    f"{probe.alloc_retries} times; it is taken as too large"
                )
        if self.rule is not None:
            why = first_line(self.refused[max(self.refused)])
            yield f"the task does not take every batch size ({why}): only {self.rule.describe()} were tried after that"
        yield from self._of_a_fall()
        others = [probe.others_bytes for probe in self.probes if probe.others_bytes is not None]
        noticed = _NOTICED * self.limit.budget_bytes
        if others and max(others) - min(others) <= noticed < max(others):
            yield f"other processes held {format_size(max(others))} of the device: the answer is for what was left"
        elif others and max(others) - min(others) > noticed:
            yield (
                f"other processes held between {format_size(min(others))} and {format_size(max(others))} of the device "
                "during the probes: the answer is for what was left"
            )

    def _of_a_fall(self) -> Iterable[str]:
        """A remark if a size needed much less memory than a smaller one, and so may not have run whole."""
        most, most_at = 0, 0
        for size, peak in sorted(self.peaks.items()):
            if not self.fitting.get(size):
                continue
            if 2 * most > self.limit.budget_bytes and peak < _FALL * most:
                yield (
                    f"the peak fell from {format_size(most)} at batch size {most_at} to {format_size(peak)} at {size}: "
                    "the step may catch an error, such as too little memory, and train on part of a batch"
                )
                return
            if peak > most:
                most, most_at = peak, size

    def _run(self, size: int, *, final: bool) -> None:
        try:
            probe = self._probe(size, final=final)
        except TaskError as error:
            self._refuse(size, error)
            return
        fit = fits(probe, self.limit, final=final)
        if final:
            self.final_probes[size] = probe
            if self.fitting.get(size, fit) != fit:
                self.final_only = True
                self.stage = self.num_slow_steps = self.num_steps_down = 0
                self.widths.clear()
                self.fitting = {s: fits(p, self.limit, final=True) for s, p in self.final_probes.items()}
        self.fitting[size] = fit
        if self.rule is not None and not self.rule.takes(size):  # the rule was doubted
            self._guess(self.refused[max(self.refused)])

    def _probe(self, size: int, *, final: bool) -> Measurement:
        probe = self.runner.probe(replace(self.plan, batch_size=size), final=final)
        self.probes.append(probe)
        if self.on_probe is not None:
            self.on_probe(probe)
        if probe.peak_bytes is not None and probe.outcome != "oom":
            self.peaks[size] = probe.peak_bytes
        if probe.outcome in ("ok", "over_limit", "nonfinite"):
            self.took.add(size)
        return probe

    def _refuse(self, size: int, error: TaskError) -> None:
        """Leave out `size`, and sizes like it.

        Raises:
            TaskError: the task is at fault, and not the size.
        """
        self.refused[size] = error
        self.fitting.pop(size, None)
        self.peaks.pop(size, None)
        if len(self.refused) > max(_MOST_REFUSED * self.wanted.ceiling.bit_length(), _MOST_REFUSED_LEAST):
            raise error
        # A user who trains at a size has a task that takes it. Without such a size, a power of two is the most likely
        # to be taken.
        for known in (self.own, 1 << (self.wanted.ceiling.bit_length() - 1)):
            high = self.high
            is_inside = known <= self.wanted.ceiling and (high is None or known < high)
            if is_inside and known not in self.took and known not in self.refused:
                try:
                    probe = self._probe(known, final=False)
                except TaskError as refusal:
                    self.refused[known] = refusal
                else:
                    if known == self.own:  # even if it needs more memory than this device has
                        self.took.add(known)
                    if self.wanted.has(known):
                        self.fitting[known] = fits(probe, self.limit, final=False)
            if self.took:
                break
        if not self.took:
            raise error
        self._guess(error)

    def _guess(self, error: TaskError) -> None:
        """Guess the rule that agrees with the sizes taken and refused so far.

        Raises:
            TaskError: there is no such rule, or no wanted size follows it.
        """
        self.rule = rule_for(self.took, set(self.refused))
        sizes = None if self.rule is None else self.wanted.narrowed(self.rule)
        if sizes is None:
            raise error
        self.sizes = sizes

    def _next(self, low: int, high: int | None) -> int:
        """A size strictly inside the bracket."""
        if high is None:
            size = self._grow(low) if low else self.sizes.floor(max(self.first, self.sizes.step, self.sizes.least))
            return max(self.sizes.floor(size), self.sizes.above(low))
        size = self._split(low, high) if low else self._step_down(high)
        return min(max(self.sizes.floor(size), self.sizes.above(low)), self.sizes.below(high))

    def _grow(self, low: int) -> float:
        """A larger size while none is known not to fit."""
        peak, budget = self.peaks.get(low), self.limit.budget_bytes
        if peak is None:
            return 2 * low
        if peak * self.sizes.top <= _AIMS[1] * budget * low:
            return self.sizes.top
        stage = sum(peak >= share * budget for share in _STAGES)
        if stage > self.stage:
            self.stage, self.num_slow_steps = stage, 0
        straight = self._is_straight(low)
        size = self._extrapolate(low, _AIMS[max(stage, 1) if straight else stage] * budget)
        if not straight:  # proportional growth is the safe guess: two points do not distinguish a line from a parabola
            proportional = low * _AIMS[stage if len(self.peaks) < 3 else -1] * budget / peak
            size = min(size, max(2 * low, proportional) if stage == 1 and len(self.peaks) > 2 else proportional)
        elif _AIMS[stage] == 1:
            size = self.sizes.above(self.sizes.floor(size))  # closes the bracket from above; a final probe then ends it
        size = min(size, _GROWTH_CAP * low)
        if self.num_slow_steps >= _SLOW_STEPS:
            size = max(size, low * (1 + _SLOW_GROWTH * 2 ** (self.num_slow_steps - _SLOW_STEPS)))
        self.num_slow_steps += size < 2 * low
        return size

    def _split(self, low: int, high: int) -> float:
        """A size between one that fits and one that does not."""
        self.widths.append(high - low)
        if len(self.widths) > 3 and 2 * self.widths[-1] > self.widths[-4]:
            return self.sizes.between(low, high)
        guess = self._interpolate(low, high)
        if not low <= guess < high:
            return self.sizes.between(low, high)
        size = self.sizes.floor(guess)
        return size if self.sizes.above(size) == high else self.sizes.above(size)

    def _interpolate(self, low: int, high: int) -> float:
        """Where the curve meets the budget between two sizes; infinite if no measurement shows it."""
        budget = self.limit.budget_bytes
        if low not in self.peaks:
            return math.inf
        if high not in self.peaks:
            # A size was refused where the curve expects less than the capacity, so the curve is misleading here.
            misled = self._extrapolate(low, self.limit.capacity_bytes) > high
            return math.inf if misled else self._extrapolate(low, budget)
        # The line through the two peaks nearest to the budget, on either side of it: the secant method.
        (here, peak), (other, other_peak) = sorted(self.peaks.items(), key=lambda point: abs(point[1] - budget))[:2]
        if peak != other_peak:
            guess = here + (budget - peak) * (other - here) / (other_peak - peak)
            if low < guess < high:
                return guess
        rise = self.peaks[high] - self.peaks[low]
        return low + (high - low) * (budget - self.peaks[low]) / rise if rise > 0 else math.inf

    def _step_down(self, high: int) -> float:
        """A smaller size while none is known to fit."""
        self.num_steps_down += 1
        below = max((size for size in self.peaks if size < high), default=None)
        secant = None if below is None else self._secant(below)
        excess = self.peaks.get(high, 0) - self.limit.budget_bytes
        if secant is not None and excess > 0 and self.num_steps_down == 1:
            return high - excess / secant[1]
        return high - (high - self.sizes.below(high)) * int(_SHRINK ** (self.num_steps_down - 1))

    def _secant(self, size: int) -> tuple[int, float] | None:
        """The nearest smaller size whose peak is lower by more than noise, and the bytes per sample from there on."""
        for other in sorted((s for s in self.peaks if s < size), reverse=True):
            rise = self.peaks[size] - self.peaks[other]
            if rise >= _NOISE * self.limit.budget_bytes:
                return other, rise / (size - other)
        return None

    def _extrapolate(self, size: int, target: float) -> float:
        """Where the curve that ends at `size` meets `target`: a parabola if the last secants bend up, else a line."""
        last = self._secant(size)
        if last is None:
            return math.inf
        other, slope = last
        before = self._secant(other)
        bend = 0.0 if before is None else max(0.0, (slope - before[1]) / (size - before[0]))
        steepness, rise = slope + bend * (size - other), target - self.peaks[size]
        return size + 2 * rise / (steepness + math.sqrt(steepness**2 + 4 * bend * max(0.0, rise)))

    def _is_straight(self, size: int) -> bool:
        """Whether the curve has left its flat part, and its last two secants agree."""
        rise = self.peaks[size] - min(self.peaks.values())
        last = self._secant(size)
        before = None if last is None else self._secant(last[0])
        if last is None or before is None or rise < _LEFT_FLAT * self.limit.budget_bytes:
            return False
        return abs(last[1] - before[1]) <= _SAME_SLOPE * last[1]
