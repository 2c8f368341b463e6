"""Which batch sizes a task takes: a rule that agrees with the sizes that it took and those that it refused.

Mixup needs even batches, a loss over quadruples multiples of four, a contrastive one at least two samples. The task
does not declare it, but raises its own error at a size that the user did not choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A guess at the sizes that a task takes.

    Attributes:
        multiple_of: all sizes are multiples of this.
        power_of_two: whether all sizes are powers of two.
        least: the smallest size.
        most: the largest size; None if there is none.
    """

    multiple_of: int = 1
    power_of_two: bool = False
    least: int = 1
    most: int | None = None

    def takes(self, size: int) -> bool:
        """Whether the task takes `size` by this rule."""
        shaped = size % self.multiple_of == 0 and (not self.power_of_two or size.bit_count() == 1)
        return shaped and self.least <= size and (self.most is None or size <= self.most)

    def describe(self) -> str:
        """The sizes in words, to follow "only"."""
        parts = []
        if self.power_of_two:
            parts.append("powers of two")
        elif self.multiple_of > 1:
            parts.append(f"multiples of {self.multiple_of}")
        if self.least > 1:
            parts.append(f"sizes from {self.least} on")
        if self.most is not None:
            parts.append(f"sizes up to {self.most}")
        return " and ".join(parts)


EVERY_SIZE = Rule()


def rule_for(took: Set[int], refused: Set[int]) -> Rule | None:
    """The most likely of the `rules_for` these sizes; None if there is none."""
    return next(rules_for(took, refused), None)


def rules_for(took: Set[int], refused: Set[int]) -> Iterator[Rule]:
    """The rules, of those that are common for batches, that take all of `took` and none of `refused`.

    In this order: multiples of a common divisor of `took`, from small to large; powers of two; the same with a least
    size, with a most size, and with both. A size that one rule takes and another does not refutes one of them.

    Args:
        took: sizes that ran, at least one.
        refused: sizes at which the task raised its own error.
    """
    return (rule for rule in _rules(took, refused) if _agrees(rule, took, refused))


def sure_for(took: Set[int], refused: Set[int]) -> Rule:
    """The sizes that all likely rules take: a trial at a refused size would be lost.

    Rules with a least or a most size are likely only if no rule without one agrees. Such a bound may lie anywhere
    between the sizes taken and refused.
    """
    first = rule_for(took, refused)
    if first is None:
        return EVERY_SIZE
    has_least, has_most = first.least > 1, first.most is not None
    rules = [r for r in rules_for(took, refused) if (r.least > 1, r.most is not None) == (has_least, has_most)]
    return Rule(
        multiple_of=math.lcm(*(rule.multiple_of for rule in rules)),
        power_of_two=any(rule.power_of_two for rule in rules),
        least=min(took) if has_least else 1,
        most=max(took) if has_most else None,
    )


def _agrees(rule: Rule, took: Set[int], refused: Set[int]) -> bool:
    return all(map(rule.takes, took)) and not any(map(rule.takes, refused))


def _rules(took: Set[int], refused: Set[int]) -> Iterator[Rule]:
    shared = math.gcd(*took)
    multiples = [number for number in range(1, shared + 1) if shared % number == 0]
    shapes = [Rule(multiple_of=number) for number in multiples] + [Rule(power_of_two=True)]
    for has_least, has_most in ((False, False), (True, False), (False, True), (True, True)):
        for shape in shapes:
            met = [size for size in refused if shape.takes(size)]
            below = [size for size in met if size < min(took)]
            above = [size for size in met if size > max(took)]
            yield Rule(
                multiple_of=shape.multiple_of,
                power_of_two=shape.power_of_two,
                least=max(below) + 1 if has_least and below else 1,
                most=min(above) - 1 if has_most and above else None,
            )
