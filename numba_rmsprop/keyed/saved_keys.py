"""The keys of a table in its files: all of them, or those that have come and gone since the file before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..files.checkpoint_validation import Contents, in_file

KEYS, FREE, TOUCHED, COUNTS = "keys", "free rows", "touched", "counts"
"""The names in a file: the key of each row that is in it, rows without a key, when rows were touched, and three counts:
rows that were ever given, rows without a key that stay as they were, and steps.

Where a file holds some rows of the table only, it holds their keys, and the rows without a key that come after those
that stay as they were. So a new key comes with its row, and one that was dropped with the number of its row."""


class SavedKeys(NamedTuple):
    """What files say of the keys of a table.

    Attributes
    ----------
    keys : ndarray of int64, shape (given,)
        The key of each row that was ever given.
    free : ndarray of int64
        Rows whose keys were dropped.
    touched : ndarray of int32, shape (given,)
        After how many steps each row was touched last.
    steps : int
        How many steps the table has taken.
    """

    keys: NDArray[np.int64]
    free: NDArray[np.int64]
    touched: NDArray[np.int32]
    steps: int


def saved_keys(files: Sequence[Contents], clocks: NDArray[np.int32], steps: int) -> SavedKeys:
    """Return the keys that a file and its deltas hold, which were found to fit together in all else.

    ``clocks`` and ``steps``, of the rows, stand for what the first versions of the format did not hold.

    Raises
    ------
    ValueError
        If they are no different keys of rows of the table.
    """
    found = SavedKeys(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32), 0)
    for file in files:
        found = _after(file, found, clocks, steps)
    if not np.array_equal(np.unique(found.free), np.sort(found.free)):
        _refuse(files[-1])
    kept = np.delete(found.keys, found.free)
    if len(np.unique(kept)) < len(kept):
        _refuse(files[-1])
    return found


def _after(file: Contents, before: SavedKeys, clocks: NDArray[np.int32], steps: int) -> SavedKeys:
    """Return the keys after a file, from those of the file before it."""
    keys, free = _array(file, KEYS, np.int64), _array(file, FREE, np.int64)
    rows: Any = file.tensors.get(in_file(0, "rows"))
    if COUNTS in file.weights:
        counts, touched = _array(file, COUNTS, np.int64), _array(file, TOUCHED, np.int32)
    else:
        rows, counts, touched = None, np.array([len(keys), 0, steps]), clocks[: len(keys)]
    if rows is None:  # all of them
        rows, before = np.arange(len(keys)), before._replace(keys=keys)
    given, staying, steps = map(int, counts) if len(counts) == 3 else (-1, -1, -1)
    if not len(before.keys) <= given <= file.variables[0]["shape"][0] or not 0 <= staying <= len(before.free):
        _refuse(file)
    rows = rows[rows < given]
    free = np.concatenate([before.free[:staying], free])
    fits = len(rows) == len(keys) == len(touched) and bool(((free >= 0) & (free < given)).all())
    if not fits or (touched.size and touched.min() < 0) or steps < 0:
        _refuse(file)
    all_keys, all_touched = np.zeros(given, np.int64), np.zeros(given, np.int32)
    for target, old, new in ((all_keys, before.keys, keys), (all_touched, before.touched, touched)):
        target[: len(old)] = old
        target[rows] = new
    return SavedKeys(all_keys, free, all_touched, steps)


def _array(file: Contents, name: str, dtype: type) -> NDArray[Any]:
    found = file.tensors.get(f"weights.{name}")
    if found is None or found.dtype != dtype or found.ndim != 1:
        _refuse(file)
    return found


def _refuse(file: Contents) -> NoReturn:
    raise ValueError(
        f"{file.path}: expected different keys for at most {file.variables[0]['shape'][0]} rows, got others"
    )
