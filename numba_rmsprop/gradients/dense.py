"""A gradient of the variable's shape."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..arrays.storage import as_stored
from ..arrays.variables import FloatArray, as_lines, as_table
from ..kernels.norms import BLOCK, TERMS, dense_squares, flat_squares, strided_squares, total
from ..runtime import launching
from ..runtime.interrupts import Call
from ..runtime.launching import team_for
from ..settings.step_numbers import StepNumbers
from ..state.slot_arrays import State
from ..state.slots import Slots
from .gradient import BaseGradient


class Dense(BaseGradient):
    """A gradient of the variable's shape."""

    __slots__ = ()
    touches_all: ClassVar[bool] = True

    def add_step(self, calls: list[Call], own: Slots, numbers: StepNumbers, packed: FloatArray) -> bool:
        """Add the calls of a step to a list; return whether they may compile."""
        values = as_stored(self.values)
        if own.goes_by_row:
            state, give_back = own.borrow_all(numbers.rests)
            grad = as_table(values)
            if grad is None:
                grad = as_table(np.ascontiguousarray(values))
            self._add_launch(calls, own, grad, state, packed)
            calls += give_back
        else:
            for grad, *lines in as_lines(values, *own.at_work(own.state, numbers.rests)):
                self._add_launch(calls, own, grad, own.as_rounded(tuple(lines), 2 * own.steps), packed)
        own.add_dense_notes(calls)
        kind = Dense, numbers.rests, values.flags.num, values.dtype.char
        return own.may_compile(calls, kind)

    def _add_launch(
        self, calls: list[Call], own: Slots, grad: FloatArray | None, state: State, packed: FloatArray
    ) -> None:
        assert grad is not None
        if grad.size:
            team = team_for(grad.size, fine=True)
            calls.append((own.kernels.step_dense, team, grad, state, packed, own.scratch.entered(team[0])))

    def squared_norm(self, own: Slots, clipvalue: np.floating) -> float:
        """Return the sum of squares, values clipped, in float64."""
        values = as_stored(self.values)
        partial = np.zeros((-(-values.size // BLOCK), TERMS))
        if values.size < launching.SERIAL_ITEMS:
            return flat_squares(np.ascontiguousarray(values).reshape(1, -1), clipvalue, partial)
        table = None if values.flags.c_contiguous else as_table(values)
        if table is None:  # contiguous, or of three axes or more: then a copy
            dense_squares(team_for(values.size, fine=True), values.reshape(1, -1), clipvalue, partial)
        else:
            strided_squares(team_for(values.size, fine=True), table, clipvalue, partial)
        return total(0, len(partial), partial)

    def place(self, first: tuple[int, ...], var: FloatArray) -> str:
        """Return where in the variable ``values[first]`` belongs, as messages say it."""
        return str(list(first))
