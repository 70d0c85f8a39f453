"""The ranks of a communicator: how they agree, and how arrays go between them. Every call of MPI stands here."""

from __future__ import annotations

import atexit
import itertools
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..runtime.interrupts import SIGINT, Uninterrupted, call_waiting, waiting
from .abort_on_error import end_all_on_error
from .core_binding import warn_of_binding

LEAVING = -1
"""What a rank says that calls nothing any more, since its program ends."""

SUM_ITEMS = 1 << 26
"""Elements that are summed in one message, at most."""

SPINNING = 0.002
"""Seconds for which a rank looks for the others all the time; then it leaves the core to whoever has work to do."""

PATIENCE = 3
"""How often ranks meet again since one of them is interrupted, at most: a timer's signals may come for ever."""

Said = TypeVar("Said")

DIGEST, REFUSED, COUNT, FLAG = range(4)
"""What each rank tells each other one when they meet."""


class OtherRankError(RuntimeError):
    """Another rank refused a call that all ranks make together, or has ended: nothing was done on any of them."""


class Ranks:
    """The ranks of an MPI communicator.

    Every call that all ranks make together begins with :meth:`meet`, so that ranks which disagree learn it from one
    another, and none waits for a message that nobody sends. From there on, handlers of signals wait for the end of the
    call: a rank that left it half way would leave others waiting. Messages go through a duplicate of the communicator,
    apart from the program's own.

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
    members : int
        How many optimizers and tables all ranks have made, in the same order.
    """

    def __init__(self, communicator: Any) -> None:
        from mpi4py import MPI  # not by the package itself, which needs it only here

        self._mpi = MPI
        self.bytes_sent = 0
        self.messages = 0
        self.seconds = 0.0
        self.members = 0
        self._over = ""
        self._given_up: list[Any] = []
        self._under_way: dict[int, Any] = {}
        self._row_types: dict[tuple[str, int], Any] = {}
        self.rank: int = communicator.rank
        self.size: int = communicator.size
        world = MPI.COMM_WORLD
        if self.size > 1:
            end_all_on_error(world.rank, world.size, self._end_all)
        self._comm, made = communicator.Idup()
        self._wait(made)
        if self.size > 1:
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
        with Uninterrupted():
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
        """Return the number of a new member, that of :attr:`members` from now on."""
        self.members += 1
        return self.members

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

        Whoever sends or receives anything afterwards holds signals from before it (:class:`Uninterrupted`) until it has
        done so. Where calls differ and a signal waits for its handler on a rank, the handler is called there before
        anything is refused, and the ranks meet again: Ctrl-C reaches them at different calls, and what the program does
        then is likely to be the same on all.

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
        if self._over:
            raise error or OtherRankError(f"{self._over}, so nothing can be done together")
        if self.size == 1:
            if error is not None:
                raise error
            return np.zeros(1, np.int64) if counts is None else counts, np.array([flag], np.int64)
        told, heard = np.zeros((2, self.size, 4), np.int64)
        told[:, DIGEST], told[:, REFUSED], told[:, FLAG] = key, error is not None, flag
        if counts is not None:
            told[:, COUNT] = counts
        with Uninterrupted():
            for patience in itertools.count(PATIENCE, -1):
                self._wait(self._comm.Ialltoall(told, heard), SPINNING)
                self._count(told.nbytes - told[0].nbytes, self.size - 1)
                if not heard[:, REFUSED].any() and (heard[:, DIGEST] == key).all():
                    break
                self._settle(describe, error, heard[:, DIGEST], patience)
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
        self._wait(self._comm.Ialltoallv(*self._rows(send, send_counts, receive, receive_counts)))

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
        self._wait(self._comm.Irecv([rows, len(rows), self._row_type(rows)], rank))

    def finish(self, request: Any) -> None:
        """Wait for what was begun."""
        self._wait(request)
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
        self._wait(self._comm.Iallgatherv([rows, len(rows), kind], [everything, _counts_and_starts(counts), kind]))
        self._count(rows.nbytes * (self.size - 1), self.size - 1)
        return everything

    def add_up(self, array: FloatArray) -> None:
        """Replace a flat array by the sum of all ranks', which MPI makes the same on each of them."""
        for begin in range(0, array.size if self.size > 1 else 0, SUM_ITEMS):
            part = array[begin : begin + SUM_ITEMS]
            self._wait(self._comm.Ibarrier())  # in which an interrupt can end all, before a call where it cannot
            with self._timed():
                self._comm.Allreduce(self._mpi.IN_PLACE, part)
            # What a reduction sends at the least, and a ring does: each element but those of one's own share, twice.
            self._count(2 * part.nbytes * (self.size - 1) // self.size, 2)

    def together(self, what: str, work: Callable[[], Said]) -> list[Said]:
        """Do some work on each rank, and return what it returned on each; raise where any of them fails.

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
        done: list[Said] = []
        try:
            done.append(work())
        except Exception as failed:  # noqa: BLE001  # the other ranks must learn of any, and this one raises it then
            error = failed
        with Uninterrupted():
            self.meet(zlib.crc32(what.encode()), lambda: what, error=error)
            return self.tell_all(done[0])

    def tell_all(self, words: Said) -> list[Said]:
        """Return what each rank has to say; for texts, and not at every step."""
        if self.size == 1:
            return [words]
        self._wait(self._comm.Ibarrier())  # as above
        return list(self._comm.allgather(words))

    def _settle(
        self, describe: Callable[[], str], error: Exception | None, digests: NDArray[np.int64], patience: int
    ) -> None:
        """Raise what every rank is to learn; or return, so that they meet again, where one of them was interrupted."""
        reason = None if error is None else f"{type(error).__name__}: {error}"
        told = self.tell_all((describe(), reason, patience > 0 and bool(waiting())))
        if (digests != digests[0]).any() and any(interrupted for *_, interrupted in told):
            call_waiting()
            return
        gone = np.flatnonzero(digests == LEAVING)
        self._over = f"the program of {_ranks_in_words(gone.tolist())} has ended" if len(gone) else ""
        if error is not None:
            raise error
        refusals = [f"rank {rank}: {reason}" for rank, (_, reason, _) in enumerate(told) if reason is not None]
        if refusals:
            raise OtherRankError(f"nothing was done, since other ranks refused the call: {'; '.join(refusals)}")
        calls: dict[str, list[int]] = {}
        for rank, (call, _, _) in enumerate(told):
            calls.setdefault(call, []).append(rank)
        differing = "; ".join(f"{_ranks_in_words(ranks)}: {call}" for call, ranks in calls.items())
        raise ValueError(f"the ranks disagree, so nothing was done; expected the same call on all, got {differing}")

    def _wait(self, request: Any, spinning: float = math.inf) -> None:
        """Wait until MPI has done what was begun; raise where a second interrupt comes before, see :meth:`meet`.

        After some seconds of ``spinning``, it sleeps in between, which lasts twentieths of the wait: while rows are on
        their way, MPI needs to be asked all the time.
        """
        with self._timed():
            began = time.perf_counter()
            while not request.Test():
                waited = time.perf_counter() - began
                if waited > spinning:
                    time.sleep(min(waited / 20, 0.001))
                if waiting().count(SIGINT) > 1:
                    self._over = "this rank was interrupted twice while it waited for others"
                    self._given_up.append(request)  # MPI still uses its memory
                    raise OtherRankError(f"{self._over}; end the program on all of them")

    def _leave(self) -> None:
        """Tell ranks that still call something that this one's program has ended."""
        if self._mpi.Is_finalized() or (self._over and not self._given_up):
            return
        try:
            with suppress(ValueError, OtherRankError):  # the others raise the like, and say what they were about
                self.meet(LEAVING, lambda: "the end of its program")
            for request, *_ in list(self._under_way.values()):
                self.finish(request)
        finally:
            if self._given_up:  # the end of MPI would wait for ever
                self._end_all()

    def _end_all(self) -> None:
        self._mpi.COMM_WORLD.Abort(1)

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
