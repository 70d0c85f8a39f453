"""A table whose rows are shared out among ranks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arrays.storage import as_stored, computed_in
from ..arrays.variables import FloatArray
from ..gradients.sparse_product import SparseProduct
from ..mpi.messages import Counts
from ..mpi.ranks import Ranks, Refusal
from ..runtime.interrupts import Uninterrupted
from ..settings.step_numbers import StepNumbers
from ..state.initial_values import Initializer, Uniform, check_initializer
from ..state.reading import copy_rows
from .initial_values import fill_shard
from .row_exchange import Buffers, Gathering, Request, Route
from .row_layout import Layout
from .shard import ShardOptimizer
from .table_arguments import check_table, checked_entries, checked_indices, output

CALLS = ("new table", "gather", "gather(averaged=True)", "apply_gradients", "flush")
NEW, GATHER, GATHER_AVERAGES, STEP, FLUSH = range(len(CALLS))
"""Calls that all ranks make together."""

REMEMBERED = 4
"""Gathers whose requests are kept for the gradients of the step."""


class ShardedTable:
    r"""A table of rows that is shared out among the ranks of an MPI communicator, and trained by RMSprop.

    Each rank holds and steps the rows that it owns, with their state and clocks, and asks the others for the rows that
    its batch needs. All ranks make the same calls in the same order, each with its part of the global batch, which may
    be empty. The global batch is the parts of rank 0, rank 1 and so on, one after the other: training has the bits that
    :class:`~numba_rmsprop.RMSprop` has on one process with that batch, whatever the number of ranks.

    Parameters
    ----------
    communicator : mpi4py.MPI.Intracomm
        The ranks, such as ``mpi4py.MPI.COMM_WORLD``.
    rows, columns : int
        The shape of the whole table.
    dtype : {float32, float64, float16, bfloat16}, default float32
        The dtype of values. For the last two, rows that are gathered, gradients and state are float32.
    initializer : {"zeros", "ones"}, float or callable, default "zeros"
        First values. A callable is called with row numbers, shape (n,), and returns their values, shape (n, columns):
        :class:`Uniform`, or ``lambda rows: array[rows]``.
    sum_order : {"batch", "rank"}, default "batch"
        The order in which gradients of a row from several ranks are added up. "batch": the order of the global batch.
        Ranks that repeat a row then pass its sum on from one to the next, and many ranks wait for one another. "rank":
        each rank adds up its own, and the owner adds up those. No rank waits, but the last bits depend on the number of
        ranks.
    \*\*options
        Those of :class:`~numba_rmsprop.RMSprop`, but for ``communicator``. ``clipnorm`` limits the norm of the whole
        table's gradient, which is added up exactly, and so rounded once.

    Attributes
    ----------
    shard : ndarray, shape (rows of this rank, columns)
        The values that this rank holds. In exact mode with momentum or weight decay, call :meth:`flush` before you
        read it.
    ranks : Ranks
        The ranks; ``ranks.bytes_sent`` is the number of bytes that this one has sent to others.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; on all ranks, if they disagree.
    OtherRankError
        If an argument is wrong on another rank.

    Notes
    -----
    A call that is refused on one rank has done nothing on any: that rank raises its error, and the others an
    OtherRankError. Where ranks make different calls, all raise a ValueError that says which rank made which call.

    Examples
    --------
    >>> from mpi4py import MPI  # doctest: +SKIP
    >>> table = ShardedTable(MPI.COMM_WORLD, 1_000_000, 64, learning_rate=0.01, rho=0.99)  # doctest: +SKIP
    >>> rows = table.gather([3, 14, 3])  # doctest: +SKIP
    >>> table.apply_gradients([3, 14, 3], 2 * (rows - 1))  # doctest: +SKIP
    1
    """

    def __init__(
        self,
        communicator: Any,
        rows: int,
        columns: int,
        dtype: DTypeLike = np.float32,
        initializer: Initializer = "zeros",
        *,
        sum_order: str = "batch",
        **options: Any,
    ) -> None:
        self.ranks = Ranks.of(communicator)
        self.number = self.ranks.members + 1
        description = ""
        with Refusal() as refusal:
            self.dtype = np.dtype(dtype)
            check_table(rows, columns, self.dtype, sum_order, self.ranks.size)
            if "communicator" in options:
                raise TypeError("communicator: expected once, as the first argument, got it also as an option")
            first_values = check_initializer(initializer)
            comparable = not callable(first_values) or isinstance(first_values, Uniform)
            self._layout = Layout(int(rows), self.ranks.size)
            self.shard: FloatArray = np.empty((self._layout.length(self.ranks.rank), int(columns)), self.dtype)
            fill_shard(self.shard, self._layout, self.ranks.rank, first_values)
            self._opt = ShardOptimizer(self.ranks, **options)
            self._opt.make_slots(self.shard)
            self._sum_order = sum_order
            description = json.dumps([self.description(), repr(first_values) if comparable else "a callable"])
        with Uninterrupted():
            self.ranks.agree(
                hash((NEW, self.number, zlib.crc32(description.encode()))),
                lambda: f"ShardedTable {self.number} with {description}",
                error=refusal.error,
            )
            self.number = self.ranks.join()
        self.run: str | None = None
        """The training that it belongs to, once it was saved or loaded by :class:`TableCheckpoints`."""
        self._routes: list[Route] = []
        self._buffers = Buffers(self.shard.shape[1], computed_in(self.dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the whole table."""
        return self._layout.rows, self.shard.shape[1]

    @property
    def rows_here(self) -> NDArray[np.int64]:
        """The rows of the whole table that :attr:`shard` holds, in order."""
        return self._layout.rows_of(self.ranks.rank)

    @property
    def optimizer(self) -> ShardOptimizer:
        """The optimizer of this rank's rows: its hyperparameters may be set, on all ranks alike."""
        return self._opt

    @property
    def iterations(self) -> int:
        """Steps taken so far."""
        return self._opt.iterations

    def gather(self, indices: ArrayLike, out: FloatArray | None = None, *, averaged: bool = False) -> FloatArray:
        r"""Return current rows, wherever they lie; all ranks call this together, each with its own indices.

        Each distinct row comes once, however often the batch repeats it. The request is remembered until the step, for
        :meth:`apply_gradients` with the same indices.

        Parameters
        ----------
        indices : array_like of int, any shape
            Rows of the whole table, in [0, rows); may be empty.
        out : ndarray, shape (\*indices.shape, columns), optional
            Where to put them: C-contiguous, of the table's dtype (float32 where that has 16 bits).
        averaged : bool, default False
            Return rows of the table's moving average (``use_ema``).

        Returns
        -------
        ndarray, shape (\*indices.shape, columns)
            ``out``, or a new array.

        Raises
        ------
        IndexError
            If an index is negative or too large.
        TypeError, ValueError
            If ``indices`` are not integers, or ``out`` does not fit, or there is no average; on all ranks, if their
            calls differ.
        OtherRankError
            If another rank refuses the call.
        """
        return self.gather_async(indices, out, averaged=averaged).wait()

    def gather_async(self, indices: ArrayLike, out: FloatArray | None = None, *, averaged: bool = False) -> Gathering:
        """Begin to fetch rows, to compute something else until :meth:`Gathering.wait` returns them.

        The rows are those of now: a step that is taken meanwhile does not change them. Arguments and errors are those
        of :meth:`gather`; ``out`` is not to be read or written meanwhile.
        """
        request = None
        with Refusal() as refusal:
            wanted = checked_indices(indices, self._layout.rows)
            result = output(out, (*wanted.shape, self.shard.shape[1]), computed_in(self.dtype), self._opt.occupied)
            request = Request(wanted.reshape(-1), self._layout) if self.ranks.size > 1 else None
            if averaged:
                self._opt.averaged_slots(self.shard)
        with Uninterrupted():
            asked_counts, _ = self._agree(GATHER_AVERAGES if averaged else GATHER, request, error=refusal.error)
            if request is None:  # no other ranks
                self._opt.gather(self.shard, wanted, out=result, averaged=averaged)
                return Gathering(lambda: result)
            return self._begin_gather(request, asked_counts, result, averaged=averaged)

    def _begin_gather(self, request: Request, asked_counts: Counts, result: FloatArray, *, averaged: bool) -> Gathering:
        route = Route(self.ranks, request, asked_counts, in_order=self._sum_order == "batch")
        self._routes = [*self._routes[1 - REMEMBERED :], route]
        reply, received = self._buffers.take(len(route.asked)), self._buffers.take(len(request.order))
        self._opt.gather(self.shard, route.asked, out=reply, averaged=averaged)
        arriving = route.begin_reply(reply, received)

        def finish() -> FloatArray:
            self.ranks.finish(arriving)
            copy_rows(received, request.places, result.reshape(len(request.places), self.shard.shape[1]))
            self._buffers.give_back(reply, received)
            return result

        return Gathering(finish)

    def apply_gradients(self, indices: ArrayLike | SparseProduct, values: ArrayLike | None = None) -> int:
        r"""Take one step, all ranks together, each with the gradients of its part of the batch; return the steps taken.

        Parameters
        ----------
        indices : array_like of int, any shape, or SparseProduct
            Rows of the whole table, in any order; equal ones are added up. Indices that were gathered since the last
            step are remembered, and need not be sent. Or a product, which has its own values.
        values : array_like, shape (\*indices.shape, columns), optional
            A gradient for each, of the table's dtype, or of float32 where that has 16 bits; None with a product.

        Returns
        -------
        int
            :attr:`iterations` after the step.

        Raises
        ------
        IndexError
            If an index is negative or too large.
        TypeError, ValueError
            If a dtype or shape does not fit; on all ranks, if calls or hyperparameters differ.
        FloatingPointError
            If, with ``check_finite``, a gradient holds NaN or infinity.
        OtherRankError
            If another rank refuses the call.
        """
        request, numbers, matches = None, None, 0
        with Refusal() as refusal:
            entries = checked_entries(indices, values, self.shape, self.dtype, finite=self._opt.check_finite)
            wanted = entries[0]
            numbers = self._opt.numbers_of_step()
            if self.ranks.size > 1:
                routes = self._routes  # now, since a signal handler may gather before the ranks agree
                # One bit for each remembered gather: 1 if it was of the same rows.
                matches = sum(1 << k for k, route in enumerate(routes) if np.array_equal(route.request.indices, wanted))
                known = routes[matches.bit_length() - 1].request if matches else None
                request = known or Request(wanted, self._layout)
        with Uninterrupted():
            asked_counts, flags = self._agree(STEP, request, numbers=numbers, error=refusal.error, flag=matches)
            assert numbers is not None
            if request is None:  # no other ranks
                return self._opt.step(self.shard, entries, numbers)
            common = int(np.bitwise_and.reduce(flags))
            if common:  # a gather of the rows of this step on all ranks
                route = routes[common.bit_length() - 1]
            else:
                route = Route(self.ranks, request, asked_counts, in_order=self._sum_order == "batch")
            rows, sums = route.push(entries, self._buffers)
            self._routes = []
            steps = self._opt.step(self.shard, (rows, sums, None, None), numbers)
            self._buffers.give_back(sums)
            return steps

    def flush(self) -> None:
        """Catch up every row on all ranks, which call this together; before reading :attr:`shard`."""
        with Uninterrupted():
            self._agree(FLUSH)
            self._opt.flush()

    def whole(self, root: int = 0) -> FloatArray | None:
        """Return the whole table, current, on one rank, and None on the others; for tables that fit there.

        Raises
        ------
        ValueError
            If there is no rank ``root``.
        MemoryError
            If it does not fit.
        """
        collected = table = np.empty((0, self.shard.shape[1]), self.dtype)
        counts = np.array([self._layout.length(rank) for rank in range(self.ranks.size)])
        sent, received = np.zeros_like(counts), np.zeros_like(counts)

        def make_room() -> None:
            nonlocal collected, table, received
            if isinstance(root, bool) or root not in range(self.ranks.size):
                raise ValueError(f"root: expected a rank from 0 to {self.ranks.size - 1}, got {root!r}")
            if self.ranks.rank == root:
                collected, table, received = np.empty(self.shape, self.dtype), np.empty(self.shape, self.dtype), counts

        with Uninterrupted():
            self.together(f"whole on rank {root}", make_room)
            self.flush()
            sent[root] = len(self.shard)
            self.ranks.all_to_all(as_stored(self.shard), sent, as_stored(collected), received)
        if self.ranks.rank != root:
            return None
        table[np.concatenate([self._layout.rows_of(rank) for rank in range(self.ranks.size)])] = collected
        return table

    def together(self, what: str, work: Callable[[], Any]) -> None:
        """Call ``work`` on each rank, and raise where it fails on any."""
        self.ranks.together(f"{what} of ShardedTable {self.number}", work)

    def description(self) -> dict[str, Any]:
        """Return the entry of the table in a manifest, without its files."""
        rows, columns = self.shape
        order, config = self._sum_order, self._opt.get_config()
        return {"rows": rows, "columns": columns, "dtype": str(self.dtype), "sum_order": order, "config": config}

    def _agree(
        self,
        call: int,
        request: Request | None = None,
        *,
        numbers: StepNumbers | None = None,
        error: Exception | None = None,
        flag: int = 0,
    ) -> tuple[Counts, NDArray[np.int64]]:
        def describe() -> str:
            rate = ""
            if numbers is not None:
                rate = f", with learning rate {numbers.of_rule.learning_rate:.9g} and numbers {numbers.key}"
            limits = f", clipnorm {self._opt.clipnorm}, global_clipnorm {self._opt.global_clipnorm}"
            return f"{CALLS[call]} of ShardedTable {self.number} after {self.iterations} steps{rate}{limits}"

        try:  # before the ranks agree, so that all learn of it
            self._opt.check_arrays(steps=call == STEP)
        except ValueError as refused:
            error = error or refused
        key = hash(
            (call, self.number, self._opt.iterations, *(() if numbers is None else numbers.key), *self._opt.limits)
        )
        counts = None if request is None else request.counts
        return self.ranks.agree(key, describe, error=error, counts=counts, flag=flag)
