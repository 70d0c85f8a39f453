"""Gradients by finite differences that stay within bounds, put together from ``scipy.optimize.approx_fprime``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.variables import FloatArray

METHODS = ("2-point", "3-point", "cs")
COMPLEX_STEP = 1e-20
"""Nothing is subtracted with it, so that the smaller it is the better; its square vanishes beside 1."""


class Differences:
    """How to take gradients by finite differences, at any point within the bounds.

    With displacements a and b, f[a] = (f(x + a) - f(x)) / a, one element at a time::

        2-point:  f[a]                              a = ±h
        3-point:  (b·f[a] - a·f[b]) / (b - a)       a = h, b = -h; or a = ±h, b = ±2h beside a bound
        cs:       imag f(x + i·h) / h

    Parameters
    ----------
    method : {"2-point", "3-point", "cs"}
        Which.
    step : float or None
        h is ``step * max(x_scale, |x|)``. By default the root of the dtype's precision, or with three points its cube
        root, where errors of rounding and of the formula are about equal.
    limits : (ndarray, ndarray) or None
        Bounds, outside of which the function is never called. The derivative by an element that they fix is taken as 0.
    scale : ndarray or float
        ``x_scale``.
    """

    def __init__(
        self, method: str, step: float | None, limits: tuple[FloatArray, FloatArray] | None, scale: FloatArray | float
    ) -> None:
        self.method = method
        self.step = step
        self.limits = limits
        self.scale = scale

    def calls(self, x: FloatArray) -> int:
        """Return how many calls of the function a gradient takes at most."""
        free = x.size if self.limits is None else int(np.count_nonzero(self.limits[0] < self.limits[1]))
        return (2 if self.method == "3-point" else 1) * free

    def gradient(self, function: Callable[[Any], Any], x: FloatArray, value: float) -> FloatArray:
        """Return the gradient at ``x``, where the function is ``value``."""
        if self.method == "cs":
            return self._by_complex_steps(function, x)
        a, b = self._displacements(x)
        free = (a != 0) & (b != 0) & (a != b)
        a, b = a[free], b[free]
        gradient = np.zeros_like(x)
        gradient[free] = slopes = self._slopes(function, x, value, a, free)
        if self.method == "3-point":
            gradient[free] = (b * slopes - a * self._slopes(function, x, value, b, free)) / (b - a)
        return gradient

    def _slopes(
        self, function: Callable[[Any], Any], x: FloatArray, value: float, displacements: FloatArray, free: Any
    ) -> Any:
        from scipy.optimize import approx_fprime

        here = x[free]

        def of_free(elements: FloatArray) -> Any:
            if np.array_equal(elements, here):
                return value  # which approx_fprime asks for once more
            whole = x.copy()
            whole[free] = elements
            if self.limits is not None:  # x + (bound - x) may lie beside the bound by rounding
                np.clip(whole, *self.limits, out=whole)
            return function(whole)

        return approx_fprime(here, of_free, displacements) if here.size else here

    def _displacements(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return a and b as they are when rounded to x's precision; both 0 or equal where there is no room for them."""
        relative = self.step
        if relative is None:
            relative = float(np.finfo(x.dtype).eps) ** (1 / 2 if self.method == "2-point" else 1 / 3)
        h = relative * np.maximum(self.scale, np.abs(x))
        a, b = h, -h
        if self.limits is not None:
            below, above = x - self.limits[0], self.limits[1] - x
            room = np.where(above >= below, above, -below)  # on the roomier side
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
        free = np.arange(x.size) if self.limits is None else np.flatnonzero(self.limits[0] < self.limits[1])
        for i in free:
            beside = x.astype(np.result_type(x.dtype, np.complex64))
            beside[i] += 1j * steps[i]
            found = np.asarray(function(beside))
            if found.dtype.kind != "c" or found.size != 1:
                raise TypeError(f"fun: expected a complex number for a complex x (fd_method='cs'), got {found!r:.100}")
            gradient[i] = found.item().imag / steps[i]
        return gradient
