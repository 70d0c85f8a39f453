"""What is handed to many fits, checked before the first of them starts."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba.extending import is_jitted
from numpy.typing import NDArray

from ..arrays.variables import DTYPES, FloatArray
from ..kernels.fits.slopes import central_differences, complex_steps


@dataclass(frozen=True)
class Shared:
    """An array that all fits share, in the ``data`` of :func:`~numba_rmsprop.minimize_many`.

    Examples
    --------
    >>> Shared(np.linspace(0.0, 1.0, 3)).array
    array([0. , 0.5, 1. ])
    """

    array: Any


def check_compiled(name: str, function: Any, *, optional: bool = False) -> None:
    """Raise TypeError or ValueError unless a function was compiled by Numba to run on one thread."""
    if numba.config.DISABLE_JIT and callable(function):  # type: ignore[attr-defined]
        return
    if not is_jitted(function):
        also = ' (or "complex" or None)' if optional else ""
        what = "one that is not; put @numba.njit above it" if callable(function) else repr(function)
        raise TypeError(f"{name}: expected a function compiled by numba.njit{also}, got {what}")
    if function.targetoptions.get("parallel"):
        raise ValueError(
            f"{name}: expected a function for one thread, got one compiled with parallel=True; "
            "the fits themselves are shared among the threads"
        )


def check_signature(name: str, function: Any, count: int, expected: str) -> None:
    """Raise TypeError unless a function can be called with ``count`` positional arguments."""
    try:
        inspect.signature(getattr(function, "py_func", function)).bind(*range(count))
    except TypeError as error:
        raise TypeError(f"{name}: expected a function that can be called as {expected}; {error}") from None


def slopes_of(jac: Any, given: Any, count: int, expected: str) -> Any:
    """Return how slopes are taken: by ``given``, by complex steps or by central differences."""
    if jac is None:
        return central_differences
    if isinstance(jac, str):
        if jac != "complex":
            raise ValueError(f'jac: expected a compiled function, "complex" or None, got {jac!r}')
        return complex_steps
    check_compiled("jac", jac, optional=True)
    check_signature("jac", jac, count, expected)
    return given


def as_starts(name: str, x0: Any, fits: int | None = None) -> FloatArray:
    """Return starting points as an array of shape (fits, parameters), finite, of float32 or float64.

    With ``fits``, one point may stand for all.
    """
    array = native(name, x0)
    if array.dtype not in DTYPES:
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected float32, float64 or integers, got {array.dtype}")
        array = array.astype(np.float64)
    if fits is not None and array.ndim == 1:
        array = np.broadcast_to(array, (fits, array.size))
    if array.ndim != 2 or not array.size or (fits is not None and len(array) != fits):
        expected = "(fits, parameters)" if fits is None else f"({fits}, parameters) or (parameters,)"
        raise ValueError(f"{name}: expected shape {expected}, with one of each at least, got shape {np.shape(x0)}")
    refuse(name, ~np.isfinite(array), array, "a finite number")
    return array


def native(name: str, array: Any) -> NDArray[Any]:
    """Return a numeric array in the machine's own byte order, which Numba asks for and FITS files do not have."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask; to leave points out, give them a sigma of infinity")
    try:
        converted = np.asarray(array)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name}: expected an array of numbers; {error}") from None
    dtype = converted.dtype
    if dtype.kind not in "biufc" or dtype.char in "egG":  # half and long double, which Numba does not know
        raise TypeError(f"{name}: expected an array of numbers that Numba knows, got {dtype}")
    return converted if dtype.isnative else converted.astype(dtype.newbyteorder("="))


def as_data(data: Any, fits: int) -> tuple[Any, ...]:
    """Return ``data`` as compiled code takes it: arrays with a row for each fit, and shared ones in tuples of one."""
    if not isinstance(data, (tuple, list)):
        raise TypeError(f"data: expected a tuple of arrays, got {type(data).__name__}; of one array, (array,)")
    checked: list[Any] = []
    for k, item in enumerate(data):
        name = f"data[{k}]"
        if isinstance(item, Shared):
            checked.append((native(name, item.array),))
            continue
        array = native(name, item)
        if array.ndim == 0 or len(array) != fits:
            raise ValueError(
                f"{name}: expected a first axis of {fits}, as many as x0 has fits, got shape {array.shape}; "
                "put what all fits share into Shared(...)"
            )
        checked.append(array)
    return tuple(checked)


def as_bounds(bounds: Any, x0: FloatArray, name: str = "x0") -> tuple[FloatArray, FloatArray]:
    """Return lower and upper bounds, between which ``x0`` lies, as :func:`as_lines` does."""
    if bounds is None:
        low, high = -np.inf, np.inf
    elif hasattr(bounds, "lb"):
        low, high = bounds.lb, bounds.ub
    else:
        try:
            low, high = bounds
        except (TypeError, ValueError):
            raise ValueError(f"bounds: expected (lower, upper) or scipy.optimize.Bounds, got {bounds!r:.100}") from None
    lower, upper = (_like_starts(f"bounds, {what}", value, x0) for what, value in (("lower", low), ("upper", high)))
    refuse("bounds, lower", ~(lower <= upper), lower, "lower <= upper")
    refuse(name, (x0 < lower) | (x0 > upper), x0, "a value within the bounds")
    return as_lines(lower), as_lines(upper)


def as_scale(x_scale: Any, x0: FloatArray) -> FloatArray:
    """Return typical sizes of the parameters as :func:`as_lines` does; "x0" stands for the start's own."""
    if isinstance(x_scale, str):
        if x_scale != "x0":
            raise ValueError(f'x_scale: expected a number, an array or "x0", got {x_scale!r}')
        return as_lines(x0)
    scale = _like_starts("x_scale", x_scale, x0)
    refuse("x_scale", ~(np.isfinite(scale) & (scale > 0)), scale, "a finite number above 0")
    return as_lines(scale)


def _like_starts(name: str, value: Any, x0: FloatArray) -> FloatArray:
    try:
        array = np.asarray(value)
        with np.errstate(over="ignore"):  # a bound beyond what float32 holds is infinite
            return np.broadcast_to(array.astype(x0.dtype, casting="same_kind", copy=False), x0.shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected a number, or an array of shape {x0.shape} or {x0.shape[1:]}, got {value!r:.100}"
        ) from None


def as_lines(array: FloatArray) -> FloatArray:
    """Return a line for each fit, or where all have the same, one line: always an array of one type for Numba.

    That is contiguous and writable. For each type of it, everything around the user's functions is compiled anew.
    """
    return np.require(array if array.strides[0] else array[:1], requirements=["C", "W"])


def refuse(name: str, wrong: NDArray[np.bool], array: NDArray[Any], expected: str) -> None:
    """Raise ValueError that names the first element that is wrong."""
    if wrong.any():
        place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        where = "" if array.ndim == 0 else str([int(k) for k in place])
        raise ValueError(f"{name}{where}: expected {expected}, got {array[place]!r}")
