"""A table whose rows are shared out among ranks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arrays.storage import as_stored
from ..arrays.variables import FloatArray
from ..gradients.rows import Entries
from ..gradients.sparse_product import SparseProduct
from ..mpi.ranks import Ranks, Refusal
from ..runtime.interrupts import Uninterrupted
from ..settings.step_numbers import StepNumbers
from ..state.initial_values import Initializer, Uniform, check_initializer
from .initial_values import fill_shard
from .row_layout import Layout
from .shard import ShardOptimizer
from .shared_rows import SharedRows
from .table_arguments import check_root, check_table, checked_entries, checked_indices


class ShardedTable(SharedRows):
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
            self.columns = int(columns)
            self._layout: Layout = Layout(int(rows), self.ranks.size)
            self.shard: FloatArray = np.empty((self._layout.length(self.ranks.rank), self.columns), self.dtype)
            fill_shard(self.shard, self._layout, self.ranks.rank, first_values)
            self._opt = ShardOptimizer(self.ranks, **options)
            self._opt.make_slots(self.shard)
            self._sum_order = sum_order
            description = json.dumps([self.description(), repr(first_values) if comparable else "a callable"])
        self._join(description, refusal)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the whole table."""
        return self._layout.rows, self.columns

    @property
    def rows_here(self) -> NDArray[np.int64]:
        """The rows of the whole table that :attr:`shard` holds, in order."""
        return self._layout.rows_of(self.ranks.rank)

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
        return self._apply(
            lambda: checked_entries(indices, values, self.shape, self.dtype, finite=self._opt.check_finite)
        )

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
            check_root(root, self.ranks.size)
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

    def description(self) -> dict[str, Any]:
        """Return the entry of the table in a manifest, without its files."""
        rows, columns = self.shape
        order, config = self._sum_order, self._opt.get_config()
        return {"rows": rows, "columns": columns, "dtype": str(self.dtype), "sum_order": order, "config": config}

    @property
    def rows_of_rank(self) -> int:
        """How many rows this rank has."""
        return len(self.shard)

    def _checked(self, indices: ArrayLike) -> NDArray[np.int64]:
        return checked_indices(indices, self._layout.rows)

    def _check_averaged(self) -> None:
        self._opt.averaged_slots(self.shard)

    def _read(self, asked: NDArray[np.int64], out: FloatArray, *, averaged: bool) -> None:
        self._opt.gather(self.shard, asked, out=out, averaged=averaged)

    def _step(self, entries: Entries, numbers: StepNumbers) -> int:
        return self._opt.step(self.shard, entries, numbers)
