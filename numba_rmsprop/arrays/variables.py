"""Checks of variables, and of the memory that arrays share."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from .noted_layouts import refuse_closed
from .storage import DTYPES, NAMES

FloatArray: TypeAlias = NDArray[np.floating]

OVERLAP_WORK = 100_000
"""Limit of the search for an element that two interleaved views share; beyond it, they count as overlapping."""


def describe(name: str, array: FloatArray) -> str:
    """Return how messages call an array.

    >>> describe("variable 1", np.zeros((3, 2), np.float32))
    'variable 1 (float32, shape (3, 2))'
    """
    return f"{name} ({array.dtype}, shape {array.shape})"


def _overlaps_itself(var: FloatArray) -> bool:
    reach = var.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(var.strides, var.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


class Label:
    """A name for messages, put together only when a message is, since the name of a dtype takes 10 us."""

    __slots__ = ("name", "var", "what")

    def __init__(self, what: str, name: str, var: FloatArray) -> None:
        self.what = what
        self.name = name
        self.var = var

    def __str__(self) -> str:
        return f"{self.what} {describe(self.name, self.var)}"


def as_variable(var: Any, name: str, *, written: bool = True) -> FloatArray:
    """Return ``var`` if it can be updated in place; one that is not to be ``written`` may be read-only.

    Raises
    ------
    TypeError
        If it is not a NumPy array (or np.memmap) of one of the dtypes of :mod:`~numba_rmsprop.arrays.storage`.
    ValueError
        If it is read-only, not aligned, its elements share memory with one another, or its file was closed.
    """
    # A matrix or a masked array has its own idea of indexing.
    if not isinstance(var, np.ndarray) or type(var) not in (np.ndarray, np.memmap):
        raise TypeError(f"{name} must be a NumPy array of {NAMES}, which is updated in place; got {in_place_of(var)}")
    if var.dtype not in DTYPES:
        raise TypeError(f"{describe(name, var)}: expected dtype {NAMES}, in native byte order")
    check_memory(var, name, written=written)
    return var


def may_be_variable(var: NDArray[Any]) -> bool:
    """Return whether :func:`as_variable` would accept an array."""
    try:
        as_variable(var, "")
    except (TypeError, ValueError):
        return False
    return True


def in_place_of(var: Any) -> str:
    """Return the name of the type of what is no NumPy array, and what to pass in its place."""
    kind = type(var).__name__
    if type(var).__module__.partition(".")[0] == "torch":
        return (
            f"{kind}. numba_rmsprop.torch.RMSprop steps PyTorch's parameters; here, pass tensor.detach().numpy(), "
            "which shares the memory of a CPU tensor"
        )
    if hasattr(var, "to_numpy"):
        return f"{kind}; pass one array, array = x.to_numpy(copy=True), at every call, and put it back when trained"
    if isinstance(var, np.ma.MaskedArray):
        return f"{kind}; pass one array, array = x.filled(0), at every call"
    if isinstance(var, np.ndarray):
        return f"{kind}; pass np.asarray(x), which shares its memory"
    if hasattr(var, "__array__") or hasattr(var, "__dlpack__"):
        return f"{kind}; pass one array, array = np.array(x), at every call"
    return kind


def type_name(value: Any) -> str:
    """Return how messages call the type of a value.

    >>> type_name(3), type_name(np.ma.ones(2))
    ('int', 'numpy.ma.MaskedArray')
    """
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def as_array(value: Any, label: object) -> NDArray[Any]:
    """Return what somebody has handed over as an array, without a copy where it can be.

    Raises
    ------
    TypeError
        If it has a mask, which NumPy would drop without a word, or is nothing that NumPy can read.
    """
    if type(value) is np.ndarray:
        return value
    if _has_mask(value):
        raise TypeError(f"{label}: expected an array, got a masked array; fill it first, as with array.filled(0)")
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except Exception as error:  # whose code has run is not known
        raise TypeError(
            f"{label}: expected an array, got {type_name(value)}; convert it first, since NumPy cannot read it: "
            f"{error!s:.200}"
        ) from error


def _has_mask(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return isinstance(value, np.ma.MaskedArray)
    kinds = set(map(type, value))
    return any(issubclass(kind, (list, tuple, np.ma.MaskedArray)) for kind in kinds) and any(map(_has_mask, value))


def check_memory(var: NDArray[Any], name: str, *, written: bool = True) -> None:
    """Raise ValueError if an array is read-only, not aligned, overlaps itself, or lies in a file that was closed.

    One that is not to be ``written`` may be read-only.
    """
    if written and not var.flags.writeable:
        raise ValueError(f"{describe(name, var)} is read-only; expected a writable array, which is updated in place")
    if not var.flags.aligned:
        raise ValueError(f"{describe(name, var)} is not aligned in memory; pass an aligned copy, as np.array makes it")
    refuse_closed(var, describe(name, var))
    if var.size and _overlaps_itself(var):
        raise ValueError(f"{describe(name, var)}: its elements share memory (strides {var.strides}); pass a copy")


class Occupied:
    """The memory of some arrays, to ask of others whether they reach into it.

    Parameters
    ----------
    arrays : iterable of ndarray
        The arrays. Between an array's first and last byte, all counts as its own.

    Attributes
    ----------
    array : ndarray of int64, shape (2, pieces)
        Where each piece of memory starts, in order, and the highest end so far.
    """

    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None:
        self._take(_all_bounds(arrays))

    def with_more(self, arrays: Iterable[NDArray[Any]]) -> Occupied:
        """Return the memory of these arrays as well."""
        more = _all_bounds(arrays)
        if not more.size:
            return self
        bounds = np.concatenate([self._bounds, more], axis=1)
        return self._with(bounds[:, np.argsort(bounds[0], kind="stable")])  # which merges what is in order already

    def without(self, arrays: Iterable[NDArray[Any]]) -> Occupied:
        """Return the memory less that of these arrays, where it was there."""
        stays = np.ones(self._bounds.shape[1], bool)
        for low, high in _all_bounds(arrays).T:
            begin, end = np.searchsorted(self._bounds[0], [low, low + 1])
            (found,) = np.nonzero(stays[begin:end] & (self._bounds[1, begin:end] == high))
            stays[begin + found[:1]] = False
        return self._with(self._bounds[:, stays])

    def reached_by(self, array: NDArray[Any]) -> bool:
        """Return whether some of the array's memory may be occupied."""
        if not array.size:
            return False
        low, high = memory_bounds(array)
        below = bisect_left(self.array[0], high)
        return below > 0 and bool(self.array[1, below - 1] > low)

    @classmethod
    def _with(cls, bounds: NDArray[np.int64]) -> Occupied:
        made = cls.__new__(cls)
        made._take(bounds)
        return made

    def _take(self, bounds: NDArray[np.int64]) -> None:
        self._bounds = bounds
        self.array = np.stack([bounds[0], np.maximum.accumulate(bounds[1])])


def _all_bounds(arrays: Iterable[NDArray[Any]]) -> NDArray[np.int64]:
    """Return where arrays start, in order, and where they end."""
    bounds = sorted(memory_bounds(array) for array in arrays if array.size)
    return np.array(bounds, np.int64).reshape(len(bounds), 2).T


def memory_bounds(array: NDArray[Any]) -> tuple[int, int]:
    """Return where an array's memory starts and ends."""
    if array.flags.contiguous:  # byte_bounds takes 10 us
        low = array.__array_interface__["data"][0]
        return low, low + array.nbytes
    return byte_bounds(array)


def memory_key(var: FloatArray) -> tuple[Any, ...]:
    """Return what is equal for two arrays exactly if they are the same view of the same memory."""
    if not var.size:
        return (id(var),)  # has no memory to share
    return var.__array_interface__["data"][0], var.shape, var.strides, var.dtype.char


def refuse_overlap(var: FloatArray, name: str, others: Iterable[tuple[FloatArray, str]]) -> None:
    """Raise ValueError if ``var`` shares memory with one of ``others``."""
    for other, other_name in others:
        if share_memory(var, other):
            raise ValueError(
                f"{describe(name, var)} overlaps {describe(other_name, other)} in memory but is not the same array; "
                "expected arrays that are either the same or apart"
            )


def share_memory(a: FloatArray, b: FloatArray) -> bool:
    """Return whether two arrays share an element, or are so entangled that it would take long to find out."""
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=OVERLAP_WORK)  # type: ignore[arg-type]  # the stub knows two of its values
    except np.exceptions.TooHardError:
        return True


def as_table(array: FloatArray) -> FloatArray | None:
    """Return ``array`` as a view of shape (rows, columns), or None if its trailing axes cannot be viewed as one.

    >>> as_table(np.zeros((5, 2, 3))).shape
    (5, 6)
    >>> as_table(np.zeros((5, 2, 3), order="F")) is None
    True
    """
    if array.ndim == 0:
        return None
    try:
        return array.reshape(array.shape[0], math.prod(array.shape[1:]), copy=False)
    except ValueError:
        return None


LINE_ITEMS = 64
"""Elements to a line of a dense step: a few cache lines, which are prefetched together."""


def as_lines(*arrays: FloatArray | None) -> list[tuple[FloatArray | None, ...]]:
    """Return views of arrays of one shape, of shape (lines, columns) each, that together hold each element once.

    Where all arrays are contiguous in the same order, the lines are of ``LINE_ITEMS`` elements.
    """
    present = [array for array in arrays if array is not None]
    for turn in (lambda array: array, np.transpose):
        if all(turn(array).flags.c_contiguous for array in present):
            flat = [None if array is None else turn(array).reshape(-1) for array in arrays]
            whole = present[0].size // LINE_ITEMS * LINE_ITEMS
            return [
                tuple(None if array is None else array[:whole].reshape(-1, LINE_ITEMS) for array in flat),
                tuple(None if array is None else array[np.newaxis, whole:] for array in flat),
            ]
    if present[0].ndim == 1:
        return [tuple(None if array is None else array[:, np.newaxis] for array in arrays)]
    return [
        tuple(None if array is None else array[index] for array in arrays)
        for index in np.ndindex(present[0].shape[:-2])
    ]
