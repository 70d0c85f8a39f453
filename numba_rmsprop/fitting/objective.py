"""The objective of the method for SciPy: its value and gradient, checked and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import scipy.sparse

from ..arrays.variables import FloatArray
from ..gradients.conversion import as_gradient
from ..gradients.dense import Dense
from ..gradients.finite_differences import FiniteDifferences
from ..gradients.rows import Rows
from ..gradients.scipy_sparse import NOWHERE
from .options import check_callable


class Objective:
    """The objective and its gradient, called, checked and counted.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns a number.
    jac : callable or None
        ``jac(x, *args)`` returns the gradient, dense or sparse. None for finite differences.
    args : tuple
    differences : FiniteDifferences
        Used if ``jac`` is None.

    Attributes
    ----------
    nfev : int
        The number of calls of ``fun``, with those for finite differences.
    njev : int
        The number of gradients.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        jac: Callable[..., Any] | None,
        args: tuple[Any, ...],
        differences: FiniteDifferences,
    ) -> None:
        check_callable("fun", fun)
        if jac is not None:
            check_callable("jac", jac)
        self._fun = fun
        self._jac = jac
        self._args = args
        self._differences = differences
        self.nfev = 0
        self.njev = 0

    def calls(self, x: FloatArray) -> int:
        """Return how many calls of ``fun`` the value and the gradient at one point take."""
        return 1 if self._jac else 1 + self._differences.calls(x)

    def __call__(self, x: FloatArray) -> tuple[float, Dense | Rows]:
        """Return the value and the gradient at ``x``."""
        value = self._value(x)
        if self._jac:
            gradient = as_vector(self._jac(x, *self._args), x)
        else:
            function = self._call if self._differences.method == "cs" else self._value
            gradient = Dense(self._differences.gradient(function, x, value))
        self.njev += 1
        return value, gradient

    def _call(self, x: Any) -> Any:
        self.nfev += 1
        return self._fun(x, *self._args)

    def _value(self, x: FloatArray) -> float:
        return as_value(self._call(x))


def as_value(result: Any) -> float:
    """Return the result of ``fun`` as a float.

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
    """Return the result of ``jac`` in the dtype of ``x``: a dense array of its shape, or the entries of a sparse one.

    Raises
    ------
    ValueError
        If it does not have as many elements as ``x``, or they are not real numbers.
    """
    if scipy.sparse.issparse(result):
        _check(result, x)
        rows = cast(Rows, as_gradient(result.astype(x.dtype, copy=False), x, "x", NOWHERE))
        # Gradients are kept for later, and jac may write the next one into the same arrays.
        return Rows(rows.values.copy(), rows.indices.copy())
    if isinstance(result, np.ma.MaskedArray):
        raise ValueError("jac: expected an array or a sparse array, got a masked array; fill it first")
    values = np.asarray(result)
    _check(values, x)
    return Dense(values.reshape(x.shape).astype(x.dtype, copy=False))


def as_dense(gradient: Dense | Rows, x: FloatArray) -> FloatArray:
    """Return a gradient as a new array of ``x``'s shape."""
    dense = np.zeros_like(x)
    if isinstance(gradient, Rows):
        np.add.at(dense, gradient.indices, gradient.values[:, 0])
    else:
        dense[:] = gradient.values
    return dense


def _check(gradient: Any, x: FloatArray) -> None:
    if gradient.dtype.kind not in "fiub":
        raise ValueError(f"jac: expected real numbers, got {type(gradient).__name__} of {gradient.dtype}")
    n = x.size
    if gradient.shape not in ((n,), (1, n), (n, 1)) and not (gradient.shape == () and n == 1):
        raise ValueError(f"jac: expected {n} elements, shape ({n},), as x has, got shape {gradient.shape}")
