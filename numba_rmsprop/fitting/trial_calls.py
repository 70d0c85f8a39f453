"""The user's functions, called at the first start: what can be found wrong with them before any fit begins."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from ..arrays.variables import FloatArray
from ..kernels.fits.loop import Space
from ..kernels.fits.slopes import complex_steps, model_slopes, objective_slopes
from .launch import Fits

ROOM = 64
"""Elements after the gradient in the array that a ``jac`` is tried with: what it writes too much lands there."""

MARKS = (12345.6875, -54321.3125)
"""What the gradient holds before two calls; where these differ as much, ``jac`` has not set it, or added to it."""

RAISED = object()
"""What stands for the value of a function that raised, which is a matter of that fit."""


def check_objective(fits: Fits) -> None:
    """Raise TypeError or ValueError for a ``fun`` or ``jac`` of ``minimize_many`` that cannot be right."""
    functions, x, row = fits.functions, fits.x0[0].copy(), first_row(fits.data)
    value = _called("fun", functions.fun, x, row)
    if not np.array_equal(x, fits.x0[0]):
        raise ValueError("fun: expected a function that leaves x as it is, got one that writes to it")
    _check_real("fun", value)
    if functions.slopes is objective_slopes:
        _check_gradient(functions.jac, x, row)
    if functions.slopes is complex_steps:
        _check_analytic("fun", lambda at: _called("fun", functions.fun, at, row), x, fits.spaces[0])


def check_model(fits: Fits) -> None:
    """Raise them for the ``model`` and ``jac`` of ``curve_fit_many``, at the first point of the first curve."""
    functions, x = fits.functions, fits.x0[0].copy()
    numbers_there = tuple(item[0] for item in first_row(fits.data)[4:])
    point = numbers_there if len(numbers_there) > 1 else numbers_there[0]
    _check_real("model", _called("model", functions.fun, point, *x))
    if functions.slopes is model_slopes:
        slopes = _called("jac", functions.jac, point, *x)
        if slopes is RAISED:
            return
        if not isinstance(slopes, tuple) or len(slopes) != x.size:
            got = f"{len(slopes)} of them" if isinstance(slopes, tuple) else f"{type(slopes).__name__}"
            raise ValueError(f"jac: expected a tuple of {x.size} numbers, one for each parameter, got {got}")
        for slope in slopes:
            _check_real("jac", slope)
    if functions.slopes is complex_steps:
        _check_analytic("model", lambda at: _called("model", functions.fun, point, *at), x, fits.spaces[0])


def first_row(data: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what belongs to the first fit: of an array its first row, of a tuple of one what is in it."""
    return tuple(item[0] for item in data)


def _called(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of the user's returns, or :data:`RAISED`."""
    try:
        return function(*arguments)
    except NumbaError as error:
        kinds = ", ".join(_kind(argument) for argument in arguments)
        raise TypeError(f"{name}: Numba cannot compile it for the arguments ({kinds}): {error}") from error
    except Exception:  # noqa: BLE001 - whatever it may be, it will be told of the fits that it happens in
        return RAISED


def _kind(argument: Any) -> str:
    if isinstance(argument, tuple):
        return f"({', '.join(map(_kind, argument))})"
    if isinstance(argument, np.ndarray):
        return f"array of {argument.dtype}, shape {argument.shape}"
    return type(argument).__name__


def _check_real(name: str, value: Any) -> None:
    if value is not RAISED and not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a function that returns a real number, got {_kind(value)}")


def _check_gradient(jac: Callable[..., Any], x: FloatArray, row: tuple[Any, ...]) -> None:
    n, start = x.size, x.copy()
    written = []
    for mark in MARKS:
        out = np.full(n + ROOM, mark, x.dtype)
        raised = _called("jac", jac, x, row, out[:n]) is RAISED
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
    """Return where two results differ by what was there before, and not by noise of their own."""
    difference = MARKS[1] - MARKS[0]
    return np.abs((second - first) - difference) < 1e-3 * abs(difference)


def _check_analytic(name: str, function: Callable[[Any], Any], x: FloatArray, space: Space) -> None:
    """Refuse complex steps where they differ from central differences at the first start."""
    eps, complex_step = float(np.finfo(x.dtype).eps), float(space.complex_step)
    for j in range(x.size):
        at = x.astype(np.complex64 if x.dtype == np.float32 else np.complex128)
        at[j] += 1j * complex_step
        result = function(at)
        if result is RAISED:
            return
        if not isinstance(result, (complex, np.complexfloating)):
            raise ValueError(
                f'{name}: expected a complex number for complex parameters, since jac="complex", got {_kind(result)}; '
                "pass jac=None for central differences"
            )
        size = max(abs(float(space.scale[0, j])), abs(float(x[j]))) or 1.0  # a time may be nanoseconds, in seconds
        step = eps ** (1 / 3) * size
        above, below = x.copy(), x.copy()
        above[j] = min(above[j] + step, space.upper[0, j])
        below[j] = max(below[j] - step, space.lower[0, j])
        if not above[j] > below[j]:
            continue
        ends = function(above), function(below)
        if RAISED in ends or not np.isfinite(ends).all():
            continue
        slope = float(result.imag) / complex_step
        difference = (ends[0] - ends[1]) / (float(above[j]) - float(below[j]))
        rounding = 100 * eps ** (2 / 3) * max(abs(ends[0]), abs(ends[1])) / size
        if abs(slope - difference) > 0.1 * max(abs(slope), abs(difference)) + rounding:
            raise ValueError(
                f'{name}: expected an analytic function, since jac="complex"; at the first start its slope along '
                f"parameter {j} is {slope:.6g} by a complex step and {difference:.6g} by central differences; pass "
                "jac=None for those"
            )
