"""Many small variables in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ..arrays.variables import FloatArray
from ..gradients.kinds import Dense, Gradient
from ..kernels.dense import step_many, step_many_serial
from ..runtime.interrupts import Call
from ..runtime.launching import new_counters, workers_for
from ..settings.step_numbers import StepRates
from ..state.slots import Slots


class Batch:
    """Small contiguous variables of one dtype, which take dense steps together.

    ``addresses`` says where everything lies: see :func:`numba_rmsprop.kernels.dense.step_many_serial`. Where nothing
    else has entered the gradients, :meth:`fill` copies them into one array; then a gradient may even lie in the memory
    of a variable.

    Parameters
    ----------
    members : sequence of Slots
        The variables. The batch keeps their addresses, and them alive.
    """

    def __init__(self, members: Sequence[Slots]) -> None:
        self.members = list(members)
        first = members[0]
        self._dtype = first.dtype
        self._sizes = np.array([own.var.size for own in members])
        self._items = int(self._sizes.sum())
        self._centered = first.mg is not None
        self._has_momentum = first.momentum is not None
        self._counters = new_counters(0)
        self._compiled: set[tuple[bool, bool]] = set()
        self.gradient = Dense(np.empty(0, self._dtype))
        self.addresses = np.zeros((len(members), 5), np.int64)
        for k, own in enumerate(members):
            arrays = own.var, own.rms, own.mg, own.momentum
            self.addresses[k, 1:] = [0 if array is None else array.ctypes.data for array in arrays]

    def fill(self, gradients: Sequence[FloatArray]) -> Part:
        """Copy the gradients in, one for each member, of its shape and dtype; return them with the batch."""
        if not self.gradient.values.size:
            self.gradient = Dense(np.empty(self._items, self._dtype))
        values = self.gradient.values
        self.addresses[:, 0] = values.ctypes.data + (np.cumsum(self._sizes) - self._sizes) * self._dtype.itemsize
        np.concatenate(gradients, axis=None, out=values)
        return self.gradient, self

    def add_step(self, calls: list[Call], gradient: Gradient, rates: StepRates, scale: float) -> bool:
        """Add what a step comes to with the gradients that ``addresses`` names; return whether it may compile."""
        packed = rates.packed(self._dtype, scale)
        mg = packed if self._centered else None
        momentum = packed if self._has_momentum and not rates.momentum_rests else None
        workers = workers_for(self._items)
        if workers == 1:
            calls.append((step_many_serial, self.addresses, self._sizes, mg, momentum, packed))
        else:
            if len(self._counters) != workers:
                self._counters = new_counters(workers)
            calls.append((step_many, workers, self.addresses, self._sizes, mg, momentum, packed, self._counters))
        kind = workers > 1, rates.momentum_rests
        compiles = kind not in self._compiled
        # In any case, since it keeps the batch, and so the memory at its addresses, until the step is taken.
        calls.append((setattr, self, "_compiled", self._compiled | {kind} if compiles else self._compiled))
        return compiles


Part: TypeAlias = tuple[Gradient, Slots | Batch]
"""A gradient and what takes a step with it."""
