"""Gradients that are added up over several calls, for one step with their mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ..arrays.variables import FloatArray
from ..gradients.conversion import as_gradient
from ..gradients.pairs import check_pairs, refuse_duplicates, warn_of_none
from ..gradients.sums import Sum
from ..runtime.interrupts import Call
from ..runtime.whole_calls import carry_out, in_turn
from ..state.known_variables import Accumulation
from .step import OvertakenError, Stepping

Pairs: TypeAlias = list[tuple[Any, FloatArray]]


class Accumulating(Stepping):
    """The steps of an optimizer of which each takes the mean of the gradients of some calls."""

    @property
    def accumulated_calls(self) -> int:
        """How many calls of :meth:`apply_gradients` wait for a step, with ``gradient_accumulation_steps``."""
        return self.known.accumulation.calls

    def accumulate(
        self, pairs: list[Any], count: int, take: Callable[[Pairs, Accumulation], int], *, alone: bool
    ) -> int:
        """Add gradients to those of the calls before; return the number of steps taken.

        Parameters
        ----------
        pairs : list of (gradient, variable)
            The gradients of this call.
        count : int
            After how many calls a step is taken.
        take : callable
            ``take(means, sums)`` takes that step, unless the sums are not those that it goes on from any more. A
            variable that had no gradient in any call comes with None.
        alone : bool
            Whether gradients of no other ranks are added, so that None for all is a mistake.
        """
        closer = self._known_pairs(check_pairs(pairs))
        if alone:
            warn_of_none(closer)
        while True:
            due = in_turn(self._accumulate, closer, count)
            if due is None:
                return self.known.iterations
            try:
                return take(*due)
            except OvertakenError:  # another thread has made a call in between
                continue

    def _accumulate(self, closer: Pairs, count: int) -> tuple[Pairs, Accumulation] | None:
        """Note the sums, or return the means if a step is due. The caller holds the lock."""
        self.known.let_go_before([var for _, var in closer])
        due: list[tuple[Pairs, Accumulation]] = []
        carry_out(self._look_at_sums, closer, count, due)
        return due[0] if due else None

    def _look_at_sums(
        self, calls: list[Call], closer: Pairs, count: int, due: list[tuple[Pairs, Accumulation]]
    ) -> bool | None:
        known, before = self.known, self.known.accumulation
        seen, found = self._seen_in(closer)
        refuse_duplicates(found)
        occupied = known.occupied_with(found)
        sums = {own: total for own, total in before.sums.items() if own in known.registry}
        sums |= {own: Sum() for own in seen if own not in sums}  # in the order of first sight, which all ranks share
        for grad, own in zip([grad for grad, _ in closer if grad is not None], found, strict=True):
            gradient = as_gradient(grad, own.var, own.name, occupied)
            if self.check_finite:
                gradient.check_finite(own.var, own.name)
            sums[own] = sums[own].plus(gradient, own)
        due.clear()
        if before.calls + 1 >= count:
            due.append(([(total.divided(count, own), own.var) for own, total in sums.items()], before))
            return None
        calls.append((known.register, seen))
        calls.append((setattr, known, "accumulation", Accumulation(before.calls + 1, sums)))
        return True
