"""Address, shape, strides and dtype of arrays, noted, since NumPy lets anyone change them in place.

``ndarray.resize`` moves the memory; ``shape``, ``strides`` and ``dtype`` can be assigned; an np.memmap can be closed.
Whoever keeps an address, or a view, would go on with memory that is another's by then.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from mmap import mmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.numpy_layout import (
    ALIGNED,
    AXES,
    CONTIGUOUS,
    DATA,
    DTYPE,
    FLAGS,
    KIND,
    KIND_MASK,
    MOVED,
    READ_ONLY,
    SHAPE,
    STEPS,
    STRIDES,
    WRITEABLE,
    changes_of,
)

HEADER = object.__basicsize__


@cache
def layout_is_known() -> bool:
    """Return whether array objects are laid out as :mod:`numba_rmsprop.kernels.numpy_layout` expects.

    >>> layout_is_known()
    True
    """
    probe = np.zeros((2, 3), np.float32)
    fields = id(probe) + HEADER

    def number(address: int, kind: Any = ctypes.c_int64) -> int:
        return int(kind.from_address(address).value)

    def pair(address: int) -> list[int]:
        return (ctypes.c_int64 * 2).from_address(number(address))[:]

    flags = CONTIGUOUS | ALIGNED | WRITEABLE
    known = (
        number(fields - 8) == id(np.ndarray)
        and number(fields + DATA) == probe.ctypes.data
        and number(fields + AXES, ctypes.c_int32) == probe.ndim
        and pair(fields + SHAPE) == [2, 3]
        and pair(fields + STRIDES) == [12, 4]
        and number(fields + DTYPE) == id(probe.dtype)
        and number(fields + FLAGS, ctypes.c_int32) & flags == flags
        and kind_of(probe.dtype).to_bytes(8, "little")[:3] == b"ff="
    )
    if not known:
        warnings.warn(
            f"NumPy {np.__version__} lays out its arrays otherwise than expected, so each call takes the longer way "
            "through Python, some microseconds for each variable; please report the version",
            RuntimeWarning,
            stacklevel=2,
        )
    return known


def kind_of(dtype: np.dtype[Any]) -> int:
    """Return what a dtype has at ``KIND``."""
    return ctypes.c_int64.from_address(id(dtype) + HEADER + KIND).value & KIND_MASK


class Layout(NamedTuple):
    """The properties of an array that can be changed in place."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]
    address: int

    @classmethod
    def of(cls, array: NDArray[Any]) -> Layout:
        """Return that of an array."""
        return cls(array.shape, array.dtype, array.strides, array.__array_interface__["data"][0])


class Mapped(NamedTuple):
    """A mapped file, and where its memory begins."""

    mapping: mmap
    start: int

    @property
    def holds(self) -> bool:
        """True if the file is still mapped at the same address."""
        return not self.mapping.closed and _start(self.mapping) == self.start


class Noted(NamedTuple):
    """An array as it was, and the memory of which it is a view."""

    layout: Layout
    bases: list[tuple[int, int]]
    mapped: Mapped | None
    rows: list[list[int]]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Noted:
        """Return that of an array."""
        layout, (bases, mapping) = Layout.of(array), _beneath(array)
        steps = [number for pair in zip(layout.shape, layout.strides, strict=True) for number in pair]
        rows = [[id(array), layout.address, kind_of(layout.dtype), len(layout.shape), *steps]]
        rows += [[id(base), Layout.of(base).address, 0, -1 - base.size] for base in bases]
        mapped = None if mapping is None else Mapped(mapping, _start(mapping))
        return cls(layout, list(map(_extent, bases)), mapped, rows)


class Layouts:
    """The arrays of a variable as they were when they were noted; it holds all but the variable itself.

    Attributes
    ----------
    table : ndarray of int64
        ``layouts`` for :func:`numba_rmsprop.kernels.numpy_layout.changes_of`.
    mapped : list of Mapped
        Files in which some of them lie.
    """

    __slots__ = ("_held", "_noted", "mapped", "table")

    def __init__(self, **arrays: NDArray[Any]) -> None:
        self._held: dict[str, NDArray[Any]] = {}
        self._noted: dict[str, Noted] = {}
        self.note(**arrays)

    def note(self, **arrays: NDArray[Any] | None) -> None:
        """Note arrays, in the place of those of the same names; None forgets one."""
        # Made anew, and exchanged last, since other threads may look meanwhile.
        held, noted = dict(self._held), dict(self._noted)
        for name, array in arrays.items():
            held.pop(name, None)
            noted.pop(name, None)
            if array is not None:
                noted[name] = Noted.of(array)
                if name != "var":
                    held[name] = array
        self.table = as_layouts(row for of_one in noted.values() for row in of_one.rows)
        self.mapped = [of_one.mapped for of_one in noted.values() if of_one.mapped is not None]
        self._held, self._noted = held, noted

    def look(self) -> int:
        """Return 0 if all arrays are as they were noted, and may be written; or else MOVED, READ_ONLY, or both."""
        if not layout_is_known() or (self.mapped and not all(mapped.holds for mapped in self.mapped)):
            return MOVED | READ_ONLY  # for a closer look
        return int(changes_of(self.table, HEADER))

    def refuse_moved(self, arrays: Mapping[str, NDArray[Any]], owner: str) -> None:
        """Raise ValueError if an array is not as it was noted."""
        for name, noted in self._noted.items():
            changed = _in_words(noted, arrays[name])
            if changed:
                raise ValueError(
                    f"{_label(owner, name)}: {changed}; expected memory that stays what it is. "
                    "opt.rebind(variable, array) goes on with another array"
                )


def as_layouts(rows: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Return rows of different length as one array."""
    found = list(rows)
    table = np.zeros((len(found), max(map(len, found), default=STEPS)), np.int64)
    for k, row in enumerate(found):
        table[k, : len(row)] = row
    return table


def refuse_read_only(arrays: Mapping[str, NDArray[Any]], owner: str) -> None:
    """Raise ValueError if one of the arrays that belong to a variable may not be written."""
    for name, array in arrays.items():
        if not array.flags.writeable:
            raise ValueError(
                f"{_label(owner, name)} is read-only; expected a writable array, which is updated in place: pass a copy"
                if name == "var"
                else f"{_label(owner, name)} is read-only; expected a writable array, which steps and flushes update. "
                "What was unpickled from read-only buffers, or comes from another process, is to be copied first, as "
                "with copy.deepcopy((optimizer, variables))"
            )


def refuse_closed(array: NDArray[Any], label: str) -> None:
    """Raise ValueError if an array lies in a mapped file that was closed: to touch it ends the process."""
    mapping = _beneath(array)[1]
    if mapping is not None and mapping.closed:
        raise ValueError(f"{label}: its np.memmap was closed; open the file anew")


def _in_words(noted: Noted, array: NDArray[Any]) -> str:
    """Say how an array has changed; nothing if it has not."""
    for field, was, now in zip(Layout._fields, noted.layout, Layout.of(array), strict=True):
        if was != now:
            return f"its {field} was {was} and is now {now}"
    if list(map(_extent, _beneath(array)[0])) != noted.bases:
        return "the array of which it is a view was resized"
    if noted.mapped is not None and not noted.mapped.holds:
        return "its np.memmap was closed or resized"
    return ""


def _beneath(array: NDArray[Any]) -> tuple[list[NDArray[Any]], mmap | None]:
    """Return the arrays of which an array is a view, and the mapped file in which they lie."""
    bases = []
    base = array.base
    while isinstance(base, np.ndarray):
        bases.append(base)
        base = base.base
    return bases, base if isinstance(base, mmap) else None


def _extent(array: NDArray[Any]) -> tuple[int, int]:
    return Layout.of(array).address, array.nbytes


def _label(owner: str, name: str) -> str:
    return owner if name == "var" else f"{name} of {owner}"


def _start(mapping: mmap) -> int:
    return int(np.frombuffer(mapping, np.uint8).__array_interface__["data"][0])
