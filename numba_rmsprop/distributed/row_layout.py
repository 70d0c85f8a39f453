"""The rows that each rank owns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
