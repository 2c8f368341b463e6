"""Which batch sizes a task takes: a rule that agrees with the sizes that it took and with those that it refused.

Mixup wants even batches, a loss over quadruples multiples of four, a contrastive one two samples or more. Nobody tells
us: such a task raises its own error at a size that nobody had asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A guess at the sizes that a task takes.

    Attributes:
        multiple_of: they are multiples of this;
        power_of_two: they are powers of two;
        least: none is smaller;
        most: none is larger; None where nothing says so.
    """

    multiple_of: int = 1
    power_of_two: bool = False
    least: int = 1
    most: int | None = None

    def takes(self, size: int) -> bool:
        """Whether `size` is one of them."""
        shaped = size % self.multiple_of == 0 and (not self.power_of_two or size.bit_count() == 1)
        return shaped and self.least <= size and (self.most is None or size <= self.most)

    def describe(self) -> str:
        """What they are, after "only"."""
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
    """The likeliest of the `rules_for` these sizes; None where there is none."""
    return next(rules_for(took, refused), None)


def rules_for(took: Set[int], refused: Set[int]) -> Iterator[Rule]:
    """The rules, of those that people have for batches, that take all of `took` and none of `refused`.

    In this order: multiples of what divides all that was taken, from small to large; powers of two; the same with a
    least size, with a most size, with both. A size that one rule takes and another does not refutes one of them.

    Args:
        took: sizes that ran; one at least.
        refused: sizes at which the task raised an error of its own.
    """
    return (rule for rule in _rules(took, refused) if _agrees(rule, took, refused))


def sure_for(took: Set[int], refused: Set[int]) -> Rule:
    """The sizes that all likely rules take: a trial at a size that is refused would be lost.

    Likely are those with a least or a most size only where none without agrees. Such a size lies anywhere between what
    was taken and what was refused.
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
