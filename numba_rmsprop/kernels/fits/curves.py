"""Least squares over the points of one curve: the cost, its gradient, and the triangle that gives the covariance."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import compiled, compiled_for_functions, compiled_inline
from ..tuple_intrinsics import point_of
from .arguments import COST
from .slopes import call_model


@compiled
def linear(z: Any) -> Any:
    """Return ``rho(z) = z`` and its first two derivatives: ordinary least squares."""
    return z, 1.0, 0.0


@compiled
def soft_l1(z: Any) -> Any:
    """Return ``rho(z) = 2 (sqrt(1 + z) - 1)`` and its first two derivatives."""
    root = np.sqrt(1.0 + z)
    return 2.0 * (root - 1.0), 1.0 / root, -0.5 / root**3


@compiled
def huber(z: Any) -> Any:
    """Return ``rho(z) = z``, or ``2 sqrt(z) - 1`` above 1, and its first two derivatives."""
    if z <= 1.0:
        return z, 1.0, 0.0
    root = np.sqrt(z)
    return 2.0 * root - 1.0, 1.0 / root, -0.5 / root**3


@compiled
def cauchy(z: Any) -> Any:
    """Return ``rho(z) = ln(1 + z)`` and its first two derivatives."""
    return np.log1p(z), 1.0 / (1.0 + z), -1.0 / (1.0 + z) ** 2


EPSILON = float(np.finfo(np.float64).eps)
"""The lowest weight of a point in the covariance, as in SciPy."""

LOSSES = {"linear": linear, "soft_l1": soft_l1, "huber": huber, "cauchy": cauchy}
"""The losses of scipy.optimize.least_squares, by name; z is the square of a residual divided by ``f_scale``."""


@compiled_inline
def item_or_one(array: Any, i: Any) -> Any:
    """Return ``array[i]``, or 1 where ``array`` is None.

    This is a function of its own because Numba drops a branch on None only where it tests an argument.
    """
    return 1.0 if array is None else array[i]


@compiled_for_functions
def curve_cost(functions: Any, x: Any, row: Any, scratch: Any, what: Any, triangles: Any, fit: Any) -> Any:
    """Return ``sum(f_scale² rho((residual / f_scale)²)) / 2`` over the points, and fill its gradient.

    ``row`` is ``(ydata, sigma, f_scale, like, *predictors)``, where ``sigma`` may be None and ``like`` is a tuple with
    an item for each parameter.

    With TRIANGLE, write ``triangles[fit]`` instead: R of the QR decomposition of the residuals' Jacobian, which has the
    same singular values. For a robust loss, the rows of the Jacobian are scaled by ``sqrt(rho' + 2 rho'' z)``, as in
    scipy.optimize.least_squares. One point at a time is rotated into R, so the Jacobian is never in memory. Both are
    one function, so that the user's model is compiled once.

    References
    ----------
    Golub and Van Loan, Matrix Computations, section 5.1.8 (Givens rotations).
    Triggs et al., "Bundle Adjustment - A Modern Synthesis", 1999, section 4.3 (robust losses).
    """
    ydata, sigma, f_scale, like = row[:4]
    gradient, slopes, squares, triangle = scratch.gradient, scratch.point_slopes, scratch.squares, triangles[fit]
    cost = 0.0
    if what == COST:
        gradient[:] = 0.0
        squares[:] = 0.0
    else:
        triangle[:, :] = 0.0
    for i in range(ydata.size):
        uncertainty = item_or_one(sigma, i)
        if uncertainty == np.inf:
            continue  # left out, even if the point is NaN
        point = point_of(row[4:], i)
        value = functions.slopes(call_model, functions.fun, functions.jac, x, point, like, scratch, slopes)
        residual = (value - ydata[i]) / uncertainty
        z = (residual / f_scale) ** 2
        rho, first, second = functions.loss(z)
        if what == COST:
            cost += f_scale**2 * rho
            weight = first / uncertainty
            for j in range(x.size):
                gradient[j] += weight * residual * slopes[j]
                squares[j] += weight / uncertainty * np.float64(slopes[j]) ** 2
            squares[x.size] += first * residual**2
        else:
            weight = np.sqrt(max(first + 2.0 * second * z, EPSILON)) / uncertainty
            for j in range(x.size):
                slopes[j] *= weight
            rotate_into(triangle, slopes)
    return 0.5 * cost


@compiled
def rotate_into(triangle: Any, line: Any) -> None:
    """Add a line to the matrix of which ``triangle`` is the R. The line is overwritten."""
    for k in range(line.size):
        if line[k] != 0:
            length = np.hypot(triangle[k, k], line[k])
            cosine, sine = triangle[k, k] / length, line[k] / length
            for j in range(k, line.size):
                above, below = triangle[k, j], line[j]
                triangle[k, j] = cosine * above + sine * below
                line[j] = cosine * below - sine * above
