"""Sums of the rows of bags: the forward pass of pooled embeddings, and of a sparse matrix times a table."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .aliased_access import load_out, load_var, store_out
from .duplicates import unsigned, weight_of
from .jit import Integer, compiled, compiled_inline, compiled_inside, inlined
from .lanes import LINE, WIDE, lanes_of, load_var_lanes, prefetch_lanes, store_out_lanes
from .parallel_loop import run_shares
from .prefetch import prefetch_row

ROWS_AHEAD = 8
"""Prefetch distance, in entries."""


class Bags(NamedTuple):
    """Bags of rows.

    Attributes
    ----------
    indices : ndarray of int64, shape (n,)
        The row of each entry.
    offsets : ndarray of int64, shape (bags + 1,)
        Bag ``b`` has entries ``offsets[b]`` to ``offsets[b + 1]``.
    weights : ndarray, shape (n,), or None
        The factor of each entry.
    mean : bool
        Whether a bag stands for the mean of its rows, and not for their sum.
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.floating] | None
    mean: bool


@compiled
def first_bad_offset(offsets: Any, entries: Integer) -> Integer:
    """Return the first offset that is less than the one before it, or more than there are entries; or -1.

    The first must be 0, and the last the number of entries.
    """
    before = np.int64(0)
    for k in range(offsets.size):
        if offsets[k] < before or offsets[k] > entries or (k == 0 and offsets[k] != 0):
            return k
        before = np.int64(offsets[k])
    return np.int64(-1) if before == entries else np.int64(offsets.size - 1)


@compiled
def number_entries(offsets: Any, bags_of: Any) -> None:
    """Write the bag of each entry into ``bags_of``."""
    for bag in range(offsets.size - 1):
        for i in range(offsets[bag], offsets[bag + 1]):
            bags_of[unsigned(i)] = bag


@inlined
def _first_bag(share: Integer, shares: Integer, offsets: Any) -> Integer:
    """Return where the bags of a share begin, if each bag takes as long as its entries and one more."""
    least = share * (offsets[offsets.size - 1] + offsets.size - 1) // shares
    begin, end = np.int64(0), np.int64(offsets.size - 1)
    while begin < end:
        middle = (begin + end) // 2
        if offsets[middle] + middle < least:
            begin = middle + 1
        else:
            end = middle
    return begin


@compiled_inline
def _sum_lanes(
    like: Any, j: Integer, bag: Integer, begin: Integer, end: Integer, ahead: Integer, bags: Any, var: Any, out: Any
) -> None:
    """Add up some columns from ``j`` of the rows of entries ``begin`` to ``end``."""
    indices, weights = bags.indices, bags.weights
    if begin + ROWS_AHEAD < ahead:
        prefetch_lanes(like, var, indices[unsigned(begin + ROWS_AHEAD)], j)
    total = load_var_lanes(like, var, indices[unsigned(begin)], j) * weight_of(weights, begin)
    for i in range(begin + 1, end):
        if i + ROWS_AHEAD < ahead:
            prefetch_lanes(like, var, indices[unsigned(i + ROWS_AHEAD)], j)
        total = total + load_var_lanes(like, var, indices[unsigned(i)], j) * weight_of(weights, i)
    store_out_lanes(out, bag, j, total)


@compiled_inline
def _sum_columns(
    first: Integer, bag: Integer, begin: Integer, end: Integer, ahead: Integer, bags: Any, var: Any, out: Any
) -> None:
    """Add up the columns from ``first`` on."""
    for i in range(begin, end):
        if first == 0 and i + ROWS_AHEAD < ahead:
            prefetch_row(var, bags.indices[unsigned(i + ROWS_AHEAD)])
        row, weight = np.int64(bags.indices[unsigned(i)]), weight_of(bags.weights, i)
        if i == begin:
            for j in range(first, var.shape[1]):
                store_out(out, bag, j, load_var(var, row, j) * weight)
        else:
            for j in range(first, var.shape[1]):
                store_out(out, bag, j, load_out(out, bag, j) + load_var(var, row, j) * weight)


@compiled_inline
def _sum_bag(bag: Integer, begin: Integer, end: Integer, ahead: Integer, bags: Any, var: Any, out: Any) -> None:
    """Add up the rows of entries ``begin`` to ``end``; those up to ``ahead`` are worth a prefetch."""
    columns, j = np.int64(var.shape[1]), np.int64(0)
    if end <= begin + 1:  # nothing to add up: LLVM copies a row faster by itself
        _sum_columns(np.int64(0), bag, begin, end, ahead, bags, var, out)
        return
    wide, count = lanes_of(WIDE, var)
    while 0 < count <= columns - j:
        _sum_lanes(wide, j, bag, begin, end, ahead, bags, var, out)
        j += count
    line, count = lanes_of(LINE, var)
    while 0 < count <= columns and j < columns:
        j = min(j, columns - count)  # some once more: they are summed anew, and so come to the same
        _sum_lanes(line, j, bag, begin, end, ahead, bags, var, out)
        j += count
    if j < columns:
        _sum_columns(j, bag, begin, end, ahead, bags, var, out)


@compiled_inside
def _sum_share(share: Integer, shares: Integer, bags: Any, var: Any, out: Any) -> None:
    offsets = bags.offsets
    first, last = _first_bag(share, shares, offsets), _first_bag(share + 1, shares, offsets)
    for bag in range(first, last):
        begin, end = np.int64(offsets[bag]), np.int64(offsets[bag + 1])
        _sum_bag(np.int64(bag), begin, end, np.int64(offsets[last]), bags, var, out)
        if begin == end:
            for j in range(var.shape[1]):
                store_out(out, bag, j, 0)
        elif bags.mean and end > begin + 1:
            for j in range(var.shape[1]):
                store_out(out, bag, j, load_out(out, bag, j) / (end - begin))


@compiled
def sum_bags(team: Any, bags: Any, var: Any, out: Any) -> None:
    """Write the sum of each bag's rows of ``var``, or their mean, into ``out``, shape (bags, columns)."""
    run_shares(_sum_share, team, (bags, var, out))


@compiled
def stack_tables(indices: Any, ends: Any, starts: Any, stacked: Any) -> Integer:
    """Write rows counted from the first of several tables, and return the first that lies outside its own, or -1.

    Entries ``ends[f]`` to ``ends[f + 1]`` are rows of table ``f``, which begins at row ``starts[f]``.
    """
    for feature in range(starts.size - 1):
        rows = starts[feature + 1] - starts[feature]
        for i in range(ends[feature], ends[feature + 1]):
            if indices[i] < 0 or indices[i] >= rows:
                return np.int64(i)
            stacked[i] = indices[i] + starts[feature]
    return np.int64(-1)
