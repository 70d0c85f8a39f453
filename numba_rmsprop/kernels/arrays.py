"""What NumPy's array objects say of themselves, read where they lie.

To ask a hundred arrays for their address, shape and flags through Python takes longer than to step them. The layout is
that of ``PyArrayObject_fields`` in NumPy's ``ndarraytypes.h``, behind Python's object header, whose last field is the
type; :func:`numba_rmsprop.plans.layout_is_known` tries it out before anything relies on it.
"""

from __future__ import annotations

from typing import Any

from .jit import Integer, compiled, inlined
from .memory import peek

DATA, AXES, SHAPE, DTYPE, FLAGS = 0, 8, 16, 40, 48
"""Where the fields are, from the end of the header. AXES and FLAGS are 32 bits wide."""

CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400

KIND, KIND_MASK = 8, ~(0xFF << 24)
"""Where a dtype says what it is: kind, letter, byte order, a byte without meaning, and number. Equal dtypes may be
different objects: those of unpickled arrays are."""

ID, ADDRESS, BYTES, MEMBER, AXIS_COUNT, LENGTHS = 0, 1, 2, 3, 4, 5
"""Columns of ``known``. MEMBER is -1 where the variable is not small; the lengths of the axes take the last ones."""


@inlined
def _has_shape(fields: Integer, k: Integer, known: Any) -> Any:
    axes = known[k, AXIS_COUNT]
    same = peek(fields + AXES) & 0x7FFFFFFF == axes
    if same:
        shape = peek(fields + SHAPE)
        for axis in range(axes):
            same &= peek(shape + 8 * axis) == known[k, LENGTHS + axis]
    return same


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


OUTSIDE, OCCUPIED = 1, 2


@compiled
def inspect_rows(indices: Any, values: Any, rows: Integer, occupied: Any) -> Integer:
    """Return OUTSIDE if an index lies outside [0, rows), plus OCCUPIED if ``values`` may reach into ``occupied``.

    ``indices`` is int64, shape (n,); ``values`` is contiguous; ``occupied`` is that of :func:`collect_addresses`.
    """
    outside = 0
    for i in range(indices.size):  # without an early exit, so that LLVM vectorises it
        outside |= (indices[i] < 0) | (indices[i] >= rows)
    low = values.ctypes.data
    reaches = values.size > 0 and _is_occupied(low, low + values.size * values.itemsize, occupied)
    found: Integer = OUTSIDE * (outside != 0) + OCCUPIED * reaches
    return found


@compiled
def collect_addresses(
    objects: Any,
    known: Any,
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
    known : ndarray of int64, shape (n, 5 + most axes)
        What each variable was; see above.
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
        Whether all variables are as they were, and all gradients of small ones contiguous arrays of their dtype and
        shape in memory of their own. If not, ``addresses`` is of no use.
    """
    for k in range(known.shape[0]):
        fields = objects[2 * k + 1] + header
        fine = objects[2 * k + 1] == known[k, ID]
        if fine:
            fine = peek(fields + DATA) == known[k, ADDRESS] and peek(fields + FLAGS) & WRITEABLE != 0
            fine = fine and _has_shape(fields, k, known)
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
