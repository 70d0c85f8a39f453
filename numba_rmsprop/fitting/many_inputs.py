"""The functions and arrays of many fits, checked and brought into the form that compiled code takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba.extending import is_jitted
from numpy.typing import NDArray

from ..arrays.storage import COMPUTED
from ..arrays.variables import FloatArray
from ..kernels.fits.arguments import Lines
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


def check_function(name: str, function: Any, call: str, *, optional: bool = False) -> None:
    """Raise TypeError or ValueError unless a function is compiled for one thread and can be called as in ``call``.

    ``call`` is, for example, "fun(x, row)", as messages show it.
    """
    if not (numba.config.DISABLE_JIT and callable(function)):  # type: ignore[attr-defined]
        if not is_jitted(function):
            also = ' (or "complex" or None)' if optional else ""
            got = "one that is not; put @numba.njit above it" if callable(function) else repr(function)
            raise TypeError(f"{name}: expected a function compiled by numba.njit{also}, got {got}")
        if function.targetoptions.get("parallel"):
            raise ValueError(
                f"{name}: expected a function for one thread, got one compiled with parallel=True; "
                "the fits themselves are shared among the threads"
            )
    try:
        inspect.signature(getattr(function, "py_func", function)).bind(*call.split(","))  # as many arguments
    except TypeError as error:
        raise TypeError(f"{name}: expected a function that can be called as {call}; {error}") from None


def slopes_of(jac: Any, by_jac: Any, call: str) -> Any:
    """Return the function that takes slopes: ``by_jac``, complex steps or central differences."""
    if jac is None:
        return central_differences
    if isinstance(jac, str):
        if jac != "complex":
            raise ValueError(f'jac: expected a compiled function, "complex" or None, got {jac!r}')
        return complex_steps
    check_function("jac", jac, call, optional=True)
    return by_jac


def as_starts(name: str, x0: Any, fits: int | None = None) -> FloatArray:
    """Return finite starts of float32 or float64, shape (fits, parameters).

    If ``fits`` is given, ``x0`` may be one start for all of them.
    """
    array = as_native(name, x0)
    if array.dtype not in COMPUTED:
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected float32, float64 or integers, got {array.dtype}")
        array = array.astype(np.float64)
    if fits is not None and array.ndim == 1:
        array = np.broadcast_to(array, (fits, array.size))
    if array.ndim != 2 or not array.size or (fits is not None and len(array) != fits):
        expected = "(fits, parameters)" if fits is None else f"({fits}, parameters) or (parameters,)"
        raise ValueError(f"{name}: expected shape {expected}, with one of each at least, got shape {np.shape(x0)}")
    refuse_first(name, ~np.isfinite(array), array, "a finite number")
    return array


def as_native(name: str, array: Any) -> NDArray[Any]:
    """Return a numeric array in the machine's byte order, which Numba needs and FITS files do not have."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask; to leave points out, give them a sigma of infinity")
    try:
        converted = np.asarray(array)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name}: expected an array of numbers; {error}") from None
    dtype = converted.dtype
    if dtype.kind not in "biufc" or dtype.char in "egG":  # Numba has neither half nor long double
        raise TypeError(f"{name}: expected an array of numbers that Numba knows, got {dtype}")
    return converted if dtype.isnative else converted.astype(dtype.newbyteorder("="))


def as_data(data: Any, fits: int) -> tuple[Any, ...]:
    """Return ``data`` as :func:`numba_rmsprop.kernels.tuple_intrinsics.row_of` takes it."""
    if not isinstance(data, (tuple, list)):
        raise TypeError(f"data: expected a tuple of arrays, got {type(data).__name__}; of one array, (array,)")
    checked: list[Any] = []
    for k, item in enumerate(data):
        name = f"data[{k}]"
        if isinstance(item, Shared):
            checked.append((as_native(name, item.array),))
            continue
        array = as_native(name, item)
        if array.ndim == 0 or len(array) != fits:
            raise ValueError(
                f"{name}: expected a first axis of {fits}, as many as x0 has fits, got shape {array.shape}; "
                "put what all fits share into Shared(...)"
            )
        checked.append(array)
    return tuple(checked)


def as_lines_of_fits(x_scale: Any, bounds: Any, x0: FloatArray, name: str = "x0") -> Lines:
    """Return the scale and the bounds of all fits; ``name`` is what messages call ``x0``."""
    if isinstance(x_scale, str):
        if x_scale != "x0":
            raise ValueError(f'x_scale: expected a number, an array or "x0", got {x_scale!r}')
        scale = x0
    else:
        scale = _like_starts("x_scale", x_scale, x0)
        refuse_first("x_scale", ~(np.isfinite(scale) & (scale > 0)), scale, "a finite number above 0")
    if bounds is None:
        bounds = -np.inf, np.inf
    elif hasattr(bounds, "lb"):  # scipy.optimize.Bounds, without the import
        bounds = bounds.lb, bounds.ub
    try:
        low, high = bounds
    except (TypeError, ValueError):
        raise ValueError(f"bounds: expected (lower, upper) or scipy.optimize.Bounds, got {bounds!r:.100}") from None
    lower, upper = _like_starts("bounds, lower", low, x0), _like_starts("bounds, upper", high, x0)
    refuse_first("bounds, lower", ~(lower <= upper), lower, "lower <= upper")
    refuse_first(name, (x0 < lower) | (x0 > upper), x0, "a value within the bounds")
    return Lines(*map(_without_repeats, (scale, lower, upper)))


def _like_starts(name: str, value: Any, x0: FloatArray) -> FloatArray:
    try:
        array = np.asarray(value)
        with np.errstate(over="ignore"):  # a bound that float32 cannot hold becomes infinite
            return np.broadcast_to(array.astype(x0.dtype, casting="same_kind", copy=False), x0.shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected a number, or an array of shape {x0.shape} or {x0.shape[1:]}, got {value!r:.100}"
        ) from None


def _without_repeats(array: FloatArray) -> FloatArray:
    """Return an array with one line for each fit, or with one line if all have the same.

    It is always contiguous and writable, since Numba compiles everything anew for an array of another type.
    """
    return np.require(array if array.strides[0] else array[:1], requirements=["C", "W"])


def refuse_first(name: str, wrong: NDArray[np.bool], array: NDArray[Any], expected: str) -> None:
    """Raise ValueError that names the first wrong element, if there is any."""
    if wrong.any():
        place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        where = "" if array.ndim == 0 else str([int(k) for k in place])
        raise ValueError(f"{name}{where}: expected {expected}, got {array[place]!r}")
