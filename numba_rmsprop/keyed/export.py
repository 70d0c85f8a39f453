"""Rows by key for programs that serve them: as safetensors, whole or what has changed, and as word2vec's formats."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..arrays.storage import DTYPES, NAMES, computed_in
from ..files.atomic_file import as_paths, write_atomically
from ..files.safetensors_file import (
    CHUNK_ITEMS,
    ComputedRows,
    DamagedCheckpointError,
    Tensor,
    map_tensors,
    write_tensors,
)
from ..runtime.whole_calls import check_undisturbed, in_turn, mark, undisturbed
from .rows_by_key import NO_KEYS, RowsByKey

FORMAT = "numba_rmsprop rows by key"
KEYS, ROWS, DROPPED = "keys", "rows", "dropped"
"""The arrays of a file."""

ReadRows = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass
class Exported:
    """The last export of a table: its identity, after how many steps it was, and the keys that were dropped since."""

    identity: str
    steps: int
    dropped: list[NDArray[np.int64]] = field(default_factory=list)


class Exporting(RowsByKey):
    """The calls of a table that write its rows for other programs."""

    _exported: Exported | None

    def export(self, path: str | os.PathLike[str], *, dtype: DTypeLike = np.float32, averaged: bool = False) -> None:
        """Write keys and current rows to a safetensors file, for programs that serve them.

        The file holds ``keys``, int64 of shape (n,), and ``rows``, shape (n, columns). It takes its name when it is
        complete and on the disk. Any reader of safetensors can read it; :func:`read_export` also checks every byte.

        Parameters
        ----------
        path : path-like
            The file.
        dtype : {float32, float16, bfloat16, float64}, default float32
            The dtype of the rows in the file.
        averaged : bool, default False
            Write the moving averages of the rows (``use_ema``).

        Raises
        ------
        TypeError
            If there is no such dtype.
        ValueError
            If a number is too large for it, or there is no average.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import tempfile, numpy as np
        >>> from numba_rmsprop.keyed import KeyedTable, read_export
        >>> table, folder = KeyedTable(2, initializer="ones"), tempfile.mkdtemp()
        >>> rows = table.rows([7, 8], create=True)
        >>> table.export(f"{folder}/rows.safetensors", dtype=np.float16)
        >>> gone, rows = table.evict(max_rows=1), table.rows([9], create=True)
        >>> table.export_changes(f"{folder}/changes.safetensors", dtype=np.float16)
        >>> read_export([f"{folder}/rows.safetensors", f"{folder}/changes.safetensors"])
        (array([9, 8]), array([[1., 1.],
               [1., 1.]], dtype=float16))
        """
        in_turn(undisturbed, self._export, path, np.dtype(dtype), averaged, None)

    def export_changes(
        self, path: str | os.PathLike[str], *, dtype: DTypeLike = np.float32, averaged: bool = False
    ) -> None:
        """Write what has changed since the last :meth:`export` or :meth:`export_changes`.

        The file holds ``keys`` and ``rows`` that are new or have changed, and ``dropped``, keys that were evicted.
        Where also rows that no step touches move (in exact mode with momentum or weight decay, or with ``averaged``),
        these are all rows. The metadata ``follows`` is the ``identity`` of the file before it.

        Parameters and exceptions are those of :meth:`export`.

        Raises
        ------
        ValueError
            Also if nothing was exported since the table was made or loaded.
        """
        if self._exported is None:
            raise ValueError("export_changes: expected an export to go on from, got none; call table.export first")
        in_turn(undisturbed, self._export, path, np.dtype(dtype), averaged, self._exported)

    def export_word2vec(
        self,
        path: str | os.PathLike[str],
        *,
        names: Mapping[int, str] | None = None,
        binary: bool = True,
        averaged: bool = False,
    ) -> None:
        """Write names and current rows, float32, in a format of word2vec, as ``KeyedVectors`` of gensim reads it.

        Parameters
        ----------
        path : path-like
            The file.
        names : mapping of int to str, optional
            The name of each key: without white space, and all different. By default the digits of the key.
        binary : bool, default True
            True for the binary format, False for text with 9 digits, which tell float32 exactly.
        averaged : bool, default False
            As for :meth:`export`.

        Raises
        ------
        KeyError
            If a key has no name.
        ValueError
            If a name is empty, has white space or comes twice, or there is no average.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> from numba_rmsprop.keyed import KeyedTable, text_keys
        >>> table, words, path = KeyedTable(2), ["cat", "dog"], tempfile.mkdtemp() + "/words.txt"
        >>> rows = table.rows(text_keys(words), create=True)
        >>> table.export_word2vec(path, names=dict(zip(text_keys(words).tolist(), words)), binary=False)
        >>> pathlib.Path(path).read_text().splitlines()
        ['2 2', 'cat 0 0', 'dog 0 0']
        """
        in_turn(undisturbed, self._export_word2vec, path, names, binary, averaged)

    def _note_dropped(self, keys: NDArray[np.int64]) -> None:
        if self._exported is not None:
            self._exported.dropped.append(keys)

    def _export(
        self, path: str | os.PathLike[str], dtype: np.dtype[Any], averaged: bool, before: Exported | None
    ) -> None:
        if dtype not in DTYPES:
            raise TypeError(f"dtype: expected {NAMES}, got {dtype}")
        since, read = mark(), self._reader(averaged)
        rows, dropped = self._map.rows_in_use(), NO_KEYS
        if before is not None:
            # What was touched in the last step before it may be a new row that came after it.
            all_move = averaged or self.optimizer.known.called(self._var).values_fall_behind
            rows = rows if all_move else rows[self._map.touched[rows] >= before.steps]
            dropped = np.unique(np.concatenate([NO_KEYS, *before.dropped]))
            dropped = dropped[self._map.find(dropped) < 0]
        keys = self._map.row_keys[rows].copy()

        def part(begin: int, end: int) -> NDArray[Any]:
            found = read(rows[begin:end])
            with np.errstate(over="ignore"):
                cast = found.astype(dtype)
            overflows = (np.isinf(cast.astype(found.dtype)) & np.isfinite(found)).any(axis=1)
            if overflows.any():
                raise ValueError(
                    f"dtype: expected one that holds the row of key {keys[begin:end][overflows][0]}, got {dtype}; take "
                    "float32"
                )
            return cast

        identity, steps = secrets.token_hex(16), self._map.steps
        tensors: dict[str, Tensor] = {KEYS: keys, ROWS: ComputedRows((len(rows), self._var.shape[1]), dtype, part)}
        if before is not None:
            tensors[DROPPED] = dropped
        follows = "" if before is None else before.identity
        metadata = {"format": FORMAT, "format_version": "1", "identity": identity, "follows": follows}

        def note() -> None:
            self._exported = Exported(identity, steps)

        write_tensors(path, tensors, metadata, partial(check_undisturbed, since), note)

    def _export_word2vec(
        self, path: str | os.PathLike[str], names: Mapping[int, str] | None, binary: bool, averaged: bool
    ) -> None:
        since, read, rows = mark(), self._reader(averaged), self._map.rows_in_use()
        keys = self._map.row_keys[rows].tolist()
        words = list(map(str, keys)) if names is None else [names[key] for key in keys]
        _check_words(words)
        columns = self._var.shape[1]
        line = " ".join(["%.9g"] * columns)

        def lines() -> Iterator[bytes]:
            at_once = max(1, CHUNK_ITEMS // columns)
            for begin in range(0, len(rows), at_once):
                values = read(rows[begin : begin + at_once]).astype("<f4")
                for word, row in zip(words[begin : begin + at_once], values, strict=True):
                    yield f"{word} ".encode() + (row.tobytes() if binary else (line % tuple(row)).encode()) + b"\n"

        def write(file: BinaryIO) -> None:
            file.write(f"{len(rows)} {columns}\n".encode())
            file.writelines(lines())
            check_undisturbed(since)

        write_atomically(path, write)

    def _reader(self, averaged: bool) -> ReadRows:
        """Return what reads current rows, or averages, and leaves those behind as they are."""
        own = self.optimizer.known.called(self._var)
        if averaged:
            self.optimizer.averaged_slots(self._var)

        def read(rows: NDArray[np.int64]) -> NDArray[Any]:
            out = np.empty((len(rows), self._var.shape[1]), computed_in(self._var.dtype))
            if averaged:
                own.gather_slot("average", rows, out, in_place=False)
            else:
                own.gather(rows, out, in_place=False)
            return out

        return read


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
        The row of each.

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
    for each in paths:
        tensors, metadata = map_tensors(each, partial(_check_format, each))
        if metadata["follows"] != identity:
            expected = f"the changes that follow {paths[paths.index(each) - 1]}" if identity else "a whole export"
            raise ValueError(f"{each}: expected {expected}, got another file; pass them in order")
        new = tensors[KEYS]
        if not identity:
            keys, rows = new, tensors[ROWS]
        else:
            kept = ~np.isin(keys, np.concatenate([new, tensors[DROPPED]]))
            keys, rows = np.concatenate([keys[kept], new]), np.concatenate([rows[kept], tensors[ROWS]])
        identity = metadata["identity"]
    return keys, rows


def _check_format(path: str, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT or metadata.get("format_version") != "1":
        raise DamagedCheckpointError(f"{path}: expected a file of KeyedTable.export, got {metadata.get('format')!r}")


def _check_words(words: Sequence[str]) -> None:
    """Raise ValueError unless names are such as the format can hold."""
    wrong = next((word for word in words if word.split() != [word]), None)
    if wrong is not None:
        raise ValueError(f"names: expected words without white space, got {wrong!r:.100}")
    if len(set(words)) < len(words):
        twice = Counter(words).most_common(1)[0][0]
        raise ValueError(f"names: expected a different one for each key, got {twice!r:.100} twice")
