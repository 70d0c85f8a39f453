"""Rows that ranks share out, read and step together, whether they are found by numbers or by keys."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray
from ..gradients.rows import Entries
from ..mpi.messages import Counts
from ..mpi.ranks import Ranks, Refusal
from ..runtime.interrupts import Uninterrupted
from ..settings.step_numbers import StepNumbers
from ..state.reading import copy_rows
from .row_exchange import Buffers, Gathering, Request, Route
from .row_layout import KeyLayout, Layout
from .shard import ShardOptimizer
from .table_arguments import output

CALLS = ("new table", "gather", "gather(averaged=True)", "apply_gradients", "flush")
NEW, GATHER, GATHER_AVERAGES, STEP, FLUSH = range(len(CALLS))
"""Calls that all ranks make together."""

REMEMBERED = 4
"""Gathers whose requests are kept for the gradients of the step."""


class SharedRows:
    """What tables of ranks have in common: all but how rows are found, and where they lie.

    A subclass sets the attributes, and calls :meth:`_join` when all is checked.

    Attributes
    ----------
    ranks : Ranks
        The ranks; ``ranks.bytes_sent`` is the number of bytes that this one has sent to others.
    number : int
        Which of the tables, optimizers and checkpoint folders of the ranks it is.
    columns : int
        Elements of a row.
    dtype : dtype
        The dtype of values.
    run : str or None
        The training that it belongs to, once it was saved or loaded by :class:`TableCheckpoints`.
    """

    ranks: Ranks
    number: int
    columns: int
    dtype: np.dtype[Any]
    run: str | None = None
    _layout: Layout | KeyLayout
    _opt: ShardOptimizer
    _sum_order: str

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.number}"

    def _join(self, description: str, refusal: Refusal) -> None:
        """Make sure that all ranks make the same table; raise where one refuses."""
        with Uninterrupted():
            self.ranks.agree(
                hash((NEW, self.number, zlib.crc32(description.encode()))),
                lambda: f"{self} with {description}",
                error=refusal.error,
            )
            self.number = self.ranks.join()
        self._routes: list[Route] = []
        self._buffers = Buffers(self.columns, computed_in(self.dtype))

    def owners_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rank that owns each row, or key, of an array of int64."""
        return self._layout.owners_of(indices)

    # What a subclass says

    def _checked(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return indices, or keys; raise an error if they cannot be such."""
        raise NotImplementedError

    def _check_averaged(self) -> None:
        """Raise ValueError unless there are moving averages."""
        raise NotImplementedError

    def _read(self, asked: NDArray[np.int64], out: FloatArray, *, averaged: bool) -> None:
        """Copy rows of this rank into ``out``."""
        raise NotImplementedError

    def _step(self, entries: Entries, numbers: StepNumbers) -> int:
        """Take one step of the rows of this rank; return the steps taken."""
        raise NotImplementedError

    @property
    def rows_of_rank(self) -> int:
        """How many rows this rank has."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """Return the entry of the table in a manifest, without its files."""
        raise NotImplementedError

    # Calls

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
            Rows of the whole table, in [0, rows), or keys; may be empty.
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
            If a row number is negative or too large.
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
            wanted = self._checked(indices)
            result = output(out, (*wanted.shape, self.columns), computed_in(self.dtype), self._opt.occupied)
            request = Request(wanted.reshape(-1), self._layout) if self.ranks.size > 1 else None
            if averaged:
                self._check_averaged()
        with Uninterrupted():
            asked_counts, _ = self._agree(GATHER_AVERAGES if averaged else GATHER, request, error=refusal.error)
            if request is None:  # no other ranks
                self._read(wanted, result, averaged=averaged)
                return Gathering(lambda: result)
            return self._begin_gather(request, asked_counts, result, averaged=averaged)

    def _begin_gather(self, request: Request, asked_counts: Counts, result: FloatArray, *, averaged: bool) -> Gathering:
        route = Route(self.ranks, request, asked_counts, in_order=self._sum_order == "batch")
        self._routes = [*self._routes[1 - REMEMBERED :], route]
        reply, received = self._buffers.take(len(route.asked)), self._buffers.take(len(request.order))
        self._read(route.asked, reply, averaged=averaged)
        arriving = route.begin_reply(reply, received)

        def finish() -> FloatArray:
            self.ranks.finish(arriving)
            copy_rows(received, request.places, result.reshape(len(request.places), self.columns))
            self._buffers.give_back(reply, received)
            return result

        return Gathering(finish)

    def _apply(self, check: Callable[[], Entries]) -> int:
        """Take one step, all ranks together, with the gradients that ``check`` returns."""
        request, numbers, matches = None, None, 0
        with Refusal() as refusal:
            entries = check()
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
                return self._step(entries, numbers)
            common = int(np.bitwise_and.reduce(flags))
            if common:  # a gather of the rows of this step on all ranks
                route = routes[common.bit_length() - 1]
            else:
                route = Route(self.ranks, request, asked_counts, in_order=self._sum_order == "batch")
            rows, sums = route.push(entries, self._buffers)
            self._routes = []
            steps = self._step((rows, sums, None, None), numbers)
            self._buffers.give_back(sums)
            return steps

    def flush(self) -> None:
        """Catch up every row on all ranks, which call this together; before rows are read where they lie."""
        with Uninterrupted():
            self._agree(FLUSH)
            self._opt.flush()

    def together(self, what: str, work: Callable[[], Any]) -> None:
        """Call ``work`` on each rank, and raise where it fails on any."""
        self.ranks.together(f"{what} of {self}", work)

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
            return f"{CALLS[call]} of {self} after {self.iterations} steps{rate}{limits}"

        try:  # before the ranks agree, so that all learn of it
            self._opt.check_arrays(steps=call == STEP)
        except ValueError as refused:
            error = error or refused
        key = hash(
            (call, self.number, self._opt.iterations, *(() if numbers is None else numbers.key), *self._opt.limits)
        )
        counts = None if request is None else request.counts
        return self.ranks.agree(key, describe, error=error, counts=counts, flag=flag)
