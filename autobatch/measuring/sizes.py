"""The batch sizes that may be the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .taken import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The batch sizes that an answer may have: multiples of `step`, or powers of two, from `least` to `ceiling`."""

    step: int
    power_of_two: bool
    ceiling: int
    least: int = 1

    def narrowed(self, rule: Rule) -> Sizes | None:
        """The sizes that a task takes by `rule`; None if there are none."""
        step = math.lcm(self.step, rule.multiple_of)
        is_power = self.power_of_two or rule.power_of_two
        if is_power and step.bit_count() > 1:
            return None
        sizes = Sizes(
            step=1 if is_power else step,
            power_of_two=is_power,
            ceiling=self.ceiling if rule.most is None else min(self.ceiling, rule.most),
            least=max(self.least, rule.least, step if is_power else 1),
        )
        return sizes if sizes.top else None

    @property
    def top(self) -> int:
        return self.floor(self.ceiling)

    def has(self, size: int) -> bool:
        """Whether `size` is one of them."""
        return 0 < size == self.floor(size)

    @property
    def count(self) -> int:
        return self.top.bit_length() if self.power_of_two else self.top // self.step

    def floor(self, batch: float) -> int:
        """The largest size that is at most `batch`; 0 if all are above."""
        whole = int(min(batch, self.ceiling))
        if whole < max(self.step, self.least):
            return 0
        size = 1 << (whole.bit_length() - 1) if self.power_of_two else whole // self.step * self.step
        return size if size >= self.least else 0

    def above(self, size: int) -> int:
        """The next size up, also beyond the ceiling; the smallest size for 0."""
        least = max(size + 1, self.least)
        return 1 << (least - 1).bit_length() if self.power_of_two else -(-least // self.step) * self.step

    def below(self, size: int) -> int:
        """The next size down; 0 for the smallest size."""
        return self.floor(size - 1)

    def between(self, low: int, high: int) -> int:
        """The middle of two sizes, or of their logarithms while they are far apart."""
        middle = math.sqrt(low * high) if high > 4 * low or self.power_of_two else (low + high) / 2
        return self.floor(middle)
