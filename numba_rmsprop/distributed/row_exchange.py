"""Rows that a batch fetches from their owners, and sums of gradients that it sends to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..gradients.coalescing import chain_rows, sum_rows
from ..gradients.rows import Entries
from ..kernels.row_dealing import link_ranks
from ..mpi.messages import Counts
from ..mpi.ranks import Ranks
from ..runtime.interrupts import Uninterrupted
from .row_layout import KeyLayout, Layout

MOST_LINKED = 0xFFFE
"""The most ranks whose numbers fit into a link."""


def link_format(ranks: int) -> tuple[int, type[np.unsignedinteger]]:
    """Return how many bits of a link hold a rank, and the dtype in which links are sent."""
    return (8, np.uint16) if ranks < 0xFF else (16, np.uint32)


class Buffers:
    """Memory for rows, kept from step to step: to get new pages takes longer than to copy rows into old ones."""

    def __init__(self, columns: int, dtype: np.dtype[Any]) -> None:
        self._columns = columns
        self._dtype = dtype
        self._free: list[FloatArray] = []

    def take(self, rows: int) -> FloatArray:
        """Return an array of shape (rows, columns) with any values."""
        items = rows * self._columns
        for k, flat in enumerate(self._free):
            if flat.size >= items:
                del self._free[k]
                break
        else:
            del self._free[:1]  # too small, and batches of this size will come again
            flat = np.empty(items + items // 4 + 1, self._dtype)
        return flat[:items].reshape(rows, self._columns)

    def give_back(self, *arrays: FloatArray) -> None:
        """Take back arrays that came from :meth:`take`."""
        for array in arrays:
            assert array.base is not None
            self._free.append(array.base)


class Gathering:
    """Rows that are on their way; from :meth:`ShardedTable.gather_async`."""

    def __init__(self, finish: Callable[[], FloatArray]) -> None:
        self._finish = finish

    def wait(self) -> FloatArray:
        """Return the rows, as they were when they were asked for; ranks need not wait in the same order."""
        with Uninterrupted():
            rows = self._finish()
            self._finish = lambda: rows
        return rows


class Request:
    """The distinct rows of a batch, sorted by owner.

    Attributes
    ----------
    places : ndarray of int64, shape (n,)
        The place of each entry's row among the sorted rows.
    order : ndarray of int64, shape (m,)
        The first entry of each sorted row.
    following : ndarray of int32, shape (n,)
        The next entry of the same row after each entry, or -1.
    wanted : ndarray, m words
        The sorted rows as their owners are asked for them, see :meth:`Layout.as_words`.
    counts : ndarray of int64, shape (ranks,)
        How many rows each rank is asked for.
    """

    def __init__(self, indices: NDArray[np.int64], layout: Layout | KeyLayout) -> None:
        self.indices = indices.copy()  # the caller may reuse the array before the gradients come
        self.layout = layout
        numbers, (firsts, self.following) = chain_rows(self.indices)
        rows = self.indices[firsts]
        owners = layout.owners_of(rows)
        sorting = np.argsort(owners.astype(np.min_scalar_type(layout.ranks)), kind="stable")  # short integers sort fast
        self.wanted = layout.as_words(rows, self.following[firsts] >= 0)[sorting]
        self.order = firsts[sorting].astype(np.int64)
        self.counts = np.bincount(owners, minlength=layout.ranks)
        places = np.empty(len(rows), np.int64)
        places[sorting] = np.arange(len(rows))
        self.places = places[numbers]


class Route:
    """The rows that this rank asks of the others, and those that they ask of it.

    Parameters
    ----------
    ranks, request
        The ranks, and the rows that this one asks for.
    asked_counts : ndarray of int64, shape (ranks,)
        How many rows each rank asks of this one.
    in_order : bool
        True to add up gradients in the order of the whole batch.

    Attributes
    ----------
    asked : ndarray of int64, shape (k,)
        Rows of the shard, or keys, that ranks ask for, rank after rank.
    """

    def __init__(self, ranks: Ranks, request: Request, asked_counts: Counts, *, in_order: bool) -> None:
        self.ranks = ranks
        self.request = request
        self.asked_counts = asked_counts
        words = np.empty((int(asked_counts.sum()), *request.wanted.shape[1:]), request.wanted.dtype)
        ranks.all_to_all(request.wanted, request.counts, words, asked_counts)
        self.asked, self._repeats = request.layout.of_words(words)
        self._needs_links = in_order
        self._passing: Passing | None = None
        self._stepped: Any = slice(None)
        """Those of :attr:`asked` whose sums come to this rank: all but those that one rank passes on to another."""
        self._step_counts = asked_counts

    def begin_reply(self, rows: FloatArray, received: FloatArray) -> Any:
        """Begin to send ``rows``, one for each of :attr:`asked`, and to receive one for each row of the request."""
        return self.ranks.begin_all_to_all(rows, self.asked_counts, received, self.request.counts)

    def push(self, entries: Entries, buffers: Buffers) -> tuple[NDArray[np.int64], FloatArray]:
        """Send the sums of gradients to the owners of the rows.

        ``entries`` holds the gradients of the batch; ``sums`` must be given back to ``buffers``.

        Returns
        -------
        rows : ndarray of int64, shape (k,)
            Rows of this rank's shard, or its keys, which may repeat.
        sums : ndarray, shape (k, columns)
            Gradients of these rows, to be added up in this order.
        """
        if self._needs_links:
            self._link()
            self._needs_links = False
        request, passing = self.request, self._passing
        m = len(request.order)
        sums = buffers.take(m)
        if passing is None:
            rows = np.zeros((m, 3), np.int64)
            rows[:, 0] = rows[:, 1] = np.arange(m)
            sum_rows(rows, entries, request.order, request.following, sums)
            to_owners, send_counts = sums, request.counts
        else:
            passing.add_up(self.ranks, request, entries, sums)
            to_owners, send_counts = sums[: passing.kept], passing.send_counts
        received = buffers.take(int(self._step_counts.sum()))
        self.ranks.all_to_all(to_owners, send_counts, received, self._step_counts)
        buffers.give_back(sums)
        return self.asked[self._stepped], received

    def _link(self) -> None:
        """Find out, as the owner of rows, which ranks pass on sums to one another, and tell them."""
        ranks, request = self.ranks, self.request
        bits, dtype = link_format(ranks.size)
        asked_links = np.empty(len(self.asked), np.uint32)
        askers = np.repeat(np.arange(ranks.size, dtype=np.int32), self.asked_counts)
        link_ranks(chain_rows(self.asked)[1], askers, self._repeats, bits, asked_links)
        links = np.empty(len(request.order), dtype)
        ranks.all_to_all(asked_links.astype(dtype), self.asked_counts, links, request.counts)
        if asked_links.any():
            stepped = asked_links & (2**bits - 1) == 0
            self._stepped = np.flatnonzero(stepped)
            self._step_counts = np.bincount(askers[stepped], minlength=ranks.size)
        if links.any():
            self._passing = Passing(request, links, bits)


class Passing:
    """Sums that ranks pass on to one another, to add up gradients in the order of the whole batch.

    ``links`` holds the link of each row, from its owner: see :func:`numba_rmsprop.kernels.row_dealing.link_ranks`.

    Attributes
    ----------
    kept : int
        How many sums go to the owners: the first ones; the others go to ranks that go on from them.
    send_counts : ndarray of int64, shape (ranks,)
        How many of these each owner gets.
    """

    def __init__(self, request: Request, links: NDArray[np.unsignedinteger], bits: int) -> None:
        m, ranks = len(links), len(request.counts)
        source, target = (links >> bits).astype(np.int64) - 1, (links & (2**bits - 1)).astype(np.int64) - 1
        owners, rows = np.repeat(np.arange(ranks), request.counts), request.indices[request.order]

        def grouped(others: NDArray[np.int64]) -> NDArray[np.int64]:
            """Return the rows shared with other ranks, rank after rank, in an order that both ranks know."""
            (found,) = np.nonzero(others >= 0)
            return found[np.lexsort((rows[found], owners[found], others[found]))]

        direct, passed = np.flatnonzero(target < 0), grouped(target)
        self.kept = len(direct)
        self.send_counts = np.bincount(owners[direct], minlength=ranks)
        self._places = np.empty(m, np.int64)
        self._places[np.concatenate([direct, passed])] = np.arange(m)
        self._continued = grouped(source)
        self._sources, self._targets = source[self._continued], target[passed]

    def add_up(self, ranks: Ranks, request: Request, entries: Entries, sums: FloatArray) -> None:
        """Add up the entries of every row, some of them after those of the ranks before this one."""
        m = len(request.order)
        continued = np.zeros(m, bool)
        continued[self._continued] = True
        rows = np.stack([np.arange(m), self._places, continued], axis=1)
        sum_rows(rows[~continued], entries, request.order, request.following, sums)
        if continued.any():
            before = np.empty((len(self._sources), sums.shape[1]), sums.dtype)
            for rank, part in _parts(self._sources):
                ranks.receive(before[part], rank)
            sums[self._places[self._continued]] = before
            sum_rows(rows[continued], entries, request.order, request.following, sums)
        for sending in [ranks.begin_send(sums[self.kept :][part], rank) for rank, part in _parts(self._targets)]:
            ranks.finish(sending)


def _parts(ranks: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Return each rank that is in a sorted array, and where it is."""
    for rank in np.unique(ranks).tolist():
        yield rank, slice(*np.searchsorted(ranks, [rank, rank + 1]))
