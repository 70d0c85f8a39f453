"""Rows by key as :meth:`KeyedTable.export` has written them, for programs that serve them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.atomic_file import as_paths
from ..files.safetensors_file import DamagedCheckpointError, map_tensors
from .keys import NO_KEYS

FORMAT = "numba_rmsprop rows by key"
KEYS, ROWS, DROPPED = "keys", "rows", "dropped"
"""The arrays of a file."""


def read_export(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the keys and the rows of an export, or of one and the changes that follow it.

    Parameters
    ----------
    path : path-like, or sequence of them
        The file of :meth:`KeyedTable.export`; or that and those of :meth:`KeyedTable.export_changes`, in order.

    Returns
    -------
    keys : ndarray of int64, shape (n,)
        In no certain order.
    rows : ndarray, shape (n, columns)
        The row of each. Of a single file, both are read-only views of it.

    Raises
    ------
    DamagedCheckpointError
        If a file is not as it was written, or no export; a ValueError.
    ValueError
        If the files do not follow one another.
    OSError
        If one cannot be read.
    """
    paths = as_paths(path)
    if not paths:
        raise ValueError("path: expected an export, or one and its changes in order, got no path")
    identity, keys, rows = "", NO_KEYS, np.empty((0, 0))
    for number, each in enumerate(paths):
        tensors, metadata = map_tensors(each, partial(_check_format, each))
        if metadata["follows"] != identity:
            expected = f"the changes that follow {paths[number - 1]}" if number else "a whole export"
            raise ValueError(f"{each}: expected {expected}, got another file; pass them in order")
        new_keys, new_rows, dropped = _checked_arrays(tensors, each)
        if not number:
            keys, rows = new_keys, new_rows
        elif new_rows.shape[1:] != rows.shape[1:] or new_rows.dtype != rows.dtype:
            raise DamagedCheckpointError(f"{each}: expected rows like those of {paths[0]}, got {new_rows.dtype} others")
        else:
            kept = ~np.isin(keys, np.concatenate([new_keys, dropped]))
            keys, rows = np.concatenate([keys[kept], new_keys]), np.concatenate([rows[kept], new_rows])
        identity = metadata["identity"]
    return keys, rows


def _checked_arrays(
    tensors: Mapping[str, NDArray[Any]], path: str
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]:
    nothing = np.empty(0)
    keys, rows, dropped = tensors.get(KEYS, nothing), tensors.get(ROWS, nothing), tensors.get(DROPPED, NO_KEYS)
    right = keys.dtype == dropped.dtype == np.int64 and (keys.ndim, dropped.ndim, rows.ndim) == (1, 1, 2)
    if not right or len(keys) != len(rows):
        raise DamagedCheckpointError(f"{path}: expected keys (int64) and a row for each, got {sorted(tensors)}")
    return keys, rows, dropped


def _check_format(path: str, metadata: Mapping[str, str]) -> None:
    complete = {"identity", "follows"} <= set(metadata)
    if metadata.get("format") != FORMAT or metadata.get("format_version") != "1" or not complete:
        raise DamagedCheckpointError(f"{path}: expected a file of KeyedTable.export, got {metadata.get('format')!r}")
