"""Fields of NumPy's array objects, read from memory.

To ask a hundred arrays for their address, shape and flags through Python takes longer than to step them. The layout is
that of ``PyArrayObject_fields`` in NumPy's ``ndarraytypes.h``, behind Python's object header, whose last field is the
type; :func:`numba_rmsprop.arrays.noted_layouts.layout_is_known` tries it out before anything relies on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .aliased_access import peek
from .jit import Integer, compiled, inlined

DATA, AXES, SHAPE, STRIDES, DTYPE, FLAGS = 0, 8, 16, 24, 40, 48
"""Offsets of the fields from the end of the header. AXES and FLAGS are 32 bits wide."""

CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400

KIND, KIND_MASK = 8, ~(0xFF << 24)
"""Offset and mask of what tells dtypes apart: kind, letter, byte order, and number. Equal dtypes may be different
objects, as those of unpickled arrays are."""

ID, BYTES, MEMBER, AXIS_COUNT, LENGTHS = 0, 1, 2, 3, 4
"""Columns of ``known``. MEMBER is -1 where the variable is not small; the lengths of the axes take the last ones."""

ARRAY, PLACE, DTYPE_KIND, AXES_OR_ITEMS, STEPS = 0, 1, 2, 3, 4
"""Columns of ``layouts``, a row for each array: where its object and its memory lie, its dtype, how many axes it has,
and their lengths and strides. Of a base, whose memory a view shares, only the items count: -1 minus how many."""

MOVED, READ_ONLY = 1, 2


@inlined
def _axes(fields: Integer) -> Any:
    return peek(fields + AXES) & 0x7FFFFFFF


@inlined
def _has_shape(fields: Integer, k: Integer, known: Any) -> Any:
    axes = known[k, AXIS_COUNT]
    same = _axes(fields) == axes
    if same:
        shape = peek(fields + SHAPE)
        for axis in range(axes):
            same &= peek(shape + 8 * axis) == known[k, LENGTHS + axis]
    return same


@inlined
def _lies_as(fields: Integer, header: Integer, k: Integer, layouts: Any) -> Any:
    """Return whether an array is what row ``k`` of ``layouts`` says."""
    axes, expected = _axes(fields), layouts[k, AXES_OR_ITEMS]
    lengths, strides = peek(fields + SHAPE), peek(fields + STRIDES)
    if expected < 0:
        items = np.int64(1)
        for axis in range(axes):
            items *= peek(lengths + 8 * axis)
        return items == -1 - expected
    same = axes == expected and peek(peek(fields + DTYPE) + header + KIND) & KIND_MASK == layouts[k, DTYPE_KIND]
    if same:
        for axis in range(axes):
            same &= peek(lengths + 8 * axis) == layouts[k, STEPS + 2 * axis]
            same &= peek(strides + 8 * axis) == layouts[k, STEPS + 2 * axis + 1]
    return same


@compiled
def changes_of(layouts: Any, header: Integer) -> Integer:
    """Return MOVED if the memory of an array is not where or what it was, plus READ_ONLY if one may not be written.

    Parameters
    ----------
    layouts : ndarray of int64, shape (arrays, 4 + 2 * most axes)
        What they were; see above. They must be alive.
    header : int
        The size of an object's header.
    """
    moved, read_only = False, False
    for k in range(layouts.shape[0]):
        fields = layouts[k, ARRAY] + header
        moved |= peek(fields + DATA) != layouts[k, PLACE] or not _lies_as(fields, header, k, layouts)
        read_only |= layouts[k, AXES_OR_ITEMS] >= 0 and peek(fields + FLAGS) & WRITEABLE == 0
    found: Integer = MOVED * moved + READ_ONLY * read_only
    return found


@inlined
def _is_occupied(low: Integer, high: Integer, occupied: Any) -> Any:
    """Return whether memory from ``low`` to ``high`` reaches into what is occupied."""
    first, end = 0, occupied.shape[1]
    while first < end:
        middle = (first + end) // 2
        if occupied[0, middle] < high:
            first = middle + 1
        else:
            end = middle
    return first > 0 and occupied[1, first - 1] > low


OUTSIDE, OCCUPIED, INDICES_OCCUPIED = 1, 2, 4


@compiled
def inspect_rows(indices: Any, values: Any, rows: Integer, occupied: Any) -> Integer:
    """Return OUTSIDE if an index lies outside [0, rows), plus what of both arrays may reach into ``occupied``.

    OCCUPIED stands for ``values``, and INDICES_OCCUPIED for indices that reach into it or into ``values``.

    ``indices`` is int64, shape (n,); both are contiguous; ``occupied`` is that of :func:`collect_addresses`.
    """
    outside = 0
    for i in range(indices.size):  # without an early exit, so that LLVM vectorises it
        outside |= (indices[i] < 0) | (indices[i] >= rows)
    first, low = indices.ctypes.data, values.ctypes.data
    last, high = first + indices.size * indices.itemsize, low + values.size * values.itemsize
    reaches = low < high and _is_occupied(low, high, occupied)
    inside = first < last and ((first < high and low < last) or _is_occupied(first, last, occupied))
    found: Integer = OUTSIDE * (outside != 0) + OCCUPIED * reaches + INDICES_OCCUPIED * inside
    return found


@compiled
def collect_addresses(
    objects: Any,
    known: Any,
    layouts: Any,
    occupied: Any,
    header: Integer,
    array_type: Integer,
    kind: Integer,
    addresses: Any,
) -> bool:
    """Write the addresses of the small variables' gradients into ``addresses[:, 0]``.

    Parameters
    ----------
    objects : ndarray of int64, shape (2 * n,)
        Where the objects lie: a gradient, its variable, the next gradient, and so on.
    known : ndarray of int64, shape (n, 4 + most axes)
        What each variable is; see above.
    layouts : ndarray of int64
        What the arrays of all of them were; see above.
    occupied : ndarray of int64, shape (2, pieces)
        Memory that the step writes: where each piece starts, in order, and the highest end so far.
    header, array_type : int
        The size of an object's header, and where the type ``ndarray`` lies.
    kind : int
        What the dtype of small variables has at ``KIND``.
    addresses : ndarray of int64, shape (members, 5)
        Where to write.

    Returns
    -------
    bool
        Whether all arrays are as they were, and all gradients of small variables contiguous arrays of their dtype and
        shape in memory of their own. If not, ``addresses`` is of no use.
    """
    if changes_of(layouts, header) != 0:
        return False
    for k in range(known.shape[0]):
        fine = objects[2 * k + 1] == known[k, ID]
        member = known[k, MEMBER]
        if fine and member >= 0:
            fields = objects[2 * k] + header
            fine = peek(fields - 8) == array_type
            if fine:
                flags = peek(fields + FLAGS)
                data = peek(fields + DATA)
                fine = (
                    peek(peek(fields + DTYPE) + header + KIND) & KIND_MASK == kind
                    and flags & CONTIGUOUS != 0
                    and flags & ALIGNED != 0
                    and _has_shape(fields, k, known)
                    and not _is_occupied(data, data + known[k, BYTES], occupied)
                )
                addresses[member, 0] = data
        if not fine:
            return False
    return True
