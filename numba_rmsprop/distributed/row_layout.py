"""The rows, or keys, that each rank owns, and the words in which ranks ask one another for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.key_map import find_key_owners
from ..kernels.row_dealing import find_owners


@dataclass(frozen=True)
class Layout:
    """Rows of a table, dealt to ranks as :mod:`numba_rmsprop.kernels.row_dealing` says.

    Row ``r`` is number ``r // ranks`` of the rows of its owner, so that rows keep their order.

    Examples
    --------
    >>> layout = Layout(10, 3)
    >>> [layout.rows_of(rank).tolist() for rank in range(3)]
    [[0, 3, 6], [1, 4, 7, 9], [2, 5, 8]]
    """

    rows: int
    ranks: int

    def length(self, rank: int) -> int:
        """Return how many rows a rank owns."""
        blocks, left = divmod(self.rows, self.ranks)
        (first,) = self.owners_of(np.array([blocks * self.ranks]))
        return blocks + int((rank - first) % self.ranks < left)

    def rows_of(self, rank: int, begin: int = 0, end: int | None = None) -> NDArray[np.int64]:
        """Return the rows of a rank, in order: all, or those from number ``begin`` to ``end``."""
        firsts = np.arange(begin, self.length(rank) if end is None else end) * self.ranks
        return firsts + (rank - self.owners_of(firsts)) % self.ranks

    def owners_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the owner of each row."""
        owners = np.empty(len(rows), np.int64)
        find_owners(rows, self.ranks, owners)
        return owners

    def as_words(self, rows: NDArray[np.int64], repeats: NDArray[np.bool]) -> NDArray[Any]:
        """Return rows as owners are asked for them: twice their numbers there, plus 1 if a batch repeats them."""
        small = self.rows // self.ranks < 2**31 - 1
        return (2 * (rows // self.ranks) + repeats).astype(np.uint32 if small else np.uint64)

    @staticmethod
    def of_words(words: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool]]:
        """Return the numbers of rows among those of their owner, and whether the batch that asks repeats them."""
        return (words >> 1).astype(np.int64), (words & 1).astype(bool)


@dataclass(frozen=True)
class KeyLayout:
    """Keys, of which each rank owns those with its part of all hashes."""

    ranks: int

    def owners_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the owner of each key."""
        owners = np.empty(len(keys), np.int64)
        find_key_owners(keys, self.ranks, owners)
        return owners

    def as_words(self, keys: NDArray[np.int64], repeats: NDArray[np.bool]) -> NDArray[Any]:
        """Return keys as owners are asked for them: 8 bytes, and one more that tells whether a batch repeats them."""
        words = np.empty((len(keys), 9), np.uint8)
        words[:, :8] = keys[:, np.newaxis].view(np.uint8)
        words[:, 8] = repeats
        return words

    @staticmethod
    def of_words(words: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool]]:
        """Return the keys, and whether the batch that asks repeats them."""
        return np.ascontiguousarray(words[:, :8]).view(np.int64)[:, 0], words[:, 8].astype(bool)
