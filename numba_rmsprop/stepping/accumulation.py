"""Gradients that are added up over several calls, for one step with their mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays.variables import FloatArray, describe
from ..gradients.conversion import as_gradient
from ..gradients.pairs import check_pairs, refuse_duplicates, warn_of_none
from ..gradients.sums import Sum
from ..runtime.interrupts import Call
from ..runtime.whole_calls import carry_out, in_turn
from ..state.known_variables import Accumulation
from ..state.slots import Slots
from .step import OvertakenError, Stepping

Pairs: TypeAlias = list[tuple[Any, FloatArray]]


class Round(NamedTuple):
    """What a call has added to the sums, or found there for a step.

    Attributes
    ----------
    before : Accumulation
        The sums before the call.
    after : Accumulation or None
        Those after it; None if a step is due, which leaves none.
    means : list of (gradient, variable)
        For the step that is due: the means of all variables of these calls, None where there was no gradient.
    """

    before: Accumulation
    after: Accumulation | None
    means: Pairs


class Accumulating(Stepping):
    """The steps of an optimizer of which each takes the mean of the gradients of some calls."""

    @property
    def accumulated_calls(self) -> int:
        """How many calls of :meth:`apply_gradients` wait for a step, with ``gradient_accumulation_steps``."""
        return self.known.accumulation.calls

    def accumulate(self, pairs: list[Any], count: int, take: Callable[[Pairs, Accumulation], int]) -> int:
        """Add the gradients of a call to the sums, or take a step with their means; return the number of steps taken.

        Parameters
        ----------
        pairs : list of (gradient, variable)
            The gradients of this call.
        count : int
            After how many calls a step is taken.
        take : callable
            ``take(means, before)`` takes that step; it raises OvertakenError if ``before`` are no longer the sums.
        """
        checked = self.pairs_to_accumulate(pairs)
        warn_of_none(checked)
        while True:
            added = self.add_to_sums(checked, count)
            if added.after is not None:
                return self.known.iterations
            try:
                return take(added.means, added.before)
            except OvertakenError:  # another thread has made a call in between, or has moved a variable
                continue

    def pairs_to_accumulate(self, pairs: list[Any]) -> Pairs:
        """Return the pairs of a call, whose gradients run no code of other libraries any more."""
        return self._known_pairs(check_pairs(pairs))

    def add_to_sums(self, pairs: Pairs, count: int) -> Round:
        """Add gradients to the sums of their variables, unless a step is due."""
        found: list[Round] = []
        in_turn(self.known.let_go_before, [var for _, var in pairs])
        in_turn(carry_out, self._look_at_sums, pairs, count, found)
        return found[-1]

    def take_back(self, added: Round) -> None:
        """Undo what a call has added to the sums, if nothing came after it."""
        in_turn(carry_out, self._look_back, added)

    def _look_back(self, calls: list[Call], added: Round) -> bool:
        if self.known.accumulation is added.after:
            calls.append((setattr, self.known, "accumulation", added.before))
        return False

    def _look_at_sums(self, calls: list[Call], pairs: Pairs, count: int, found: list[Round]) -> bool:
        """Check the gradients of a call, list what adds them to the sums, and note the round."""
        known, before = self.known, self.known.accumulation
        seen, with_gradient = self._seen_in(pairs)
        refuse_duplicates(with_gradient)
        occupied = known.occupied_with(with_gradient)
        sums = before.sums | {own: Sum() for own in seen if own not in before.sums}
        for grad, own in zip([grad for grad, _ in pairs if grad is not None], with_gradient, strict=True):
            gradient = as_gradient(grad, own.var, own.name, occupied)
            if self.check_finite:
                gradient.check_finite(own.var, own.name)
            sums[own], new = sums[own].plus(gradient, own, count)
            if self.check_finite and not np.isfinite(new).all():
                raise FloatingPointError(
                    f"gradient of {describe(own.name, own.var)}: expected finite numbers (check_finite=True), got rows "
                    "or entries that come twice, and whose sum is not finite"
                )
        calls.append((known.register, seen))
        if before.calls + 1 < count:
            after = Accumulation(before.calls + 1, sums)
            found.append(Round(before, after, []))
            calls.append((setattr, known, "accumulation", after))
            return True
        self._refuse_strangers(sums)
        found.append(Round(before, None, [(total.as_gradient(own), own.var) for own, total in sums.items()]))
        return True

    def _refuse_strangers(self, sums: dict[Slots, Any]) -> None:
        """Raise ValueError if a variable that was restored has gradients, and nobody holds its array."""
        lost = [own for own in self.known.registry.held_by_nobody(sums) if not sums[own].is_empty]
        if lost:
            raise ValueError(
                f"gradients of {describe(lost[0].name, lost[0].var)} wait for a step, but nobody holds the array since "
                f"the optimizer was unpickled, copied or loaded; call opt.rebind({lost[0].name!r}, array) for the one "
                f"to go on with, or opt.forget({lost[0].name!r})"
            )
