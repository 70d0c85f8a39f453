"""A gradient of some rows, given by their indices."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray
from ..kernels.norms import TERMS, rows_squares, total
from ..kernels.rows import CHUNK
from ..runtime.interrupts import Call
from ..runtime.launching import team_for
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots
from .gradient import BaseGradient, element_of

FORMED = 4096
"""So many entries of a product are written out at a time."""

Entries: TypeAlias = tuple[NDArray[np.int64], FloatArray, NDArray[np.int32] | None, FloatArray | None]


class Rows(BaseGradient):
    """Gradient rows, ``values`` (n, columns), at ``indices`` (n,), int64; rows of equal index are summed.

    With ``sources``, int32 of shape (n,), row ``i`` is ``values[sources[i]]``; with ``weights``, of the dtype of the
    arithmetic, times ``weights[i]``.
    """

    __slots__ = ("indices", "sources", "weights")

    def __init__(
        self,
        values: FloatArray,
        indices: NDArray[np.int64],
        sources: NDArray[np.int32] | None = None,
        weights: FloatArray | None = None,
    ) -> None:
        self.values = values
        self.indices = indices
        self.sources = sources
        self.weights = weights

    @property
    def entries(self) -> Entries:
        """The gradient as kernels take it, in the dtype of the arithmetic, which sums of rows have, too."""
        return self.indices, self.values.astype(computed_in(self.values.dtype), copy=False), self.sources, self.weights

    def add_step(self, calls: list[Call], own: Slots, numbers: StepNumbers, packed: FloatArray) -> bool:
        """Add the calls of a step to a list; return whether they may compile."""
        places, state, ages, give_back = own.borrow(self.indices, rests=numbers.rests)
        entries = self.entries
        common = (
            (places, *entries[1:]),
            state,
            ages,
            own.missed_steps,
            packed,
            own.scratch.links(len(self.indices)),
        )
        team = team_for(len(self.indices) * self.values.shape[1])
        launch = own.kernels.step_rows, team, *common, own.scratch.shares(team[0])
        kind = Rows, numbers.rests, *(None if a is None else a.flags.num for a in entries)
        return own.add_sparse(calls, launch, give_back, numbers, kind)

    def squared_norm(self, own: Slots, clipvalue: np.floating) -> float:
        """Return the sum of squares, duplicates summed and values clipped, in float64."""
        team = team_for(len(self.indices) * self.values.shape[1])
        partial = np.zeros((-(-len(self.indices) // CHUNK), TERMS))
        links, shares = own.scratch.links(len(self.indices)), own.scratch.shares(team[0])
        rows_squares(team, self.entries, own.row_clocks(), clipvalue, links, shares, partial)
        return total(0, len(partial), partial)

    def rows_of(self) -> NDArray[np.int64]:
        """Return the rows that it touches, which may repeat."""
        return self.indices

    def check_finite(self, var: FloatArray, name: str) -> None:
        """Raise FloatingPointError, with the first place, if an entry is NaN or infinite."""
        if self.sources is None:
            super().check_finite(var, name)
            return
        if self.weights is None and np.isfinite(self.values).all():
            return
        for begin in range(0, len(self.indices), FORMED):
            part = slice(begin, begin + FORMED)
            values = self.values[self.sources[part]]
            if self.weights is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    values = values * self.weights[part, np.newaxis]
            self.refuse_infinite(values, begin, var, name)

    def place(self, first: tuple[int, ...], var: FloatArray) -> str:
        """Return where in the variable ``values[first]`` belongs, as messages say it."""
        return f"{element_of(self.indices[first[0]], first[1], var)} (indices[{first[0]}])"
