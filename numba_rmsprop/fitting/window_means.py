"""The means of an objective and its gradient over a window of steps, for the rule that ends a fit."""

from __future__ import annotations

import numpy as np

from ..arrays.variables import FloatArray
from ..gradients.dense import Dense
from ..gradients.rows import Rows
from .touched_places import TouchedPlaces


class WindowMeans:
    """The mean of an objective and of its gradient over the points that were added since :meth:`clear`.

    A sparse gradient is added, and cleared, in time proportional to its entries.

    Examples
    --------
    >>> means = WindowMeans(2)
    >>> means.add(3.0, Dense(np.array([4.0, -2.0])))
    >>> means.add(1.0, Rows(np.array([[2.0]]), np.array([1])))
    >>> means.value, means.norm(np.zeros(2), None)
    (2.0, 2.0)
    """

    def __init__(self, n: int) -> None:
        self.points = 0
        self._value = 0.0
        self._gradient = np.zeros(n)
        self._touched = TouchedPlaces(n)

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
            self._touched.add(gradient.indices)
        else:
            self._gradient += gradient.values
            self._touched.add(None)

    def norm(self, x: FloatArray, bounds: tuple[FloatArray, FloatArray] | None) -> float:
        """Return the size of the largest element of the mean gradient.

        An element that points to a bound counts for no more than the distance to that bound.
        """
        touched = self._touched.indices()
        mean = self._gradient[touched] / self.points
        if bounds is not None:
            here, lower, upper = x[touched], bounds[0][touched], bounds[1][touched]
            mean = np.where(mean < 0, np.maximum(here - upper, mean), np.minimum(here - lower, mean))
        return float(np.max(np.abs(mean), initial=0.0))

    def clear(self) -> None:
        """Start a new window."""
        self._gradient[self._touched.indices()] = 0.0
        self._touched.clear()
        self.points = 0
        self._value = 0.0
