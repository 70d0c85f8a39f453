"""Bags of rows, as pooled embeddings have them: checked indices, offsets and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from ..arrays.variables import FloatArray, as_array, type_name
from ..kernels.bags import Bags, first_bad_offset, number_entries
from .indexed_slices import MAX_ENTRIES, as_indices
from .scipy_sparse import check_stored

MODES = ("sum", "mean")


def sources_of(bags: Bags) -> NDArray[np.int32]:
    """Return the bag of each entry."""
    found = np.empty(len(bags.indices), np.int32)
    number_entries(bags.offsets, found)
    return found


def as_bags(
    indices: ArrayLike,
    offsets: ArrayLike | None,
    weights: ArrayLike | None,
    mode: str,
    *,
    include_last_offset: bool,
    dtype: np.dtype[Any],
) -> Bags:
    """Check bags as callers hand them over; that indices are rows of a table is checked where the table is known.

    Raises
    ------
    TypeError
        If indices or offsets are not integers, or the weights of another dtype.
    ValueError
        If the shapes do not fit, offsets fall, do not start at 0 or end elsewhere than the entries do, or the mode is
        unknown or a mean of weighted rows.
    """
    rows = as_indices(indices, "indices")
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if mode == "mean" and weights is not None:
        raise ValueError("weights: expected None with mode='mean'; divide them by their sums and take mode='sum'")
    if offsets is None:
        if rows.ndim != 2:
            raise ValueError(
                f"offsets: expected where each bag begins, since indices have shape {rows.shape}; without offsets, "
                "expected indices of shape (bags, rows of each)"
            )
        ends = np.arange(len(rows) + 1) * rows.shape[1]
    else:
        ends = _as_ends(offsets, rows, include_last_offset)
    if rows.size > MAX_ENTRIES or len(ends) > MAX_ENTRIES:
        raise ValueError(
            f"indices: expected at most {MAX_ENTRIES:,}, in as many bags, got {rows.size:,} in {len(ends) - 1:,}"
        )
    factors = None if weights is None else as_weights(weights, rows.shape, dtype)
    return Bags(rows.reshape(-1).astype(np.int64, copy=False), ends, factors, mode == "mean")


def _as_ends(offsets: ArrayLike, rows: NDArray[np.integer], include_last_offset: bool) -> NDArray[np.int64]:
    given = as_indices(offsets, "offsets")
    if rows.ndim != 1 or given.ndim != 1:
        raise ValueError(f"offsets: expected shape (bags,), and indices (n,), got {given.shape} and {rows.shape}")
    if include_last_offset and not len(given):
        raise ValueError("offsets: expected at least the last one, the number of entries, got none")
    ends = np.array(given if include_last_offset else np.append(given, len(rows)), np.int64)
    check_ends(ends, len(rows), include_last_offset=include_last_offset)
    return ends


def check_ends(ends: NDArray[np.integer], entries: int, *, include_last_offset: bool) -> None:
    """Raise ValueError unless the offsets of bags, with the last one, rise from 0 to the number of entries."""
    bad = int(first_bad_offset(ends, entries))
    if bad >= 0:
        raise ValueError(_what_is_wrong(bad, ends, entries, include_last_offset))


def _what_is_wrong(bad: int, ends: NDArray[np.integer], entries: int, include_last_offset: bool) -> str:
    if bad == 0 and len(ends) == 1:
        return f"offsets: expected a bag for {entries} indices, got none"
    got = f"offsets[{bad}] is {ends[bad]}"
    if bad == 0:
        return f"{got}; expected 0, where the first bag begins"
    if include_last_offset and bad == len(ends) - 1 and ends[bad - 1] <= ends[bad] < entries:
        return f"{got}; expected the number of indices, {entries}, as the last one (include_last_offset=True)"
    least = ends[bad - 1]
    return f"{got}; expected at least offsets[{bad - 1}], {least}, and at most the number of indices, {entries}"


def as_weights(weights: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "weights") -> FloatArray:
    """Return the factors of entries, one for each, of ``dtype``; integers and booleans are converted."""
    factors = as_array(weights, name)
    if factors.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, one for each index, got {factors.shape}")
    if factors.dtype.kind in "iub" or not factors.size:
        factors = factors.astype(dtype)
    if factors.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {factors.dtype}; convert them, with .astype({dtype})")
    return factors.reshape(-1)


def as_bags_of_matrix(matrix: Any, name: str, dtype: np.dtype[Any]) -> tuple[Bags, int]:
    """Return the rows of a scipy.sparse matrix as weighted bags, and the number of its columns.

    Raises
    ------
    TypeError
        If it is none of scipy.sparse, or has floats of another dtype.
    ValueError, IndexError
        If it has not two axes, or its arrays do not fit together.
    """
    if not scipy.sparse.issparse(matrix):
        raise TypeError(
            f"{name}: expected a scipy.sparse array, got {type_name(matrix)}; indices and offsets are for "
            "SparseProduct.from_bags and gather_sum"
        )
    if matrix.ndim != 2:
        raise ValueError(f"{name}: expected shape (examples, rows), got {matrix.shape}")
    check_stored(matrix, name)
    try:
        rows = matrix.asformat("csr")
    except OverflowError as error:  # lists and dicts may hold any number
        raise ValueError(f"{name}: expected numbers that fit its dtype, {matrix.dtype}") from error
    if rows.nnz > MAX_ENTRIES:
        raise ValueError(f"{name}: expected at most {MAX_ENTRIES:,} entries, got {rows.nnz:,}")
    ends = np.array(rows.indptr, np.int64)
    stored = slice(0, int(ends[-1]))  # what lies behind the last row belongs to none
    factors = as_weights(rows.data[stored], (int(ends[-1]),), dtype, name)
    return Bags(rows.indices[stored].astype(np.int64), ends, factors, mean=False), rows.shape[1]
