"""Checks of the arguments of a sharded table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.storage import DTYPES, NAMES, computed_in
from ..arrays.variables import FloatArray, Occupied
from ..gradients.conversion import as_gradient, as_known
from ..gradients.indexed_slices import as_indices, check_rows
from ..gradients.rows import Entries, Rows
from ..gradients.scipy_sparse import readable
from ..gradients.sparse_product import SparseProduct
from .row_exchange import MOST_LINKED

ORDERS = ("batch", "rank")
NO_VALUES, NOWHERE = np.empty(0, np.float32), Occupied([])

MOST_ENTRIES = 2**31 - 2
"""Entries of the largest batch, since kernels chain entries by 32-bit positions."""


def check_table(rows: Any, columns: Any, dtype: np.dtype[Any], sum_order: str, ranks: int) -> None:
    """Raise TypeError or ValueError if an argument of a new table is wrong."""
    for name, value, least, most in (("rows", rows, 0, 2**62), ("columns", columns, 1, 2**31 - 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
            raise ValueError(f"{name}: expected a whole number from {least} to {most}, got {value!r}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype: expected {NAMES}, in native byte order, got {dtype}")
    if sum_order not in ORDERS:
        raise ValueError(f"sum_order: expected one of {ORDERS}, got {sum_order!r}")
    if sum_order == "batch" and ranks > MOST_LINKED:
        raise ValueError(f"sum_order: expected 'rank' on {ranks} ranks, got 'batch'")


def checked_indices(indices: ArrayLike, rows: int) -> NDArray[np.int64]:
    """Return rows as int64; raise TypeError, ValueError or IndexError if they are not rows of the table."""
    wanted = as_indices(indices, "indices")
    check_count(wanted, "indices")
    checked, _ = check_rows(wanted.reshape(-1), NO_VALUES, rows, "indices", NOWHERE)
    return checked.reshape(wanted.shape)


def check_count(indices: NDArray[np.integer], name: str) -> None:
    """Raise ValueError if a batch has too many entries."""
    if indices.size > MOST_ENTRIES:
        raise ValueError(f"{name}: expected at most {MOST_ENTRIES:,}, got {indices.size:,}")


def check_root(root: Any, ranks: int) -> None:
    """Raise ValueError if there is no such rank."""
    if isinstance(root, bool) or root not in range(ranks):
        raise ValueError(f"root: expected a rank from 0 to {ranks - 1}, got {root!r}")


def checked_entries(
    indices: ArrayLike | SparseProduct,
    values: ArrayLike | None,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    *,
    finite: bool,
) -> Entries:
    """Return the gradients of a step as kernels take them; raise as :func:`checked_indices` and `checked_values`."""
    if not isinstance(indices, SparseProduct):
        wanted = checked_indices(indices, shape[0])
        grads = checked_values(values, wanted, shape, dtype, finite=finite)
        return wanted.reshape(-1), grads, None, None
    if values is not None:
        raise TypeError(f"values: expected None beside a SparseProduct, which has its own, got {type(values).__name__}")
    table = np.broadcast_to(dtype.type(0), shape)
    gradient = as_gradient(indices, table, "the table", NOWHERE)
    assert isinstance(gradient, Rows)
    gradient.values = gradient.values.astype(computed_in(dtype), copy=False)
    if finite:
        gradient.check_finite(table, "the table")
    return gradient.entries


def checked_values(
    values: ArrayLike | None, wanted: NDArray[np.int64], shape: tuple[int, int], dtype: np.dtype[Any], *, finite: bool
) -> FloatArray:
    """Return gradients as a contiguous array of shape (n, columns).

    Raises
    ------
    TypeError, ValueError
        If the dtype or shape does not fit.
    FloatingPointError
        If, with ``finite``, one is NaN or infinite.
    """
    known = as_known(values, "values")
    if not isinstance(known, (np.ndarray, list)):
        raise TypeError(f"values: expected an array, got {type(values).__name__}")
    computed = computed_in(dtype)
    grads = known if isinstance(known, np.ndarray) else np.asarray(known, computed)
    if grads.dtype not in (dtype, computed):
        raise TypeError(f"values: expected dtype {computed}, got {grads.dtype}")
    grads = grads.astype(computed, copy=False)
    expected = (*wanted.shape, shape[1])
    if grads.shape != expected:
        raise ValueError(f"values: expected shape {expected}, got {grads.shape}")
    flat = readable(grads).reshape(-1, shape[1])
    if finite:
        Rows(flat, wanted.reshape(-1)).check_finite(np.broadcast_to(dtype.type(0), shape), "the table")
    return flat


def output(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], occupied: Occupied) -> FloatArray:
    """Return ``out``, or a new array; raise ValueError if ``out`` does not fit, or lies in memory that steps write."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or not (out.flags.carray and out.dtype == dtype and out.shape == shape):
        got = f"({out.dtype}, shape {out.shape})" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out: expected a writable C-contiguous array ({dtype}, shape {shape}), got {got}")
    if occupied.reached_by(out):
        raise ValueError("out: expected memory apart from the table's shard and its slots; pass a new array")
    return out
