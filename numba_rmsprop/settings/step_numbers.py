"""The numbers of one step, as kernels take them."""

from __future__ import annotations

import numpy as np

from ..arrays.variables import FloatArray


class StepRates:
    """The hyperparameters of one step, evaluated, in the order of :class:`numba_rmsprop.kernels.rule.Rates`.

    Parameters
    ----------
    learning_rate, rho, momentum, epsilon_inside, epsilon_outside, shrink, clipvalue, outer_rate, coupled_decay : float
        As there.
    ascends : bool
        Whether to go up the gradient.
    momentum_rests : bool
        Whether this step leaves the momentum as it is, and goes without it.

    Attributes
    ----------
    when_skipped : tuple of float
        What the step comes to for a row that it leaves out: a run of :mod:`numba_rmsprop.kernels.skip_factors`.
    """

    __slots__ = ("_after", "_before", "_packed", "_sign", "learning_rate", "momentum_rests", "when_skipped")

    def __init__(
        self,
        learning_rate: float,
        rho: float,
        momentum: float,
        epsilon_inside: float,
        epsilon_outside: float,
        shrink: float,
        clipvalue: float,
        *,
        outer_rate: float = 1.0,
        coupled_decay: float = 0.0,
        ascends: bool = False,
        momentum_rests: bool = False,
    ) -> None:
        self.learning_rate = learning_rate
        self.momentum_rests = momentum_rests
        self.when_skipped = (rho, 1.0, shrink, 0.0) if momentum_rests else (rho, momentum, shrink, outer_rate)
        self._before = learning_rate, rho, 1.0 - rho, momentum, epsilon_inside, epsilon_outside, shrink, clipvalue
        self._after = outer_rate, coupled_decay
        self._sign = -1.0 if ascends else 1.0
        self._packed: dict[np.dtype[np.floating], FloatArray] = {}

    @property
    def key(self) -> tuple[float, ...]:
        """All the numbers, to compare them with those of other processes."""
        return (*self._before, self._sign, *self._after, float(self.momentum_rests))

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
            return np.array((*self._before, self._sign * scale, *self._after), dtype)
