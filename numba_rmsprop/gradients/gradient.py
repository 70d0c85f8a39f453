"""The base of all kinds of gradients."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray, describe
from ..runtime.interrupts import Call
from ..settings.step_numbers import StepNumbers
from ..state.slots import Slots


class BaseGradient:
    """A gradient that was checked, and how a step goes with it.

    Attributes
    ----------
    values : ndarray
        Its numbers, of the variable's dtype or the one that steps are computed in.
    touches_all : bool
        Whether it has something for every row, so that none may be behind.
    """

    __slots__ = ("values",)
    touches_all: ClassVar[bool] = False

    def __init__(self, values: FloatArray) -> None:
        self.values = values

    def add_step(self, calls: list[Call], own: Slots, numbers: StepNumbers, packed: FloatArray) -> bool:
        """Add the calls of a step to a list; return whether they may compile."""
        raise NotImplementedError

    def squared_norm(self, own: Slots, clipvalue: np.floating) -> float:
        """Return the sum of squares, duplicates summed and values clipped, in float64."""
        raise NotImplementedError

    def rows_of(self) -> NDArray[np.int64]:
        """Return the rows that it touches, which may repeat."""
        raise NotImplementedError

    def place(self, first: tuple[int, ...], var: FloatArray) -> str:
        """Return where in the variable ``values[first]`` belongs, as messages say it."""
        raise NotImplementedError

    @property
    def stored(self) -> FloatArray:
        """The values that belong to the gradient."""
        return self.values

    def check_finite(self, var: FloatArray, name: str) -> None:
        """Raise FloatingPointError, with the first place, if it holds NaN or infinity."""
        self.refuse_infinite(self.stored, 0, var, name)

    def refuse_infinite(self, values: FloatArray, begin: int, var: FloatArray, name: str) -> None:
        """Raise FloatingPointError if one of ``values``, which begin at place ``begin``, is not finite."""
        finite = np.isfinite(values)
        if not finite.all():
            first = tuple(int(i) for i in np.unravel_index(np.argmin(finite), finite.shape))
            place = self.place((begin + first[0], *first[1:]), var) if first else self.place(first, var)
            raise FloatingPointError(
                f"gradient of {describe(name, var)}: expected finite numbers (check_finite=True), "
                f"got {values[first]} at {place}"
            )


def element_of(row: Any, column: int, var: FloatArray) -> list[int]:
    """Return the index of an element, given by its row and its place within the row."""
    within_row = np.unravel_index(column, var.shape[1:]) if var.ndim > 1 else ()
    return [int(i) for i in (row, *within_row)]
