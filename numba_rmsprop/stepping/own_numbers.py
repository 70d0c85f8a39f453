"""Numbers of a step that differ between variables: with bias correction, they go by how many steps one has taken."""

from __future__ import annotations

from collections.abc import Sequence
from operator import setitem

from ..runtime.interrupts import Call
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots


def own_numbers(calls: list[Call], members: Sequence[Slots], numbers: StepNumbers) -> StepNumbers:
    """Return the numbers of variables that step together, and add what notes the step.

    They have taken steps with the same product of rho.

    Raises
    ------
    ValueError
        If rho is 1, and was so at all their steps.
    """
    if numbers.corrected is None:
        return numbers
    product = members[0].rho_product * numbers.of_rule.rho
    if product == 1:
        raise ValueError("rho: expected less than 1 with bias_correction=True, got 1, which averages nothing")
    calls += [(setitem, own.product, (), product) for own in members]
    of_rule = numbers.corrected(numbers.of_rule, product)
    return numbers if of_rule == numbers.of_rule else numbers.with_rule_numbers(of_rule)
