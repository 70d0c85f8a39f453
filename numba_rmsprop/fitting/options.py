"""Checks and defaults of options that all ways to fit share."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays.real_numbers import as_float
from ..schedules import ExponentialDecay


def as_count(name: str, value: Any, low: int) -> int:
    """Return an integer of at least ``low`` that an int64 can hold."""
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
    """Return a bool. An integer is accepted, as in SciPy's ``disp``."""
    if not isinstance(value, (bool, np.bool, numbers.Integral)):
        raise TypeError(f"{name}: expected True or False, got {value!r} ({type(value).__name__})")
    return bool(value)


def as_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")
    return value


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name}: expected a callable, got {value!r} ({type(value).__name__})")


def falling_rate(steps: int, first: float, last: float) -> ExponentialDecay:
    """Return a learning rate that falls exponentially from ``first`` to ``last`` over ``steps`` steps.

    >>> rate = falling_rate(100, 0.1, 1e-7)
    >>> float(rate(0)), f"{rate(100):.3g}"
    (0.1, '1e-07')
    """
    return ExponentialDecay(first, max(steps, 1), last / first)


def near_the_lowest(dtype: np.dtype[Any]) -> float:
    """Return ``near`` of :class:`~numba_rmsprop.kernels.fits.stopping.StoppingRule`, for an objective without noise.

    It is far above rounding, which in a sum of squares depends on the size of the data and not of the residuals, and
    far below the difference between two minima that matters to anybody.
    """
    return float(np.sqrt(np.finfo(dtype).eps))
