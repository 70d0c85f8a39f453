"""Trial calls of the user's functions at the first start, to refuse wrong functions before any fit begins."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from ..arrays.variables import FloatArray
from ..gradients.finite_differences import best_step, values_beside
from ..kernels.fits.slopes import complex_steps, model_slopes, objective_slopes
from .many_fits import ManyFits, complex_step_of

ROOM = 64
"""Elements behind the gradient in the array of a trial call, to catch a ``jac`` that writes too many."""

MARKS = (12345.6875, -54321.3125)
"""The elements of the gradient before the first and the second trial call. If an element differs by as much after the
calls, ``jac`` has not set it, or has added to it."""

NO_VALUE = object()
"""The value of a function that raised. Other fits may still succeed, so the call goes on."""


def check_objective(fits: ManyFits) -> None:
    """Raise TypeError or ValueError for a ``fun`` or ``jac`` of ``minimize_many`` that cannot be right."""
    functions, x, row = fits.functions, fits.x0[0].copy(), _first_row(fits.data)
    value = _called("fun", functions.fun, x, row)
    if not np.array_equal(x, fits.x0[0]):
        raise ValueError("fun: expected a function that leaves x as it is, got one that writes to it")
    _check_real("fun", value)
    if functions.slopes is objective_slopes:
        _check_gradient(functions.jac, x, row)
    if functions.slopes is complex_steps:
        _check_analytic("fun", lambda at: _called("fun", functions.fun, at, row), x, fits)


def check_model(fits: ManyFits) -> None:
    """Raise TypeError or ValueError for a ``model`` or ``jac`` of ``curve_fit_many`` that cannot be right."""
    functions, x = fits.functions, fits.x0[0].copy()
    predictors = tuple(item[0] for item in _first_row(fits.data)[4:])
    point = predictors if len(predictors) > 1 else predictors[0]
    _check_real("model", _called("model", functions.fun, point, *x))
    if functions.slopes is model_slopes:
        slopes = _called("jac", functions.jac, point, *x)
        if slopes is NO_VALUE:
            return
        if not isinstance(slopes, tuple) or len(slopes) != x.size:
            got = f"{len(slopes)} of them" if isinstance(slopes, tuple) else f"{type(slopes).__name__}"
            raise ValueError(f"jac: expected a tuple of {x.size} numbers, one for each parameter, got {got}")
        for slope in slopes:
            _check_real("jac", slope)
    if functions.slopes is complex_steps:
        _check_analytic("model", lambda at: _called("model", functions.fun, point, *at), x, fits)


def _first_row(data: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row of the first fit: see :func:`numba_rmsprop.kernels.tuple_intrinsics.row_of`."""
    return tuple(item[0] for item in data)


def _called(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a user's function, or :data:`NO_VALUE`."""
    try:
        return function(*arguments)
    except NumbaError as error:
        kinds = ", ".join(_kind(argument) for argument in arguments)
        raise TypeError(f"{name}: Numba cannot compile it for the arguments ({kinds}): {error}") from error
    except Exception:  # noqa: BLE001 - the user's functions may raise anything; the results of the fits will tell
        return NO_VALUE


def _kind(argument: Any) -> str:
    if isinstance(argument, tuple):
        return f"({', '.join(map(_kind, argument))})"
    if isinstance(argument, np.ndarray):
        return f"array of {argument.dtype}, shape {argument.shape}"
    return type(argument).__name__


def _check_real(name: str, value: Any) -> None:
    if value is not NO_VALUE and not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a function that returns a real number, got {_kind(value)}")


def _check_gradient(jac: Callable[..., Any], x: FloatArray, row: tuple[Any, ...]) -> None:
    n, start = x.size, x.copy()
    written = []
    for mark in MARKS:
        out = np.full(n + ROOM, mark, x.dtype)
        raised = _called("jac", jac, x, row, out[:n]) is NO_VALUE
        beyond = np.flatnonzero(out[n:] != mark)
        if beyond.size:
            raise ValueError(
                f"jac: expected {n} elements of out, as many as x has, got one written at {n + beyond[-1]}"
            )
        if raised:
            return
        written.append(out[:n])
    if not np.array_equal(x, start):
        raise ValueError("jac: expected a function that leaves x as it is, got one that writes to it")
    first, second = written
    unset = np.flatnonzero(_added_to(first, second))
    if unset.size:
        raise ValueError(
            f"jac: expected every element of out to be set, whatever it held before; got out[{unset[0]}] left as it "
            "was, or added to"
        )


def _added_to(first: FloatArray, second: FloatArray) -> Any:
    """Return where two gradients differ by as much as :data:`MARKS`, and not by noise of their own."""
    difference = MARKS[1] - MARKS[0]
    return np.abs((second - first) - difference) < 1e-3 * abs(difference)


def _check_analytic(name: str, function: Callable[[Any], Any], x: FloatArray, fits: ManyFits) -> None:
    """Refuse complex steps where their slopes differ from central differences at the first start."""
    scale, lower, upper = (line[0] for line in fits.lines)
    complex_step = float(complex_step_of(x.dtype))
    slopes = np.empty(x.size)
    for j in range(x.size):
        shifted = x.astype(np.result_type(x.dtype, np.complex64))
        shifted[j] += 1j * complex_step
        result = function(shifted)
        if result is NO_VALUE:
            return
        if not isinstance(result, (complex, np.complexfloating)):
            raise ValueError(
                f'{name}: expected a complex number for complex parameters, since jac="complex", got {_kind(result)}; '
                "pass jac=None for central differences"
            )
        slopes[j] = float(result.imag) / complex_step
    size = np.maximum(np.abs(scale), np.abs(x)).astype(np.float64)  # for a time in seconds, this may be a nanosecond
    size[size == 0] = 1.0
    step = best_step(x.dtype, 3) * size
    above, below = np.minimum(x + step.astype(x.dtype), upper), np.maximum(x - step.astype(x.dtype), lower)
    at = x.copy()

    def value() -> Any:
        result = function(at)
        return np.nan if result is NO_VALUE else result

    with np.errstate(all="ignore"):  # what is not finite is not compared
        ends = np.array([values_beside(value, at, points, range(x.size)) for points in (above, below)])
        differences = (ends[0] - ends[1]) / (above.astype(np.float64) - below)
        rounding = 100 * best_step(x.dtype, 3) ** 2 * np.abs(ends).max(axis=0) / size
        largest = np.maximum(np.abs(slopes), np.abs(differences))
        wrong = (above > below) & (np.abs(slopes - differences) > 0.1 * largest + rounding)
    if wrong.any():
        j = int(np.argmax(wrong))
        raise ValueError(
            f'{name}: expected an analytic function, since jac="complex"; at the first start its slope along '
            f"parameter {j} is {slopes[j]:.6g} by a complex step and {differences[j]:.6g} by central differences; pass "
            "jac=None for those"
        )
