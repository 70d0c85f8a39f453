"""Arrays that are sent between the ranks of a communicator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..runtime.interrupts import SIGINT, waiting

MESSAGE_ITEMS = 1 << 26
"""Elements that are summed in one message, at most."""

Result = TypeVar("Result")
Counts = NDArray[np.int64]


class OtherRankError(RuntimeError):
    """Another rank refused a call that all ranks make together, or has ended: nothing was done on any of them."""


class Messages:
    """The messages that one rank sends and receives, on a duplicate of the communicator.

    All ranks make the same calls in the same order. Whoever makes them holds signal handlers off
    (:class:`~numba_rmsprop.runtime.interrupts.Uninterrupted`), since a rank that left in the middle would leave the
    others waiting. Arrays are C-contiguous, and are sent by rows.

    Attributes
    ----------
    rank, size : int
        The number of this rank, and how many ranks there are.
    bytes_sent, messages : int
        Bytes and messages that this rank has sent to others, without Python objects.
    seconds : float
        Time spent in MPI, with the waiting for other ranks.
    """

    def __init__(self, communicator: Any) -> None:
        from mpi4py import MPI  # not at the top: the package is imported without MPI, too

        self._mpi = MPI
        self.rank: int = communicator.rank
        self.size: int = communicator.size
        self.bytes_sent = 0
        self.messages = 0
        self.seconds = 0.0
        self._broken = ""
        """The reason why these ranks can do nothing together any more, if there is one."""
        self._given_up: list[Any] = []
        self._under_way: dict[int, Any] = {}
        self._row_types: dict[tuple[str, int], Any] = {}
        self._comm, duplicated = communicator.Idup()
        self._wait(duplicated)

    def all_to_all(
        self, send: NDArray[Any], send_counts: Counts, receive: NDArray[Any], receive_counts: Counts
    ) -> None:
        """Send each rank its rows of ``send``, which are in the order of the ranks, and receive theirs."""
        if self.size == 1:
            receive[...] = send
        else:
            self.finish(self.begin_all_to_all(send, send_counts, receive, receive_counts))

    def begin_all_to_all(
        self, send: NDArray[Any], send_counts: Counts, receive: NDArray[Any], receive_counts: Counts
    ) -> Any:
        """Begin what :meth:`all_to_all` does; return a request for :meth:`finish`."""
        elsewhere = len(send) - int(send_counts[self.rank])
        self._count(elsewhere * send.itemsize * math.prod(send.shape[1:]), self.size - 1)
        kind = self._row_type(send)
        request = self._timed(
            self._comm.Ialltoallv,
            [send, _counts_and_starts(send_counts), kind],
            [receive, _counts_and_starts(receive_counts), kind],
        )
        self._under_way[id(request)] = request, send, receive  # MPI uses their memory until it has finished
        return request

    def begin_send(self, rows: NDArray[Any], rank: int) -> Any:
        """Begin to send rows to one rank, which calls :meth:`receive`; return a request for :meth:`finish`."""
        self._count(rows.nbytes, 1)
        return self._timed(self._comm.Isend, [rows, len(rows), self._row_type(rows)], rank)

    def receive(self, rows: NDArray[Any], rank: int) -> None:
        """Receive rows from one rank."""
        self._wait(self._comm.Irecv([rows, len(rows), self._row_type(rows)], rank))

    def finish(self, request: Any) -> None:
        """Wait for a request."""
        self._wait(request)
        self._under_way.pop(id(request), None)

    def all_gather(self, rows: NDArray[Any], counts: Counts | None = None) -> NDArray[Any]:
        """Return the rows of all ranks, in the order of the ranks; each has ``counts`` rows, or as many as this one."""
        if self.size == 1:
            return rows
        if counts is None:
            counts = np.full(self.size, len(rows))
        everything = np.empty((int(counts.sum()), *rows.shape[1:]), rows.dtype)
        kind = self._row_type(rows)
        self._wait(self._comm.Iallgatherv([rows, len(rows), kind], [everything, _counts_and_starts(counts), kind]))
        self._count(rows.nbytes * (self.size - 1), self.size - 1)
        return everything

    def all_gather_objects(self, value: Result) -> list[Result]:
        """Return a Python object of each rank; pickled, so not for every step."""
        if self.size == 1:
            return [value]
        self._wait_for_all()
        return list(self._comm.allgather(value))

    def all_reduce(self, array: FloatArray) -> None:
        """Replace a flat array by the sum over all ranks, which has the same bits on each of them."""
        for begin in range(0, array.size if self.size > 1 else 0, MESSAGE_ITEMS):
            part = array[begin : begin + MESSAGE_ITEMS]
            self._wait_for_all()
            self._timed(self._comm.Allreduce, self._mpi.IN_PLACE, part)
            # The least that a reduction sends: each element twice, but for those of this rank's own share.
            self._count(2 * part.nbytes * (self.size - 1) // self.size, 2)

    def _wait_for_all(self) -> None:
        """Wait until all ranks have come to a blocking call, in which no interrupt could end the waiting."""
        self._wait(self._comm.Ibarrier())

    def _wait(self, request: Any, spinning: float = math.inf) -> None:
        """Wait for a request; raise OtherRankError at the second interrupt.

        After ``spinning`` seconds, this sleeps between looks, each time for a twentieth of the wait so far. It never
        sleeps while rows are on their way, since MPI moves them only when it is called.
        """
        began = time.perf_counter()
        while not request.Test():
            waited = time.perf_counter() - began
            if waited > spinning:
                time.sleep(min(waited / 20, 0.001))
            if waiting().count(SIGINT) > 1:
                self._broken = "this rank was interrupted twice while it waited for others"
                self._given_up.append(request)  # MPI still uses its memory
                raise OtherRankError(f"{self._broken}; end the program on all of them")
        self.seconds += time.perf_counter() - began

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        self.seconds += time.perf_counter() - began
        return result

    def _count(self, sent: int, messages: int) -> None:
        self.bytes_sent += sent
        self.messages += messages

    def _row_type(self, rows: NDArray[Any]) -> Any:
        """Return the MPI datatype of a row: counted in rows, a message may have more than 2³¹ elements."""
        key = rows.dtype.char, math.prod(rows.shape[1:])
        if key not in self._row_types:
            item = self._mpi.Datatype.fromcode(key[0])
            self._row_types[key] = item if rows.ndim == 1 else item.Create_contiguous(key[1]).Commit()
        return self._row_types[key]


def _counts_and_starts(counts: Counts) -> tuple[Counts, Counts]:
    return counts, np.cumsum(counts) - counts
