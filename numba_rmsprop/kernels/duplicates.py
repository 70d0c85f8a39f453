"""Entries of an indexed gradient that belong to the same row: found, chained and added up.

One pass over the indices sets a bit for each row and so finds every entry whose row has come before. The bits take an
eighth of a byte per row and stay in the cache where the clocks would not: of a row that comes once, nothing else is
read before the row itself is. Where a row comes again, its clock becomes the mark ``-1 - i``: ``i`` is the position
of its second entry, and the clock's value is kept there.

Entry ``i`` of a gradient is ``values[i]``, or, where it is a product of a sparse matrix and ``values``, which is never
formed, ``values[sources[i]] * weights[i]``. Sources and weights are None where they are not needed.

Scratch
-------
seen
    uint8, shape (rows // 8 + 1,): a bit for each row; 0 between launches.
following
    int32, shape (n,). 0 at the first entry of each row; at any other, minus the position of the row's next
    entry, or ``LAST``.
chains
    int32, shape (n, 2). At the second entry of a row: the position of its latest entry so far, and the row's clock.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .aliased_access import load_grad, load_out, store_out
from .jit import Integer, compiled_inline, compiled_inside, inlined
from .lanes import LINE, WIDE, lanes_of, load_grad_lanes, prefetch_lanes, store_out_lanes
from .prefetch import prefetch_row

LAST = np.int32(-(2**31))

ENTRIES_AHEAD = 4
"""Prefetch distance, in entries of a row."""

CLEARED_AT_ONCE = 8
"""Up to as many bytes of ``seen`` for each entry, it takes less time to clear all of them."""

# Numba wraps negative indices around, some five instructions for each access; an unsigned index cannot be negative.
unsigned = np.uint64


@compiled_inside
def mark_duplicates(indices: Any, clocks: Any, seen: Any, following: Any, chains: Any) -> None:
    """Chain the entries of each row in the order in which they come.

    On one thread: on two it took longer, since the bits of different threads lie in the same cache lines.
    """
    for i in range(indices.size):
        following[i] = 0
    for i in range(indices.size):
        row = unsigned(indices[i])
        byte = row >> unsigned(3)
        bit = np.uint8(1) << np.uint8(row & unsigned(7))
        if seen[byte] & bit == 0:
            seen[byte] |= bit
            continue
        clock = np.int64(clocks[row])
        following[i] = LAST
        if clock >= 0:
            clocks[row] = -1 - i
            chains[i, 0] = i
            chains[i, 1] = clock
        else:
            second = unsigned(-1 - clock)
            following[chains[second, 0]] = -i
            chains[second, 0] = i
    if seen.size < CLEARED_AT_ONCE * indices.size:
        for k in range(seen.size):
            seen[k] = 0
    else:
        for i in range(indices.size):
            seen[unsigned(indices[i]) >> unsigned(3)] = 0


@compiled_inline
def source_of(sources: Any, i: Integer) -> Any:
    """Return the row of ``values`` that an entry takes."""
    if sources is None:
        return np.int64(i)
    return np.int64(sources[unsigned(i)])


@compiled_inline
def weight_of(weights: Any, i: Integer) -> Any:
    """Return the factor of an entry."""
    if weights is None:
        return np.float32(1)  # by which LLVM drops a product, of float64 too
    return weights[unsigned(i)]


@inlined
def _entry_after(i: Integer, following: Any) -> Integer:
    """Return the row's next entry after one that is not its first; -1 if there is none."""
    after = np.int64(following[unsigned(i)])
    return -after if after != LAST else np.int64(-1)


@compiled_inside
def _add_lanes(
    like: Any, j: Integer, worker: Integer, first: Integer, second: Integer, entries: Any, following: Any, sums: Any
) -> None:
    """Add up some columns from ``j``."""
    _, values, sources, weights = entries
    total = load_grad_lanes(like, values, source_of(sources, first), j) * weight_of(weights, first)
    i, ahead, lead = second, second, 0
    while i >= 0:
        if ahead >= 0:
            prefetch_lanes(like, values, source_of(sources, ahead), j)
            ahead = _entry_after(ahead, following)
        lead += 1
        if lead > ENTRIES_AHEAD:
            total = total + load_grad_lanes(like, values, source_of(sources, i), j) * weight_of(weights, i)
            i = _entry_after(i, following)
    store_out_lanes(sums, worker, j, total)


@compiled_inside
def _add_columns(
    begin: Integer, worker: Integer, first: Integer, second: Integer, entries: Any, following: Any, sums: Any
) -> None:
    """Add up the columns from ``begin`` on."""
    _, values, sources, weights = entries
    source, weight = source_of(sources, first), weight_of(weights, first)
    for j in range(begin, values.shape[1]):
        store_out(sums, worker, j, load_grad(values, source, j) * weight)
    i, ahead, lead = second, second if begin == 0 else np.int64(-1), 0
    while i >= 0:
        if ahead >= 0:
            prefetch_row(values, source_of(sources, ahead))
            ahead = _entry_after(ahead, following)
        lead += 1
        if lead > ENTRIES_AHEAD:
            source, weight = source_of(sources, i), weight_of(weights, i)
            for j in range(begin, values.shape[1]):
                store_out(sums, worker, j, load_out(sums, worker, j) + load_grad(values, source, j) * weight)
            i = _entry_after(i, following)


@compiled_inside
def add_duplicates(worker: Integer, first: Integer, second: Integer, entries: Any, following: Any, sums: Any) -> None:
    """Add up, in ``sums[worker]``, the entries of a row in order; ``second`` is -1 where there is only one."""
    columns, j = np.int64(entries[1].shape[1]), np.int64(0)
    wide, count = lanes_of(WIDE, entries[1])
    while 0 < count <= columns - j:
        _add_lanes(wide, j, worker, first, second, entries, following, sums)
        j += count
    line, count = lanes_of(LINE, entries[1])
    while 0 < count <= columns and j < columns:
        j = min(j, columns - count)  # some once more: they are summed anew, and so come to the same
        _add_lanes(line, j, worker, first, second, entries, following, sums)
        j += count
    if j < columns:
        _add_columns(j, worker, first, second, entries, following, sums)
