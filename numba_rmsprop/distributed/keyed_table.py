"""A table of rows by key that is shared out among ranks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arrays.variables import FloatArray
from ..gradients.rows import Entries
from ..keyed.eviction import Age, check_limits
from ..keyed.keys import as_keys, check_finite
from ..mpi.ranks import Ranks, Refusal
from ..runtime.interrupts import Uninterrupted
from ..settings.step_numbers import StepNumbers
from ..state.initial_values import Uniform, check_initializer
from .keyed_shard import LocalTable
from .row_layout import KeyLayout
from .shared_rows import SharedRows
from .table_arguments import check_count, check_root, check_table, checked_values


class ShardedKeyedTable(SharedRows):
    r"""A table whose rows are found by keys of 64 bits, shared out among the ranks of an MPI communicator.

    As :class:`~numba_rmsprop.keyed.KeyedTable`, on many machines: a hash of a key says which rank owns it, so that
    nobody needs a list of all keys. All ranks make the same calls in the same order, each with its part of the global
    batch, as with :class:`ShardedTable`. Rows have the same bits on any number of ranks, as long as numbers of 16 bits
    are not rounded at random.

    Parameters
    ----------
    communicator : mpi4py.MPI.Intracomm
        The ranks.
    columns : int
        Elements of a row.
    dtype, sum_order
        As for :class:`ShardedTable`.
    initializer
        As for :class:`~numba_rmsprop.keyed.KeyedTable`.
    \*\*options
        Those of :class:`~numba_rmsprop.RMSprop` that a KeyedTable takes. ``clipnorm`` limits the norm of the whole
        table's gradient.

    Attributes
    ----------
    local : KeyedTable
        The keys that this rank owns, with their rows: to look at, or to export. It refuses steps of its own.
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
    A call that is refused on one rank has done nothing on any, and gives no key a row. There is no ``admit_after``.

    Examples
    --------
    >>> from mpi4py import MPI  # doctest: +SKIP
    >>> table = ShardedKeyedTable(MPI.COMM_WORLD, 64, learning_rate=0.01, rho=0.99)  # doctest: +SKIP
    >>> rows = table.gather([10**15, -5, 10**15])  # doctest: +SKIP
    >>> table.apply_gradients([10**15, -5, 10**15], 2 * (rows - 1))  # doctest: +SKIP
    1
    """

    def __init__(
        self,
        communicator: Any,
        columns: int,
        dtype: DTypeLike = np.float32,
        initializer: Any = "zeros",
        *,
        sum_order: str = "batch",
        **options: Any,
    ) -> None:
        self.ranks = Ranks.of(communicator)
        self.number = self.ranks.members + 1
        description = ""
        with Refusal() as refusal:
            self.dtype = np.dtype(dtype)
            check_table(0, columns, self.dtype, sum_order, self.ranks.size)
            if "admit_after" in options:
                raise TypeError("admit_after: expected none for a table of several ranks; leave it out")
            first_values = check_initializer(initializer)
            self._may_fail = callable(first_values) and not isinstance(first_values, Uniform)
            self.columns = int(columns)
            self._layout = KeyLayout(self.ranks.size)
            self.local = LocalTable(self.ranks, self.columns, self.dtype, first_values, **options)
            self._opt, self._sum_order = self.local.optimizer, sum_order
            description = json.dumps([self.description(), "a callable" if self._may_fail else repr(first_values)])
        self._join(description, refusal)

    def apply_gradients(self, keys: ArrayLike, values: ArrayLike) -> int:
        r"""Take one step, all ranks together, each with the gradients of its part of the batch; return the steps taken.

        Parameters
        ----------
        keys : array_like of int, any shape
            Keys, in any order; equal ones are added up, and those without a row get one. Keys that were gathered since
            the last step are remembered, and need not be sent.
        values : array_like, shape (\*keys.shape, columns)
            A gradient for each, of the table's dtype, or of float32 where that has 16 bits.

        Returns
        -------
        int
            :attr:`iterations` after the step.

        Raises
        ------
        TypeError, ValueError
            If a dtype or shape does not fit; on all ranks, if calls or hyperparameters differ.
        FloatingPointError
            If, with ``check_finite``, a gradient holds NaN or infinity.
        OtherRankError
            If another rank refuses the call, or has no memory for new rows.
        """
        return self._apply(lambda: self._entries(keys, values))

    def evict(self, *, max_age: int | None = None, max_rows: int | None = None) -> NDArray[np.int64]:
        """Drop keys whose rows were not touched for long, on all ranks together; return those of this rank.

        Arguments are those of :meth:`KeyedTable.evict <numba_rmsprop.keyed.KeyedTable.evict>`; ``max_rows`` counts the
        rows of all ranks, and the same keys go on any number of them.

        Raises
        ------
        ValueError
            If a number is negative or no whole number; on all ranks, if they differ.
        """
        with Uninterrupted():
            with Refusal() as refusal:
                max_age, max_rows = check_limits(max_age, max_rows)
            what = f"evict(max_age={max_age}, max_rows={max_rows}) of {self}"
            self.ranks.agree(zlib.crc32(what.encode()), lambda: what, error=refusal.error)
            return self.local.evict_until(max_age, self._last_to_go(max_age, max_rows))

    def _last_to_go(self, max_age: int | None, max_rows: int | None) -> Age | None:
        """Return the last of the oldest rows of all ranks that must go, found by halving."""
        touched, keys = self.local.ages(max_age)
        total = self._total(len(keys))
        if max_rows is None or total <= max_rows:
            return None
        count, sorted_touched = total - max_rows, np.sort(touched)
        steps = np.iinfo(np.int32)
        step = self._least(lambda step: np.searchsorted(sorted_touched, step, "right"), 0, steps.max, count)
        count -= self._total(int(np.searchsorted(sorted_touched, step)))
        ties, bounds = np.sort(keys[touched == step]), np.iinfo(np.int64)
        key = self._least(lambda key: np.searchsorted(ties, np.int64(key), "right"), bounds.min, bounds.max, count)
        return step, key

    def _least(self, count_to: Callable[[int], Any], low: int, high: int, count: int) -> int:
        """Return the least number up to which all ranks together count so many."""
        while low < high:
            middle = (low + high) // 2
            if self._total(int(count_to(middle))) >= count:
                high = middle
            else:
                low = middle + 1
        return low

    def _total(self, number: int) -> int:
        return int(self.ranks.all_gather(np.array([[number]])).sum())

    def whole(self, root: int = 0) -> tuple[NDArray[np.int64], FloatArray] | None:
        """Return all keys, in order, and their current rows, on one rank, and None on the others.

        Raises
        ------
        ValueError
            If there is no rank ``root``.
        """
        with Uninterrupted():
            self.together(f"whole on rank {root}", lambda: check_root(root, self.ranks.size))
            keys = self.local.keys()
            rows = self.local.gather(keys)
            counts = self.ranks.all_gather(np.array([[len(keys)]]))[:, 0]
            here = self.ranks.rank == root
            sent = np.where(np.arange(self.ranks.size) == root, len(keys), 0)
            received = counts if here else np.zeros_like(counts)
            all_keys = np.empty(int(received.sum()), np.int64)
            all_rows = np.empty((len(all_keys), self.columns), rows.dtype)
            self.ranks.all_to_all(keys, sent, all_keys, received)
            self.ranks.all_to_all(rows, sent, all_rows, received)
        order = np.argsort(all_keys)
        return (all_keys[order], all_rows[order]) if here else None

    def description(self) -> dict[str, Any]:
        """Return the entry of the table in a manifest, without its files and the number of its rows."""
        order, config = self._sum_order, self._opt.get_config()
        columns = self.columns
        return {"columns": columns, "dtype": str(self.dtype), "sum_order": order, "config": config, "keyed": True}

    @property
    def rows_of_rank(self) -> int:
        """How many keys this rank owns."""
        return len(self.local)

    def _entries(self, keys: ArrayLike, values: ArrayLike) -> Entries:
        wanted = self._checked(keys)
        grads = checked_values(values, wanted, (0, self.columns), self.dtype, finite=False)
        if self._opt.check_finite:
            check_finite(wanted.reshape(-1), grads)
        return wanted.reshape(-1), grads, None, None

    def _checked(self, indices: ArrayLike) -> NDArray[np.int64]:
        keys = as_keys(indices)
        check_count(keys, "keys")
        return keys

    def _check_averaged(self) -> None:
        self._opt.averaged_slots(self.local.var)

    def _read(self, asked: NDArray[np.int64], out: FloatArray, *, averaged: bool) -> None:
        if self._may_fail:  # where others already wait for its rows
            self.together("first values", lambda: self.local.gather(asked, out=out, averaged=averaged) is out)
        else:
            self.local.gather(asked, out=out, averaged=averaged)

    def _step(self, entries: Entries, numbers: StepNumbers) -> int:
        keys, grads, *_ = entries
        with Refusal() as refusal:
            self.local.enter(keys)  # which may ask for memory, and for first values
        try:
            self.ranks.agree(zlib.crc32(b"new rows"), lambda: f"new rows of {self}", error=refusal.error)
        except BaseException:
            self.local.leave()
            raise
        return self.local.step(keys, grads, numbers)
