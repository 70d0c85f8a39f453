"""Means over a window of steps: what the rule that ends a fit looks at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..gradients.kinds import Dense, Rows


class Means:
    """The mean of an objective and of its gradient over the points that were added since :meth:`clear`.

    A sparse gradient is added, and forgotten, at the cost of its entries.

    Examples
    --------
    >>> means = Means(2)
    >>> means.add(3.0, Dense(np.array([4.0, -2.0])))
    >>> means.add(1.0, Rows(np.array([[2.0]]), np.array([1])))
    >>> means.value, means.norm(np.zeros(2), None)
    (2.0, 2.0)
    """

    def __init__(self, n: int) -> None:
        self.points = 0
        self._value = 0.0
        self._gradient = np.zeros(n)
        self._touched: list[NDArray[np.int64]] | None = []

    @property
    def value(self) -> float:
        """The mean of the objective."""
        return self._value / self.points

    def add(self, value: float, gradient: Dense | Rows) -> None:
        """Add a point."""
        self.points += 1
        self._value += value
        if isinstance(gradient, Rows):
            np.add.at(self._gradient, gradient.indices, gradient.values[:, 0])
            if self._touched is not None:
                self._touched.append(gradient.indices)
        else:
            self._gradient += gradient.values
            self._touched = None

    def norm(self, x: FloatArray, limits: tuple[FloatArray, FloatArray] | None) -> float:
        """Return the largest element of the mean gradient, projected: no further than ``x`` is from its bounds."""
        touched = self._where()
        mean = self._gradient[touched] / self.points
        if limits is not None:
            here, lower, upper = x[touched], limits[0][touched], limits[1][touched]
            mean = np.where(mean < 0, np.maximum(here - upper, mean), np.minimum(here - lower, mean))
        return float(np.max(np.abs(mean), initial=0.0))

    def clear(self) -> None:
        """Begin a new window."""
        self._gradient[self._where()] = 0.0
        self.points = 0
        self._value = 0.0
        self._touched = []

    def _where(self) -> slice | NDArray[np.int64]:
        """Return where the gradient may be other than 0."""
        if self._touched is None or sum(map(len, self._touched)) >= self._gradient.size:
            return slice(None)
        return np.concatenate(self._touched) if self._touched else np.empty(0, np.int64)
