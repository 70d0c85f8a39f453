"""The options of the method for SciPy, checked before the objective is first called."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.storage import COMPUTED
from ..arrays.variables import FloatArray
from .options import as_choice, as_count, as_real

FIRST_RATE = 0.1
"""The default learning rate of the first step."""
LAST_RATE = 1e-7
"""The default learning rate after the last step."""
MOMENTUM = 0.9
"""With momentum, epsilon stands under the root, so the last steps shrink with the gradient, as ``gtol`` needs."""
MAXITER = 10_000
GTOL = 1e-5
FTOL = 1e-9
PATIENCE = 0.3
"""The default patience, as a part of ``maxiter``. While the rate is high, a fit may meet a low point by luck. The fit
must forget that point before it may end: within this patience, the default rate falls by a factor of 63."""


def as_tolerances(tol: Any, gtol: Any, ftol: Any) -> tuple[float, float]:
    """Return ``(gtol, ftol)``; ``tol`` replaces each that is None."""
    shared = None if tol is None else as_real("tol", tol)
    defaults = (GTOL, FTOL) if shared is None else (shared, shared)
    return (
        defaults[0] if gtol is None else as_real("gtol", gtol),
        defaults[1] if ftol is None else as_real("ftol", ftol),
    )


def as_patience(value: Any, maxiter: int) -> int:
    """Return the number of steps without progress that ends a fit.

    >>> as_patience(None, 10_000)
    3000
    """
    return max(100, round(PATIENCE * maxiter)) if value is None else as_count("patience", value, 1)


def as_start(x0: Any) -> FloatArray:
    """Return a 1-D copy of ``x0``, of float32 or float64. Integers become float64."""
    given = np.atleast_1d(np.asarray(x0))
    if given.ndim != 1:
        raise ValueError(f"x0: expected one dimension, got shape {given.shape}")
    if given.dtype.kind in "iub":
        given = given.astype(np.float64)
    native = given.dtype.newbyteorder("=")
    if native not in COMPUTED:
        raise TypeError(f"x0: expected float32, float64 or integers, got {given.dtype}")
    start = np.array(given, native)
    if not np.isfinite(start).all():
        first = int(np.argmin(np.isfinite(start)))
        raise ValueError(f"x0: expected finite numbers, got {start[first]} at x0[{first}]")
    return start


def as_scale(x_scale: Any, x0: FloatArray) -> FloatArray | None:
    """Return ``x_scale`` as an array of ``x0``'s shape and dtype, or None if all of it is 1."""
    if isinstance(x_scale, str):
        as_choice("x_scale", x_scale, ["x0"])
        scale = np.where(x0 == 0, 1, np.abs(x0)).astype(x0.dtype)
    else:
        given = np.asarray(x_scale)
        if given.dtype.kind not in "iuf":
            raise TypeError(f'x_scale: expected a number, {x0.size} numbers or "x0", got {x_scale!r}')
        if given.shape not in ((), x0.shape):
            raise ValueError(f"x_scale: expected a number or shape {x0.shape}, as x0 has, got shape {given.shape}")
        with np.errstate(over="ignore", under="ignore"):
            scale = np.broadcast_to(given.astype(x0.dtype), x0.shape)
    wrong = ~(np.isfinite(scale) & (scale > 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"x_scale: expected finite numbers above 0, got {scale[first]} for x0[{first}]")
    return None if (scale == 1).all() else scale


def as_bounds(bounds: Any, x0: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Return lower and upper bounds in ``x0``'s dtype, or None if there are none.

    Parameters
    ----------
    bounds : scipy.optimize.Bounds, sequence of (low, high), or None
        In a pair, None is no bound.
    x0 : ndarray
        The start, which must lie within the bounds.
    """
    if bounds is None:
        return None
    lower, upper = _lower_and_upper(bounds, x0)
    if np.isneginf(lower).all() and np.isposinf(upper).all():
        return None
    for wrong, expected in (
        (~(lower <= upper), "a lower bound that is at most the upper one"),
        (~((lower <= x0) & (x0 <= upper)), "x0 within the bounds"),
    ):
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(f"bounds[{i}]: expected {expected}, got ({lower[i]}, {upper[i]}) and x0[{i}] = {x0[i]}")
    return lower, upper


def _lower_and_upper(bounds: Any, x0: FloatArray) -> tuple[FloatArray, FloatArray]:
    if hasattr(bounds, "lb"):  # scipy.optimize.Bounds, without the import
        sides = [np.asarray(bounds.lb), np.asarray(bounds.ub)]
        if any(side.shape not in ((), (1,), x0.shape) for side in sides):
            raise ValueError(
                f"bounds: expected lb and ub of shape {x0.shape}, as x0 has, got {sides[0].shape} and {sides[1].shape}"
            )
    else:
        try:
            pairs = [(_or_infinite(low, -math.inf), _or_infinite(high, math.inf)) for low, high in bounds]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"bounds: expected scipy.optimize.Bounds or a sequence of (low, high), got {bounds!r:.100}"
            ) from error
        if len(pairs) != x0.size:
            raise ValueError(f"bounds: expected {x0.size} pairs, one for each element of x0, got {len(pairs)}")
        sides = [np.array([pair[side] for pair in pairs]) for side in (0, 1)]
    if any(side.size and side.dtype.kind not in "iufb" for side in sides):
        raise TypeError(f"bounds: expected real numbers or None, got {sides[0].dtype} and {sides[1].dtype}")
    with np.errstate(over="ignore", under="ignore"):
        lower, upper = (np.broadcast_to(side.astype(x0.dtype), x0.shape).copy() for side in sides)
    return lower, upper


def _or_infinite(end: Any, infinity: float) -> Any:
    return infinity if end is None else np.asarray(end).item()
