"""The objective and its gradient, called, checked and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import scipy.sparse

from ..arrays.variables import FloatArray
from ..gradients.kinds import Dense, Rows, as_gradient
from ..gradients.scipy_sparse import NOWHERE
from .differences import Differences


class Objective:
    """What is minimized.

    Parameters
    ----------
    fun : callable
        Called as ``fun(x, *args)``; returns a number.
    jac : callable or None
        Called as ``jac(x, *args)``; returns the gradient, dense or sparse. None for finite differences.
    args : tuple
        See ``fun``.
    differences : Differences
        How to take the gradient without ``jac``.

    Attributes
    ----------
    nfev : int
        How often ``fun`` was called, for finite differences too.
    njev : int
        How many gradients were computed.
    """

    def __init__(
        self, fun: Callable[..., Any], jac: Callable[..., Any] | None, args: tuple[Any, ...], differences: Differences
    ) -> None:
        for name, given, needed in (("fun", fun, True), ("jac", jac, jac is not None)):
            if needed and not callable(given):
                raise TypeError(f"{name}: expected a callable, got {given!r} ({type(given).__name__})")
        self._fun = fun
        self._jac = jac
        self._args = args
        self._differences = differences
        self.nfev = 0
        self.njev = 0

    def calls(self, x: FloatArray) -> int:
        """Return how many calls of ``fun`` a point takes, with its gradient."""
        return 1 if self._jac else 1 + self._differences.calls(x)

    def __call__(self, x: FloatArray) -> tuple[float, Dense | Rows]:
        """Return value and gradient at ``x``."""
        value = self._value(x)
        if self._jac:
            gradient = as_vector(self._jac(x, *self._args), x)
        else:
            function = self._called if self._differences.method == "cs" else self._value
            gradient = Dense(self._differences.gradient(function, x, value))
        self.njev += 1
        return value, gradient

    def _called(self, x: Any) -> Any:
        self.nfev += 1
        return self._fun(x, *self._args)

    def _value(self, x: FloatArray) -> float:
        return as_value(self._called(x))


def as_value(result: Any) -> float:
    """Return what ``fun`` returned as a float.

    >>> as_value(np.array([2.5]))
    2.5
    """
    if type(result) is float:
        return result
    if isinstance(result, tuple):
        raise ValueError("fun: expected a number, got a tuple; with jac=True it may return (value, gradient)")
    try:
        number = np.asarray(result).item()
        if isinstance(number, (str, bytes)):
            raise TypeError
        return float(number)
    except (TypeError, ValueError) as error:
        raise ValueError(f"fun: expected a number, got {result!r:.100} ({type(result).__name__})") from error


def as_vector(result: Any, x: FloatArray) -> Dense | Rows:
    """Return what ``jac`` returned in the dtype of ``x``: dense ones of its shape, sparse ones by their entries.

    Raises
    ------
    ValueError
        If it does not have as many elements as ``x``, or holds anything but real numbers.
    """
    if scipy.sparse.issparse(result):
        _check(result, x)
        rows = cast(Rows, as_gradient(result.astype(x.dtype, copy=False), x, "x", NOWHERE))
        return Rows(rows.values.copy(), rows.indices.copy())  # they are kept, and jac may write its own anew
    if isinstance(result, np.ma.MaskedArray):
        raise ValueError("jac: expected an array or a sparse array, got a masked array; fill it first")
    values = np.asarray(result)
    _check(values, x)
    return Dense(values.reshape(x.shape).astype(x.dtype, copy=False))


def _check(gradient: Any, x: FloatArray) -> None:
    if gradient.dtype.kind not in "fiub":
        raise ValueError(f"jac: expected real numbers, got {type(gradient).__name__} of {gradient.dtype}")
    n = x.size
    if gradient.shape not in ((n,), (1, n), (n, 1)) and not (gradient.shape == () and n == 1):
        raise ValueError(f"jac: expected {n} elements, shape ({n},), as x has, got shape {gradient.shape}")
