"""The way of a batch's rows from their owners, and of their gradients to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..kernels.row_dealing import deal_rows, link_ranks
from ..mpi.coalescing import add, number
from ..mpi.ranks import Ranks
from .row_layout import Layout

MOST_LINKED = 0xFFFE
"""How many ranks a link can name."""


def link_words(ranks: int) -> tuple[int, type[np.unsignedinteger]]:
    """Return how many bits a rank takes in a link, and the dtype of links as they are sent."""
    return (8, np.uint16) if ranks < 0xFF else (16, np.uint32)


class Buffers:
    """Memory for rows, kept from step to step: new pages take longer to come than rows take to go through them.

    Parameters
    ----------
    columns : int
        Elements to a row.
    dtype : numpy dtype
        Of what.
    """

    def __init__(self, columns: int, dtype: np.dtype[Any]) -> None:
        self._columns = columns
        self._dtype = dtype
        self._free: list[FloatArray] = []

    def take(self, rows: int) -> FloatArray:
        """Return an array of shape (rows, columns), whatever stands in it."""
        items = rows * self._columns
        for k, flat in enumerate(self._free):
            if flat.size >= items:
                del self._free[k]
                break
        else:
            self._free = self._free[1:]  # too small: it will be wanted no more
            flat = np.empty(items + items // 4 + 1, self._dtype)
        return flat[:items].reshape(rows, self._columns)

    def give_back(self, *arrays: FloatArray) -> None:
        """Take arrays back that came from :meth:`take`."""
        for array in arrays:
            assert array.base is not None
            self._free.append(array.base)


class Request:
    """The distinct rows of a batch, ordered by owner.

    Parameters
    ----------
    indices : ndarray of int64, shape (n,)
        Rows of the table, checked.
    layout : Layout
        Who owns which.

    Attributes
    ----------
    places : ndarray of int64, shape (n,)
        Where the row of each entry stands among the distinct ones.
    wanted : ndarray of uint32 or uint64, shape (m,)
        What owners are asked for, see :func:`numba_rmsprop.kernels.row_dealing.deal_rows`.
    counts : ndarray of int64, shape (ranks,)
        How many rows each rank is asked for.
    """

    def __init__(self, indices: NDArray[np.int64], layout: Layout) -> None:
        n = len(indices)
        self.indices = indices.copy()  # the caller may reuse the array before the gradients come
        numbers, chains = number(self.indices)
        m = len(chains[0])
        small = layout.rows // layout.ranks < 2**31 - 1
        self.places, self.order = np.empty(n, np.int64), np.empty(m, np.int64)
        self.wanted: NDArray[np.unsignedinteger] = np.empty(m, np.uint32 if small else np.uint64)
        counts = np.empty(layout.ranks + 1, np.int64)
        deal_rows(self.indices, layout.ranks, numbers, chains, self.places, self.order, self.wanted, counts)
        self.counts = counts[:-1]
        self.following = chains[1]


class Route:
    """The rows that this rank asks of others, and those that others ask of it.

    Parameters
    ----------
    ranks : Ranks
        The ranks.
    request : Request
        What this rank asks for.
    asked_counts : ndarray of int64, shape (ranks,)
        How many rows each rank asks of this one.
    in_order : bool
        Whether sums are to be taken in the order of the whole batch.

    Attributes
    ----------
    asked : ndarray of int64, shape (k,)
        Rows of the shard that all ranks ask for, rank after rank.
    """

    def __init__(self, ranks: Ranks, request: Request, asked_counts: NDArray[np.int64], *, in_order: bool) -> None:
        self.ranks = ranks
        self.request = request
        self.asked_counts = asked_counts
        words = np.empty(int(asked_counts.sum()), request.wanted.dtype)
        ranks.exchange(request.wanted, request.counts, words, asked_counts)
        self.asked = (words >> 1).astype(np.int64)
        self._words: NDArray[np.unsignedinteger] | None = words if in_order else None
        self._stepped: Any = slice(None)
        self._step_counts = asked_counts
        self._send_counts = request.counts
        self._targets: NDArray[np.int64] | None = None

    def begin_reply(self, rows: FloatArray, received: FloatArray) -> Any:
        """Begin to send ``rows``, one for each of :attr:`asked`, and to receive one for each row of the request."""
        return self.ranks.begin_exchange(rows, self.asked_counts, received, self.request.counts)

    def push(self, values: FloatArray, buffers: Buffers) -> tuple[NDArray[np.int64], FloatArray]:
        """Send the sums of gradients to their owners.

        Parameters
        ----------
        values : ndarray, shape (n, columns)
            A gradient for each entry of the batch.
        buffers : Buffers
            Where to take memory; that of ``sums`` is to be given back.

        Returns
        -------
        rows : ndarray of int64, shape (k,)
            Rows of this rank's shard, which may repeat.
        sums : ndarray, shape (k, columns)
            What to add up for them, in this order.
        """
        if self._words is not None:
            self._link(self._words)
            self._words = None
        request = self.request
        m = len(request.order)
        todo = np.zeros((m, 3), np.int64)
        todo[:, 0] = np.arange(m)
        todo[:, 1] = todo[:, 0] if self._targets is None else self._targets
        sums = buffers.take(m)
        if self._targets is None:
            add(todo, values, request.order, request.following, sums)
        else:
            self._add_in_order(todo, values, sums)
        direct = int(self._send_counts.sum())
        received = buffers.take(int(self._step_counts.sum()))
        self.ranks.exchange(sums[:direct], self._send_counts, received, self._step_counts)
        buffers.give_back(sums)
        return self.asked[self._stepped], received

    def _link(self, words: NDArray[Any]) -> None:
        """Learn from the owners which sums go on from another rank's, or are gone on from by one."""
        ranks, request = self.ranks, self.request
        bits, word = link_words(ranks.size)
        asked_links = np.empty(len(self.asked), np.uint32)
        askers = np.repeat(np.arange(ranks.size, dtype=np.int32), self.asked_counts)
        link_ranks(number(self.asked)[1], askers, (words & 1).astype(bool), bits, asked_links)
        links = np.empty(len(request.order), word)
        ranks.exchange(asked_links.astype(word), self.asked_counts, links, request.counts)
        if asked_links.any():
            stepped = asked_links & (2**bits - 1) == 0
            self._stepped = np.flatnonzero(stepped)
            self._step_counts = np.bincount(askers[stepped], minlength=ranks.size)
        if not links.any():
            return
        self._came_from = (links >> bits).astype(np.int64) - 1
        self._goes_to = (links & (2**bits - 1)).astype(np.int64) - 1
        owners = np.repeat(np.arange(ranks.size), request.counts)
        direct = self._goes_to < 0
        self._send_counts = np.bincount(owners[direct], minlength=ranks.size)
        # Sums for the owners first, then those for each rank that goes on from them, in an order that it knows, too.
        passed = np.flatnonzero(~direct)
        passed = passed[np.lexsort((request.wanted[passed] >> 1, owners[passed], self._goes_to[passed]))]
        self._targets = np.empty(len(links), np.int64)
        self._targets[direct] = np.arange(np.count_nonzero(direct))
        self._targets[passed] = np.arange(len(links) - len(passed), len(links))
        received = np.flatnonzero(self._came_from >= 0)
        order = np.lexsort((request.wanted[received] >> 1, owners[received], self._came_from[received]))
        self._received = received[order]

    def _add_in_order(self, todo: NDArray[np.int64], values: FloatArray, sums: FloatArray) -> None:
        """Add up the entries of every row, some of them after those of the ranks before this one."""
        request, targets = self.request, self._targets
        assert targets is not None
        goes_on = self._came_from >= 0
        add(todo[~goes_on], values, request.order, request.following, sums)
        if len(self._received):
            sources = self._came_from[self._received]
            before = np.empty((len(sources), values.shape[1]), values.dtype)
            for rank in np.unique(sources):
                first, last = np.searchsorted(sources, [rank, rank + 1])
                self.ranks.receive_pass(before[first:last], int(rank))
            sums[targets[self._received]] = before
            todo[:, 2] = goes_on
            add(todo[goes_on], values, request.order, request.following, sums)
        passed = sums[int(self._send_counts.sum()) :]
        heirs = np.sort(self._goes_to[self._goes_to >= 0])
        sent = []
        for rank in np.unique(heirs):
            first, last = np.searchsorted(heirs, [rank, rank + 1])
            sent.append(self.ranks.begin_pass(passed[first:last], int(rank)))
        for request_sent in sent:
            self.ranks.finish(request_sent)
