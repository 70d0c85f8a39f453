"""Dense steps of many small variables in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.norms import BLOCK, TERMS, many_finite, many_squares
from ..runtime.interrupts import Call
from ..runtime.launching import new_counters, team_for
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots


class Batch:
    """Small contiguous variables of one dtype, which take dense steps together.

    ``addresses`` says where everything lies: see :func:`numba_rmsprop.kernels.dense.step_many`. Its first column
    is for the gradients, in a copy for each call: a call that comes in between has others.

    Parameters
    ----------
    members : sequence of Slots
        The variables. The batch keeps their addresses, and them alive.
    """

    def __init__(self, members: Sequence[Slots]) -> None:
        self.members = list(members)
        first = members[0]
        self._kernels = first.kernels
        self._dtype = first.dtype
        self._sizes = np.array([own.var.size for own in members])
        self._items = int(self._sizes.sum())
        self._copied = np.empty(0, self._dtype)
        self._counters = new_counters(1)
        self._latest: tuple[StepNumbers | None, tuple[Any, ...]] = (None, ())  # arguments of a launch, not clipped
        self._partial = np.empty((-(-int(self._sizes.max()) // BLOCK), TERMS))
        self._compiled: set[str | None] = set()
        self.addresses = np.zeros((len(members), 1 + len(first.state)), np.int64)
        for k, own in enumerate(members):
            self.addresses[k, 1:] = [0 if array is None else array.ctypes.data for array in own.state]

    def fill(self, gradients: Sequence[FloatArray]) -> NDArray[np.int64]:
        """Copy gradients into one array, also such as lie in the memory of a variable; return all addresses."""
        if not self._copied.size:
            self._copied = np.empty(self._items, self._dtype)
        addresses, starts = self.addresses.copy(), np.cumsum(self._sizes) - self._sizes
        addresses[:, 0] = self._copied.ctypes.data + starts * self._dtype.itemsize
        np.concatenate(gradients, axis=None, out=self._copied)
        return addresses

    def is_finite(self, addresses: NDArray[np.int64]) -> bool:
        """Return whether all elements of the gradients at some addresses are finite."""
        return bool(many_finite(addresses, self._sizes, self._copied))

    def squares(self, addresses: Any, numbers: StepNumbers) -> list[float]:
        """Return the squared norm of each of the gradients at some addresses, values clipped."""
        out = np.empty(len(self.members))
        many_squares(addresses, self._sizes, numbers.packed(self._dtype)[0], self._partial, out)
        found: list[float] = out.tolist()
        return found

    def add_step(self, calls: list[Call], addresses: Any, numbers: StepNumbers, scale: Any) -> bool:
        """Add the calls of a step with the gradients at some addresses; return whether they may compile.

        ``scale`` is what the clipping of norms leaves of all gradients, or of each.
        """
        latest, arguments = self._latest
        if numbers is not latest or scale != 1.0:
            arguments = self._arguments_of(numbers, scale)
            if scale == 1.0:
                self._latest = numbers, arguments
        team = team_for(self._items)
        if len(self._counters) != team[0]:
            self._counters = new_counters(team[0])
        calls.append((self._kernels.step_many, team, addresses, *arguments, self._counters))
        kind = numbers.rests
        compiles = kind not in self._compiled
        # In any case, since it keeps the batch, and so the memory at its addresses, until the step is taken.
        calls.append((setattr, self, "_compiled", self._compiled | {kind} if compiles else self._compiled))
        return compiles

    def _arguments_of(self, numbers: StepNumbers, scale: Any) -> tuple[Any, ...]:
        """Return what a launch takes beside addresses: sizes, kinds, scales and the numbers of the step."""
        first, zero = self.members[0], self._dtype.type(0)
        kinds = tuple(None if array is None else zero for array in first.at_work(first.state, numbers.rests))
        if isinstance(scale, list):
            scales = numbers.scales(self._dtype, scale)
        else:
            scales = np.full(len(self.members), numbers.packed(self._dtype, scale)[1])
        return self._sizes, kinds, scales, numbers.packed(self._dtype)
