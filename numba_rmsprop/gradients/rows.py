"""A gradient of some rows, given by their indices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.norms import TERMS, rows_squares, total
from ..kernels.rows import CHUNK
from ..runtime.interrupts import Call
from ..runtime.launching import team_for
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots
from .gradient import BaseGradient, element_of


class Rows(BaseGradient):
    """Gradient rows, ``values`` (n, columns), at ``indices`` (n,), int64; rows of equal index are summed."""

    __slots__ = ("indices",)

    def __init__(self, values: FloatArray, indices: NDArray[np.int64]) -> None:
        self.values = values
        self.indices = indices

    def add_step(self, calls: list[Call], own: Slots, numbers: StepNumbers, packed: FloatArray) -> bool:
        """Add the calls of a step to a list; return whether they may compile."""
        places, state, ages, give_back = own.borrow(self.indices)
        common = (
            (places, self.values),
            state if numbers.rests is None else own.at_work(state, numbers.rests),
            ages,
            own.missed_steps,
            packed,
            own.scratch.links(len(self.values)),
        )
        team = team_for(self.values.size)
        launch = own.kernels.step_rows, team, *common, own.scratch.shares(team[0])
        kind = Rows, numbers.rests, self.values.flags.num, self.indices.flags.num
        return own.add_sparse(calls, launch, give_back, numbers, kind)

    def squared_norm(self, own: Slots, clipvalue: np.floating) -> float:
        """Return the sum of squares, duplicates summed and values clipped, in float64."""
        team = team_for(self.values.size)
        partial = np.zeros((-(-len(self.indices) // CHUNK), TERMS))
        entries, scratch = (self.indices, self.values), own.scratch
        common = entries, own.row_clocks(), clipvalue, scratch.links(len(self.values)), scratch.shares(team[0]), partial
        rows_squares(team, *common)
        return total(0, len(partial), partial)

    def rows_of(self) -> NDArray[np.int64]:
        """Return the rows that it touches, which may repeat."""
        return self.indices

    def place(self, first: tuple[int, ...], var: FloatArray) -> str:
        """Return where in the variable ``values[first]`` belongs, as messages say it."""
        return f"{element_of(self.indices[first[0]], first[1], var)} (indices[{first[0]}])"
