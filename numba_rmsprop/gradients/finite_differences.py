"""Gradients of Python functions by finite differences and complex steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray

METHODS = ("2-point", "3-point", "cs")
COMPLEX_STEP = 1e-20
"""Complex steps subtract nothing, so a smaller step is better; the square of this one vanishes beside 1."""


def best_step(dtype: np.dtype[Any], points: int) -> float:
    """Return the relative step at which the errors of rounding and of a formula of 2 or 3 points are about equal."""
    step: float = float(ml_dtypes.finfo(dtype).eps) ** (1 / points)  # type: ignore[no-untyped-call]
    return step


def values_beside(
    value: Callable[[], float], array: FloatArray, points: FloatArray, places: Iterable[int]
) -> NDArray[np.float64]:
    """Return ``value()`` with one element of ``array`` replaced by that of ``points``, for each of ``places``.

    The array is changed in place, and each element is put back. Places count as in ``array.flat``.
    """
    values = []
    for i in places:
        here = array.flat[i]
        try:
            array.flat[i] = points.flat[i]
            values.append(value())
        finally:
            array.flat[i] = here
    return np.array(values, np.float64)


def central_difference_gradient(value: Callable[[], float], var: FloatArray) -> FloatArray:
    """Return the gradient of ``value()``, a function of ``var``, which is changed in place and put back."""
    step = (best_step(var.dtype, 3) * np.maximum(1.0, np.abs(var.astype(np.float64)))).astype(var.dtype)
    above, below, everywhere = var + step, var - step, range(var.size)
    with np.errstate(invalid="ignore", over="ignore"):
        rise = values_beside(value, var, above, everywhere) - values_beside(value, var, below, everywhere)
        steps = above.astype(np.float64) - below.astype(np.float64)  # as they were rounded
        slopes = rise.reshape(var.shape) / steps
    return np.asarray(slopes, computed_in(var.dtype))


@dataclass(frozen=True, eq=False)
class FiniteDifferences:
    """A way to take gradients by finite differences, at any point within bounds.

    Let f[a] = (f(x + a) - f(x)) / a, for a change of one element by a. Then the slope along this element is::

        2-point:  f[a]                              a = ±h
        3-point:  (b·f[a] - a·f[b]) / (b - a)       a = h, b = -h; or a = ±h, b = ±2h beside a bound
        cs:       imag f(x + i·h) / h

    Parameters
    ----------
    method : {"2-point", "3-point", "cs"}
    step : float or None
        h is ``step * max(scale, |x|)``; None for :func:`best_step`.
    bounds : (ndarray, ndarray) or None
        The function is never called outside of them. The slope along an element that they fix is 0.
    scale : ndarray or float
        Typical sizes of the elements.
    """

    method: str
    step: float | None
    bounds: tuple[FloatArray, FloatArray] | None
    scale: FloatArray | float

    def calls(self, x: FloatArray) -> int:
        """Return the highest number of calls of the function for one gradient."""
        return (2 if self.method == "3-point" else 1) * int(np.count_nonzero(self._free(x)))

    def gradient(self, function: Callable[[Any], Any], x: FloatArray, value: float) -> FloatArray:
        """Return the gradient at ``x``, where the function is ``value``."""
        if self.method == "cs":
            return self._by_complex_steps(function, x)
        a, b = self._displacements(x)
        free = (a != 0) & (b != 0) & (a != b)
        gradient = np.zeros_like(x)
        gradient[free] = slopes = self._slopes(function, x, value, a, free)
        if self.method == "3-point":
            others = self._slopes(function, x, value, b, free)
            a, b = a[free], b[free]
            gradient[free] = (b * slopes - a * others) / (b - a)
        return gradient

    def _free(self, x: FloatArray) -> Any:
        return np.ones(x.shape, bool) if self.bounds is None else self.bounds[0] < self.bounds[1]

    def _slopes(
        self, function: Callable[[Any], Any], x: FloatArray, value: float, displacements: FloatArray, free: Any
    ) -> NDArray[np.float64]:
        beside = x + displacements
        # Rounding may carry x + (bound - x) beyond the bound.
        points = beside if self.bounds is None else np.clip(beside, *self.bounds)
        at = x.copy()
        values = values_beside(lambda: function(at.copy()), at, points, np.flatnonzero(free))
        slopes: NDArray[np.float64] = (values - value) / (beside - x)[free]
        return slopes

    def _displacements(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return a and b, rounded so that x + a and x + b are exact. They are 0 or equal where there is no room."""
        step = self.step or best_step(x.dtype, 2 if self.method == "2-point" else 3)
        h = step * np.maximum(self.scale, np.abs(x))
        a, b = h, -h
        if self.bounds is not None:
            below, above = x - self.bounds[0], self.bounds[1] - x
            room = np.where(above >= below, above, -below)  # on the side with more room
            if self.method == "2-point":
                a = np.where(above >= h, h, np.clip(room, -h, h))
                b = 2 * a
            else:
                beside_bound = np.minimum(above, below) < h
                reach = np.clip(room, -2 * h, 2 * h)
                a, b = np.where(beside_bound, reach / 2, a), np.where(beside_bound, reach, b)
        return (x + a) - x, (x + b) - x

    def _by_complex_steps(self, function: Callable[[Any], Any], x: FloatArray) -> FloatArray:
        gradient = np.zeros_like(x)
        steps = (self.step or COMPLEX_STEP) * np.maximum(self.scale, np.abs(x))
        for i in np.flatnonzero(self._free(x)):
            beside = x.astype(np.result_type(x.dtype, np.complex64))
            beside[i] += 1j * steps[i]
            found = np.asarray(function(beside))
            if found.dtype.kind != "c" or found.size != 1:
                raise TypeError(f"fun: expected a complex number for a complex x (fd_method='cs'), got {found!r:.100}")
            gradient[i] = found.item().imag / steps[i]
        return gradient
