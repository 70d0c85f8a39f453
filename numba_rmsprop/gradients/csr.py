"""A gradient as the arrays of a CSR matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.csr import BLOCK_ROWS
from ..kernels.norms import csr_squares
from ..runtime.interrupts import Call
from ..runtime.launching import team_for
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots
from .gradient import BaseGradient, element_of


class CSR(BaseGradient):
    """A gradient of shape (rows, columns) as the arrays of a CSR matrix, in any order and with duplicates."""

    __slots__ = ("indices", "indptr")

    def __init__(self, values: FloatArray, indices: NDArray[np.integer], indptr: NDArray[np.integer]) -> None:
        self.values = values
        self.indices = indices
        self.indptr = indptr

    def add_step(self, calls: list[Call], own: Slots, numbers: StepNumbers, packed: FloatArray) -> bool:
        """Add the calls of a step to a list; return whether they may compile."""
        _, state, ages, give_back = own.borrow(None, rests=numbers.rests)
        team = team_for(self.values.size, fine=True)
        common = (
            (self.indptr, self.indices, self.values),
            state,
            ages,
            own.missed_steps,
            packed,
            own.scratch.sums(team[0]),
            own.scratch.entered(team[0]),
        )
        launch = own.kernels.step_csr, team, *common
        flags = (array.flags.num for array in (self.values, self.indices, self.indptr))
        kind = CSR, numbers.rests, self.indices.dtype, *flags
        return own.add_sparse(calls, launch, give_back, numbers, kind)

    def squared_norm(self, own: Slots, clipvalue: np.floating) -> float:
        """Return the sum of squares, duplicates summed and values clipped, in float64."""
        team = team_for(self.values.size, fine=True)
        partial = np.empty(-(-(self.indptr.size - 1) // BLOCK_ROWS))
        common = (self.indptr, self.indices, self.values), clipvalue, own.scratch.sums(team[0]), partial
        csr_squares(team, *common)
        return float(np.sum(partial))

    def rows_of(self) -> NDArray[np.int64]:
        """Return the rows that have a stored entry, each once."""
        return np.flatnonzero(np.diff(self.indptr))

    @property
    def stored(self) -> FloatArray:
        """The values that belong to the gradient: what lies behind belongs to no row."""
        return self.values[: self.indptr[-1]]

    def place(self, first: tuple[int, ...], var: FloatArray) -> str:
        """Return where in the variable ``values[first]`` belongs, as messages say it."""
        k = first[0]
        row = np.searchsorted(self.indptr, k, side="right") - 1
        return f"{element_of(row, int(self.indices[k]), var)} (stored entry {k})"
