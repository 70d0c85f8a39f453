"""The rows that each rank owns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.row_dealing import first_owners


@dataclass(frozen=True)
class Layout:
    """Rows of a table, dealt to ranks as :mod:`numba_rmsprop.kernels.row_dealing` says.

    Row ``r`` is number ``r // ranks`` of the rows of its owner, so that rows keep their order.

    Parameters
    ----------
    rows, ranks : int
        How many rows the table has, and how many ranks share them.

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
        whole, left = divmod(self.rows, self.ranks)
        return whole + int((rank - self._first_owners(whole, whole + 1)[0]) % self.ranks < left)

    def rows_of(self, rank: int, begin: int = 0, end: int | None = None) -> NDArray[np.int64]:
        """Return the rows of a rank, in order: all, or those from number ``begin`` to ``end``."""
        last = self.length(rank) if end is None else end
        blocks = np.arange(begin, last)
        return blocks * self.ranks + (rank - self._first_owners(begin, last)) % self.ranks

    def owners_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the owner of each row; the rows are in order."""
        if not len(rows):
            return np.empty(0, np.int64)
        blocks = rows // self.ranks
        first = int(blocks[0])
        return (rows + self._first_owners(first, int(blocks[-1]) + 1)[blocks - first]) % self.ranks

    def _first_owners(self, begin: int, end: int) -> NDArray[np.int64]:
        out = np.empty(end - begin, np.int64)
        first_owners(begin, self.ranks, out)
        return out
