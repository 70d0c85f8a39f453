"""Rows by key for programs that serve them: as safetensors, whole or what has changed, and as word2vec's formats."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..arrays.storage import DTYPES, NAMES, computed_in
from ..files.atomic_file import as_path, write_atomically
from ..files.safetensors_file import CHUNK_ITEMS, ComputedRows, Tensor, write_tensors
from ..runtime.whole_calls import check_undisturbed, in_turn, mark, undisturbed
from .keys import NO_KEYS
from .read_export import DROPPED, FORMAT, KEYS, ROWS
from .rows_by_key import RowsByKey

ReadRows = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass
class Exported:
    """The last export of a table.

    Attributes
    ----------
    identity : str
        What the next one follows.
    steps : int
        After how many steps it was.
    dropped : list of ndarray of int64
        The keys that were dropped since.
    paths : tuple of str
        The files that go on from one another.
    dtype, averaged
        Of its rows, and so of the changes that follow.
    """

    identity: str
    steps: int
    dropped: list[NDArray[np.int64]]
    paths: tuple[str, ...]
    dtype: np.dtype[Any]
    averaged: bool


class Exporting(RowsByKey):
    """The calls of a table that write its rows for other programs."""

    _exported: Exported | None
    _dropped_meanwhile: list[NDArray[np.int64]] | None
    """Keys that were dropped since an export began that is under way."""

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
        >>> table.export_changes(f"{folder}/changes.safetensors")
        >>> read_export([f"{folder}/rows.safetensors", f"{folder}/changes.safetensors"])
        (array([9, 8]), array([[1., 1.],
               [1., 1.]], dtype=float16))
        """
        if np.dtype(dtype) not in DTYPES:
            raise TypeError(f"dtype: expected {NAMES}, got {np.dtype(dtype)}")
        in_turn(undisturbed, self._export, as_path(path), (np.dtype(dtype), averaged))

    def export_changes(self, path: str | os.PathLike[str]) -> None:
        """Write what has changed since the last :meth:`export` or :meth:`export_changes`, in its dtype.

        The file holds ``keys`` and ``rows`` that are new or have changed, and ``dropped``, keys that were evicted.
        Where also rows that no step touches move (in exact mode with momentum, weight decay or averages), these are all
        rows. The metadata ``follows`` is the ``identity`` of the file before it.

        Parameters
        ----------
        path : path-like
            The file; another one than those it goes on from.

        Raises
        ------
        ValueError
            If nothing was exported since the table was made or loaded, the file is one that this one would go on from,
            or a number is too large for the dtype.
        OSError
            If the file cannot be written.
        """
        in_turn(undisturbed, self._export, as_path(path), None)

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
            If a name is no text, is empty, has white space or comes twice, a number is too large for float32, or there
            is no average.
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
        for dropped in (self._exported.dropped if self._exported else None, self._dropped_meanwhile):
            if dropped is not None:
                dropped.append(keys)

    def _export(self, path: str, kind: tuple[np.dtype[Any], bool] | None) -> None:
        """Write a whole export of some dtype, averaged or not; or with None the changes since the last one."""
        if self._dropped_meanwhile is not None:
            raise RuntimeError("export: expected no call amid another export; let a signal handler set a flag")
        self._dropped_meanwhile = []
        try:
            self._write_export(path, kind, self._dropped_meanwhile)
        finally:
            self._dropped_meanwhile = None

    def _write_export(
        self, path: str, kind: tuple[np.dtype[Any], bool] | None, meanwhile: list[NDArray[np.int64]]
    ) -> None:
        before, here = (None if kind else self._exported), os.path.realpath(path)
        if before is not None:
            kind = before.dtype, before.averaged
            if here in before.paths:
                raise ValueError(f"{path}: expected a new file, got one that the changes would go on from")
        if kind is None:
            raise ValueError("export_changes: expected an export to go on from, got none; call table.export first")
        dtype, averaged = kind
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
            return _cast(read(rows[begin:end]), keys[begin:end], dtype)

        identity, steps = secrets.token_hex(16), self._map.steps
        tensors: dict[str, Tensor] = {KEYS: keys, ROWS: ComputedRows((len(rows), self._var.shape[1]), dtype, part)}
        if before is not None:
            tensors[DROPPED] = dropped
        follows = "" if before is None else before.identity
        metadata = {"format": FORMAT, "format_version": "1", "identity": identity, "follows": follows}
        paths = (*(before.paths if before else ()), here)

        def note() -> None:
            self._exported = Exported(identity, steps, meanwhile, paths, dtype, averaged)

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
                some = rows[begin : begin + at_once]
                values = _cast(read(some), self._map.row_keys[some], np.dtype("<f4"))
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


def _cast(rows: NDArray[Any], keys: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return rows in another dtype; raise ValueError if a number is too large for it."""
    with np.errstate(over="ignore"):
        cast = rows.astype(dtype)
    overflows = (np.isinf(cast.astype(rows.dtype)) & np.isfinite(rows)).any(axis=1)
    if overflows.any():
        key = keys[overflows][0]
        raise ValueError(f"dtype: expected one that holds the row of key {key}, got {dtype}; take a wider one")
    return cast


def _check_words(words: Sequence[str]) -> None:
    """Raise ValueError unless names are such as the format can hold."""
    wrong = [word for word in words if not isinstance(word, str) or word.split() != [word]][:1]
    if wrong:
        raise ValueError(f"names: expected words without white space, got {wrong[0]!r:.100}")
    if len(set(words)) < len(words):
        twice = Counter(words).most_common(1)[0][0]
        raise ValueError(f"names: expected a different one for each key, got {twice!r:.100} twice")
