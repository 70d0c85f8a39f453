"""What a user may set for a fit, checked before the objective is called even once."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays.real_numbers import as_float
from ..arrays.variables import DTYPES, FloatArray
from ..schedules import ExponentialDecay

FIRST_RATE = 0.1
"""The default learning rate of the first step ..."""
LAST_RATE = 1e-7
"""... and the one that it has fallen to, exponentially, when ``maxiter`` steps are over."""
MOMENTUM = 0.9
"""With momentum, epsilon stands under the root: the last steps shrink with the gradient, as gtol needs."""
MAXITER = 10_000
GTOL = 1e-5
FTOL = 1e-9
PATIENCE = 0.3
"""What part of ``maxiter`` makes the default patience. A point that is low by luck while the rate is still high must be
forgotten: until then, the default rate has fallen by a factor of 63."""


def as_count(name: str, value: Any, low: int) -> int:
    """Return an integer of at least ``low``, which compiled code can hold."""
    try:
        if isinstance(value, (bool, np.bool)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r} ({type(value).__name__})") from None
    if count < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {count}")
    if count >= 2**63:
        raise ValueError(f"{name}: expected an integer below 2**63, got {count}")
    return count


def as_real(name: str, value: Any) -> float:
    """Return a finite number as a float."""
    number = as_float(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number!r}")
    return number


def as_positive(name: str, value: Any) -> float:
    """Return a finite number above 0 as a float."""
    number = as_real(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a number above 0, got {number!r}")
    return number


def as_flag(name: str, value: Any) -> bool:
    """Return a bool; an integer counts as one, as in SciPy's ``disp``."""
    if not isinstance(value, (bool, np.bool, numbers.Integral)):
        raise TypeError(f"{name}: expected True or False, got {value!r} ({type(value).__name__})")
    return bool(value)


def as_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")
    return value


def tolerances(tol: Any, gtol: Any, ftol: Any) -> tuple[float, float]:
    """Return ``(gtol, ftol)``; ``tol`` stands for those that are None."""
    shared = None if tol is None else as_real("tol", tol)
    defaults = (GTOL, FTOL) if shared is None else (shared, shared)
    return (
        defaults[0] if gtol is None else as_real("gtol", gtol),
        defaults[1] if ftol is None else as_real("ftol", ftol),
    )


def as_patience(value: Any, maxiter: int) -> int:
    """Return the number of steps without progress that end a fit.

    >>> as_patience(None, 10_000)
    3000
    """
    return max(100, round(PATIENCE * maxiter)) if value is None else as_count("patience", value, 1)


def falling_rate(steps: int, first: float = FIRST_RATE, last: float = LAST_RATE) -> ExponentialDecay:
    """Return the default learning rate of a fit of ``steps`` steps: from ``first`` to ``last``.

    >>> float(falling_rate(100)(0)), f"{falling_rate(100)(100):.3g}"
    (0.1, '1e-07')
    """
    return ExponentialDecay(first, max(steps, 1), last / first)


def as_start(x0: Any) -> FloatArray:
    """Return a copy of ``x0``: 1-D, of float32 or float64; integers become float64."""
    given = np.atleast_1d(np.asarray(x0))
    if given.ndim != 1:
        raise ValueError(f"x0: expected one dimension, got shape {given.shape}")
    if given.dtype.kind in "iub":
        given = given.astype(np.float64)
    native = given.dtype.newbyteorder("=")
    if native not in DTYPES:
        raise TypeError(f"x0: expected float32, float64 or integers, got {given.dtype}")
    start = np.array(given, native)
    if not np.isfinite(start).all():
        first = int(np.argmin(np.isfinite(start)))
        raise ValueError(f"x0: expected finite numbers, got {start[first]} at x0[{first}]")
    return start


def as_scale(x_scale: Any, x0: FloatArray) -> FloatArray | None:
    """Return ``x_scale`` as an array of ``x0``'s shape and dtype, or None where all of it is 1."""
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


def as_limits(bounds: Any, x0: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Return the lowest and the highest ``x``, in ``x0``'s dtype, or None where nothing is bounded.

    Parameters
    ----------
    bounds : scipy.optimize.Bounds, sequence of (low, high), or None
        In a pair, None is no bound.
    x0 : ndarray
        Where the fit begins, which must lie within.

    Raises
    ------
    ValueError
        If there are not as many as ``x0`` has elements, a lower one is above its upper one, or ``x0`` is outside; the
        message names the element.
    """
    if bounds is None:
        return None
    lower, upper = _ends(bounds, x0)
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


def _ends(bounds: Any, x0: FloatArray) -> tuple[FloatArray, FloatArray]:
    if hasattr(bounds, "lb"):  # scipy.optimize.Bounds, which is not imported for this
        ends = [np.asarray(bounds.lb), np.asarray(bounds.ub)]
        if any(end.shape not in ((), (1,), x0.shape) for end in ends):
            raise ValueError(
                f"bounds: expected lb and ub of shape {x0.shape}, as x0 has, got {ends[0].shape} and {ends[1].shape}"
            )
    else:
        try:
            pairs = [(_end(low, -math.inf), _end(high, math.inf)) for low, high in bounds]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"bounds: expected scipy.optimize.Bounds or a sequence of (low, high), got {bounds!r:.100}"
            ) from error
        if len(pairs) != x0.size:
            raise ValueError(f"bounds: expected {x0.size} pairs, one for each element of x0, got {len(pairs)}")
        ends = [np.array(list(side)).reshape(x0.shape) for side in (zip(*pairs, strict=True) if pairs else ([], []))]
    if any(end.size and end.dtype.kind not in "iufb" for end in ends):
        raise TypeError(f"bounds: expected real numbers or None, got {ends[0].dtype} and {ends[1].dtype}")
    with np.errstate(over="ignore", under="ignore"):
        low, high = (np.broadcast_to(end.astype(x0.dtype), x0.shape).copy() for end in ends)
    return low, high


def _end(end: Any, missing: float) -> Any:
    return missing if end is None else np.asarray(end).item()
