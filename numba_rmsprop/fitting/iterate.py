"""The point of a fit: what the optimizer moves, what the objective sees of it, and the best that was seen."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..gradients.kinds import Dense, IndexedSlices, Rows
from ..optimizer import RMSprop
from ..settings.step_numbers import StepRates

Limits: TypeAlias = tuple[FloatArray, FloatArray] | None


class WatchedRMSprop(RMSprop):
    """RMSprop that tells what a fit asks of it."""

    rate = 0.0
    """The learning rate of the latest step."""
    highest_rate = 0.0
    """The highest so far."""

    @property
    def values_fall_behind(self) -> bool:
        """Whether a sparse step moves elements that it does not touch."""
        return self.sparse_update == "exact" and (self._has_momentum or self.weight_decay > 0)

    def _rates(self, step: int) -> StepRates:
        rates = super()._rates(step)
        self.rate = rates.learning_rate
        self.highest_rate = max(self.highest_rate, self.rate)
        return rates


class Iterate:
    """The point ``x`` of a fit, which takes steps in ``x / scale``.

    Parameters
    ----------
    x0 : ndarray, shape (n,)
        Where it begins; becomes its own.
    limits : (ndarray, ndarray) or None
        The bounds; each step ends with a projection onto them.
    scale : ndarray or None
        See ``x``; None for 1.
    optimizer : WatchedRMSprop
        What steps.

    Attributes
    ----------
    x : ndarray
        The point.
    seen : ndarray
        A read-only view of it, for the user's functions.
    best : ndarray
        The point when :meth:`keep` was last called.
    """

    def __init__(self, x0: FloatArray, limits: Limits, scale: FloatArray | None, optimizer: WatchedRMSprop) -> None:
        self.x = x0
        self.seen = x0.view()
        self.seen.flags.writeable = False
        self.best = x0.copy()
        self.limits = limits
        self._scale = scale
        self._optimizer = optimizer
        self._variable = x0 if scale is None else x0 / scale
        self._scaled_limits = limits if limits is None or scale is None else (limits[0] / scale, limits[1] / scale)
        self._changed: list[NDArray[np.int64]] | None = []
        self._changed_count = 0

    def step(self, gradient: Dense | Rows) -> bool:
        """Take a step, at the cost of the elements that move; return whether any did, or all steps were too short."""
        touched: Any = gradient.indices if isinstance(gradient, Rows) else slice(None)
        all_move = isinstance(gradient, Dense) or self._optimizer.values_fall_behind
        places: Any = slice(None) if all_move else touched
        before = self._variable[places].copy()
        values = gradient.values[:, 0] if isinstance(gradient, Rows) else gradient.values
        if self._scale is not None:
            values = values * self._scale[touched]
        passed = IndexedSlices(values, gradient.indices) if isinstance(gradient, Rows) else values
        self._optimizer.apply_gradients([(passed, self._variable)])
        if all_move:
            self._optimizer.flush()  # the objective reads all of x
        self._project(places)
        self._note(None if all_move else touched)
        return not np.array_equal(before, self._variable[places])

    def keep(self) -> None:
        """Let the point be the best; costs what has changed since the last time."""
        if self._changed is None:
            np.copyto(self.best, self.x)
        else:
            for places in self._changed:
                self.best[places] = self.x[places]
        self._changed, self._changed_count = [], 0

    def _project(self, places: Any) -> None:
        variable = self._variable
        if self._scaled_limits is not None:
            lower, upper = self._scaled_limits
            variable[places] = np.clip(variable[places], lower[places], upper[places])
        if self._scale is not None:
            moved = variable[places] * self._scale[places]
            if self.limits is not None:  # once more, since x / scale * scale may be beside x
                moved = np.clip(moved, self.limits[0][places], self.limits[1][places])
            self.x[places] = moved

    def _note(self, places: NDArray[np.int64] | None) -> None:
        if places is None or self._changed is None:
            self._changed = None
            return
        self._changed.append(places)
        self._changed_count += len(places)
        if self._changed_count >= self.x.size:
            self._changed = None
