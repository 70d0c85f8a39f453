"""The point of a fit by the method for SciPy: its steps, and the best point so far."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ..arrays.variables import FloatArray
from ..gradients.dense import Dense
from ..gradients.indexed_slices import IndexedSlices
from ..gradients.rows import Rows
from ..optimizer import RMSprop
from ..settings.step_numbers import StepNumbers
from .touched_places import TouchedPlaces

Bounds: TypeAlias = tuple[FloatArray, FloatArray] | None


class WatchedRMSprop(RMSprop):
    """RMSprop that notes its learning rates."""

    rate = 0.0
    """The learning rate of the latest step."""
    highest_rate = 0.0
    """The highest learning rate so far."""

    @property
    def pace(self) -> float:
        """The learning rate of the latest step, as a part of the highest so far."""
        return self.rate / self.highest_rate if self.highest_rate > 0 else 1.0

    def numbers_at(self, step: int) -> StepNumbers:
        """Return the hyperparameters of a step, and note its learning rate."""
        found = super().numbers_at(step)
        self.rate = found.of_rule.learning_rate
        self.highest_rate = max(self.highest_rate, self.rate)
        return found


class Iterate:
    """The point ``x`` of a fit, which takes steps in ``x / scale``.

    Parameters
    ----------
    x0 : ndarray, shape (n,)
        The start; changed in place.
    bounds : (ndarray, ndarray) or None
        Each step ends with a projection onto them.
    scale : ndarray or None
        None for 1.
    optimizer : WatchedRMSprop

    Attributes
    ----------
    x : ndarray
        The point.
    seen : ndarray
        A read-only view of it, for the user's functions.
    best : ndarray
        The point at the last call of :meth:`keep`.
    """

    def __init__(self, x0: FloatArray, bounds: Bounds, scale: FloatArray | None, optimizer: WatchedRMSprop) -> None:
        self.x = x0
        self.seen = x0.view()
        self.seen.flags.writeable = False
        self.best = x0.copy()
        self.bounds = bounds
        self._scale = scale
        self.optimizer = optimizer
        self._variable = x0 if scale is None else x0 / scale
        self._scaled_bounds = bounds if bounds is None or scale is None else (bounds[0] / scale, bounds[1] / scale)
        self._changed = TouchedPlaces(x0.size)

    def step(self, gradient: Dense | Rows) -> bool:
        """Take a step, in time proportional to the elements that move; return whether any element has changed."""
        touched: Any = gradient.indices if isinstance(gradient, Rows) else slice(None)
        all_move = isinstance(gradient, Dense) or (self.optimizer.exact and self.optimizer.drifts)
        places: Any = slice(None) if all_move else touched
        before = self._variable[places].copy()
        values = gradient.values[:, 0] if isinstance(gradient, Rows) else gradient.values
        if self._scale is not None:
            values = values * self._scale[touched]
        scaled = IndexedSlices(values, gradient.indices) if isinstance(gradient, Rows) else values
        self.optimizer.apply_gradients([(scaled, self._variable)])
        if all_move:
            self.optimizer.flush()  # the objective reads all of x
        self._project(places)
        self._changed.add(None if all_move else touched)
        return not np.array_equal(before, self._variable[places])

    def keep(self) -> None:
        """Copy the point to ``best``, in time proportional to the elements that have changed since the last call."""
        places = self._changed.indices()
        self.best[places] = self.x[places]
        self._changed.clear()

    def _project(self, places: Any) -> None:
        variable = self._variable
        if self._scaled_bounds is not None:
            lower, upper = self._scaled_bounds
            variable[places] = np.clip(variable[places], lower[places], upper[places])
        if self._scale is not None:
            moved = variable[places] * self._scale[places]
            if self.bounds is not None:  # again, since x / scale * scale is not exactly x
                moved = np.clip(moved, self.bounds[0][places], self.bounds[1][places])
            self.x[places] = moved
