"""The numbers of one step, as kernels take them."""

from __future__ import annotations

import numpy as np

from .variables import FloatArray


class StepRates:
    """The hyperparameters of one step, evaluated, in the order of :class:`numba_rmsprop.kernels.rule.Rates`."""

    __slots__ = ("_numbers", "_packed", "learning_rate", "momentum", "rho", "shrink")

    def __init__(
        self,
        learning_rate: float,
        rho: float,
        momentum: float,
        epsilon_inside: float,
        epsilon_outside: float,
        shrink: float,
        clipvalue: float,
    ) -> None:
        self.learning_rate = learning_rate
        self.rho = rho
        self.momentum = momentum
        self.shrink = shrink
        self._numbers = learning_rate, rho, 1.0 - rho, momentum, epsilon_inside, epsilon_outside, shrink, clipvalue
        self._packed: dict[np.dtype[np.floating], FloatArray] = {}

    def packed(self, dtype: np.dtype[np.floating], scale: float = 1.0) -> FloatArray:
        """Return the numbers as an array; ``scale`` is what the clipping of norms leaves of the gradient."""
        if scale != 1.0:
            return self._rounded(scale, dtype)
        packed = self._packed.get(dtype)
        if packed is None:
            packed = self._packed[dtype] = self._rounded(scale, dtype)
        return packed

    def _rounded(self, scale: float, dtype: np.dtype[np.floating]) -> FloatArray:
        # Variables before this one may have taken their step: no warning may become an exception here.
        with np.errstate(over="ignore", under="ignore"):
            return np.array((*self._numbers, scale), dtype)
