"""The ranks of a communicator: how they agree, and how arrays go between them. Every call of MPI stands here."""

from __future__ import annotations

import atexit
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..variables import FloatArray
from .binding import warn_of_binding
from .ending import end_all_on_error

LEAVING = -1
"""What a rank says that calls nothing any more, since its program ends."""

SUM_ITEMS = 1 << 26
"""Elements that are summed in one message, at most."""

DIGEST, REFUSED, COUNT, FLAG = range(4)
"""What each rank tells each other one when they meet."""


class OtherRankError(RuntimeError):
    """Another rank refused a call that all ranks make together, or has ended: nothing was done on any of them."""


class Ranks:
    """The ranks of an MPI communicator.

    Every call that all ranks make together begins with :meth:`meet`, so that ranks which disagree learn it from one
    another, and none waits for a message that nobody sends. Messages go through a duplicate of the communicator, apart
    from the program's own.

    Parameters
    ----------
    communicator : mpi4py.MPI.Intracomm
        The ranks. :meth:`of` gives the same object for the same communicator.

    Attributes
    ----------
    rank, size : int
        This rank, and how many there are.
    bytes_sent, messages : int
        What this rank has sent to others: arrays, and what is told at the beginning of a call; no texts.
    seconds : float
        How long it has been in MPI, for others to come included.
    """

    def __init__(self, communicator: Any) -> None:
        from mpi4py import MPI  # not by the package itself, which needs it only here

        self._mpi = MPI
        self._comm = communicator.Dup()
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self.bytes_sent = 0
        self.messages = 0
        self.seconds = 0.0
        self._members = 0
        self._gone = ""
        self._under_way: dict[int, Any] = {}
        self._row_types: dict[tuple[str, int], Any] = {}
        world = MPI.COMM_WORLD
        if self.size > 1:
            end_all_on_error(world.rank, world.size, lambda: world.Abort(1))
            atexit.register(self._leave)
        if self.size == world.size:  # of a part of the job, nobody can tell how many share the machine
            neighbours = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
            ranks_here = neighbours.size
            neighbours.Free()
            warn_of_binding(ranks_here, self.rank)

    @classmethod
    def of(cls, communicator: Any) -> Ranks:
        """Return the ranks of a communicator; the first call is made by all of them together.

        Raises
        ------
        TypeError
            If it is no communicator of mpi4py.
        """
        mpi = sys.modules.get("mpi4py.MPI")  # whoever has a communicator has imported it
        if mpi is None or not isinstance(communicator, mpi.Intracomm):
            raise TypeError(
                "communicator: expected one of mpi4py's, such as mpi4py.MPI.COMM_WORLD, "
                f"got {type(communicator).__name__}"
            )
        global _keyval
        if _keyval is None:
            _keyval = mpi.Intracomm.Create_keyval()
        found = communicator.Get_attr(_keyval)
        if found is None:
            found = cls(communicator)
            communicator.Set_attr(_keyval, found)
        assert isinstance(found, Ranks)
        return found

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "an optimizer or table with a communicator cannot be pickled; set opt.communicator = None before, "
            "and to the communicator again afterwards"
        )

    def join(self) -> int:
        """Return the number of a new member: an optimizer or table that all ranks make in the same order."""
        self._members += 1
        return self._members

    def meet(
        self,
        key: int,
        describe: Callable[[], str],
        *,
        error: Exception | None = None,
        counts: NDArray[np.int64] | None = None,
        flag: int = 0,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Make sure that all ranks make the same call, and that none of them refuses it.

        Parameters
        ----------
        key : int
            Equal on all ranks if they make the same call.
        describe : callable
            Says what this rank calls, for the message where they differ.
        error : Exception, optional
            Why this rank refuses.
        counts : ndarray of int64, shape (ranks,), optional
            A number for each rank.
        flag : int
            A number for all of them.

        Returns
        -------
        counts, flags : ndarray of int64, shape (ranks,)
            What each rank has for this one.

        Raises
        ------
        Exception
            ``error``, on the rank that has it.
        OtherRankError
            On the others; or if the program of a rank has ended.
        ValueError
            On all ranks, if their keys differ.
        """
        if self._gone:
            raise error or OtherRankError(f"the program of {self._gone} has ended, so nothing can be done together")
        if self.size == 1:
            if error is not None:
                raise error
            return np.zeros(1, np.int64) if counts is None else counts, np.array([flag], np.int64)
        told, heard = np.zeros((2, self.size, 4), np.int64)
        told[:, DIGEST], told[:, REFUSED], told[:, FLAG] = key, error is not None, flag
        if counts is not None:
            told[:, COUNT] = counts
        with self._timed():
            self._comm.Alltoall(told, heard)
        self._count(told.nbytes - told[0].nbytes, self.size - 1)
        if heard[:, REFUSED].any() or (heard[:, DIGEST] != key).any():
            gone = np.flatnonzero(heard[:, DIGEST] == LEAVING)
            self._gone = _ranks_in_words(gone.tolist()) if len(gone) else ""
            self._explain(describe, error)
        return heard[:, COUNT].copy(), heard[:, FLAG].copy()

    def exchange(
        self,
        send: NDArray[Any],
        send_counts: NDArray[np.int64],
        receive: NDArray[Any],
        receive_counts: NDArray[np.int64],
    ) -> None:
        """Send each rank its rows of ``send``, rank after rank, and receive theirs."""
        if self.size == 1:
            receive[...] = send
            return
        arguments = self._rows(send, send_counts, receive, receive_counts)
        with self._timed():
            self._comm.Alltoallv(*arguments)

    def begin_exchange(
        self,
        send: NDArray[Any],
        send_counts: NDArray[np.int64],
        receive: NDArray[Any],
        receive_counts: NDArray[np.int64],
    ) -> Any:
        """Begin the same; return a request with ``Wait``."""
        arguments = self._rows(send, send_counts, receive, receive_counts)
        with self._timed():
            request = self._comm.Ialltoallv(*arguments)
        self._under_way[id(request)] = request, send, receive  # MPI uses their memory, even if all others forget it
        return request

    def begin_pass(self, rows: NDArray[Any], rank: int) -> Any:
        """Begin to send rows to one rank, whose :meth:`receive_pass` takes them."""
        self._count(rows.nbytes, 1)
        with self._timed():
            return self._comm.Isend([rows, len(rows), self._row_type(rows)], rank)

    def receive_pass(self, rows: NDArray[Any], rank: int) -> None:
        """Receive rows from one rank."""
        with self._timed():
            self._comm.Recv([rows, len(rows), self._row_type(rows)], rank)

    def finish(self, request: Any) -> None:
        """Wait for what was begun."""
        with self._timed():
            request.Wait()
        self._under_way.pop(id(request), None)

    def gather_all(self, rows: NDArray[Any], counts: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Return the rows of all ranks, one after the other, on each of them.

        Parameters
        ----------
        rows : ndarray, C-contiguous
            This rank's.
        counts : ndarray of int64, shape (ranks,), optional
            How many rows each rank has; by default, as many as this one.
        """
        if self.size == 1:
            return rows
        if counts is None:
            counts = np.full(self.size, len(rows))
        everything = np.empty((int(counts.sum()), *rows.shape[1:]), rows.dtype)
        kind = self._row_type(rows)
        with self._timed():
            self._comm.Allgatherv([rows, len(rows), kind], [everything, _counts_and_starts(counts), kind])
        self._count(rows.nbytes * (self.size - 1), self.size - 1)
        return everything

    def add_up(self, array: FloatArray) -> None:
        """Replace a flat array by the sum of all ranks', which MPI makes the same on each of them."""
        for begin in range(0, array.size if self.size > 1 else 0, SUM_ITEMS):
            part = array[begin : begin + SUM_ITEMS]
            with self._timed():
                self._comm.Allreduce(self._mpi.IN_PLACE, part)
            # What a reduction sends at the least, and a ring does: each element but those of one's own share, twice.
            self._count(2 * part.nbytes * (self.size - 1) // self.size, 2)

    def together(self, what: str, work: Callable[[], None]) -> None:
        """Do some work on each rank, and raise where any of them fails.

        Raises
        ------
        Exception
            What ``work`` raised here.
        OtherRankError
            If it raised on another rank.
        ValueError
            If ranks differ in what they do.
        """
        error: Exception | None = None
        try:
            work()
        except Exception as failed:  # noqa: BLE001  # the other ranks must learn of any, and this one raises it then
            error = failed
        self.meet(zlib.crc32(what.encode()), lambda: what, error=error)

    def tell_all(self, words: Any) -> list[Any]:
        """Return what each rank has to say; for texts, and not at every step."""
        if self.size == 1:
            return [words]
        return list(self._comm.allgather(words))

    def _explain(self, describe: Callable[[], str], error: Exception | None) -> None:
        """Raise what every rank is to learn."""
        reasons = self.tell_all((describe(), None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        refusals = [f"rank {rank}: {reason}" for rank, (_, reason) in enumerate(reasons) if reason is not None]
        if refusals:
            raise OtherRankError(f"nothing was done, since other ranks refused the call: {'; '.join(refusals)}")
        calls: dict[str, list[int]] = {}
        for rank, (call, _) in enumerate(reasons):
            calls.setdefault(call, []).append(rank)
        differing = "; ".join(f"{_ranks_in_words(ranks)}: {call}" for call, ranks in calls.items())
        raise ValueError(f"the ranks disagree, so nothing was done; expected the same call on all, got {differing}")

    def _leave(self) -> None:
        """Tell ranks that still call something that this one's program has ended."""
        if self._mpi.Is_finalized() or self._gone:
            return
        with suppress(ValueError, OtherRankError):  # the others raise the like, and say what they were about
            self.meet(LEAVING, lambda: "the end of its program")
        for request, *_ in list(self._under_way.values()):
            self.finish(request)

    def _rows(
        self,
        send: NDArray[Any],
        send_counts: NDArray[np.int64],
        receive: NDArray[Any],
        receive_counts: NDArray[np.int64],
    ) -> Sequence[Any]:
        elsewhere = len(send) - int(send_counts[self.rank])
        self._count(elsewhere * send.itemsize * math.prod(send.shape[1:]), self.size - 1)
        kind = self._row_type(send)
        return [send, _counts_and_starts(send_counts), kind], [receive, _counts_and_starts(receive_counts), kind]

    def _row_type(self, rows: NDArray[Any]) -> Any:
        """Return the MPI datatype of a row; counted in rows, more than 2³¹ elements fit into a message."""
        key = rows.dtype.char, math.prod(rows.shape[1:])
        if key not in self._row_types:
            item = self._mpi.Datatype.fromcode(key[0])
            self._row_types[key] = item if rows.ndim == 1 else item.Create_contiguous(key[1]).Commit()
        return self._row_types[key]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def _count(self, sent: int, messages: int) -> None:
        self.bytes_sent += sent
        self.messages += messages


_keyval: int | None = None
"""Where a communicator keeps its :class:`Ranks`."""


def _counts_and_starts(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return counts, np.cumsum(counts) - counts


def _ranks_in_words(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
