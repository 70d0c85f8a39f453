"""The ranks of a communicator, which make sure that they all make the same call."""

from __future__ import annotations

import atexit
import itertools
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.interrupts import Uninterrupted, call_waiting, waiting
from .abort_on_error import end_all_on_error
from .core_binding import warn_of_binding
from .messages import Counts, Messages, OtherRankError, Result

LEAVING = -1
"""The key of a rank whose program ends, so that it makes no call any more."""

SPINNING = 0.002
"""Seconds for which a rank that waits for others keeps its core busy; then it sleeps between looks."""

MOST_RETRIES = 3
"""Attempts to agree after interrupts, at most, since a timer's signals may come for ever."""

KEY, REFUSED, COUNT, FLAG = range(4)
"""Columns of the numbers that a rank sends each other one in :meth:`Ranks.agree`."""


class Refusal:
    """Context that catches an exception: the other ranks must learn of it before this one raises it."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Refusal:
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> bool:
        if isinstance(error, Exception):
            self.error = error
        return self.error is not None


class Ranks(Messages):
    """The ranks of an MPI communicator.

    Every call that all ranks make together begins with :meth:`agree`. Ranks that disagree so learn it from one another,
    and none waits for a message that nobody sends. From there on signal handlers are held off until the call has ended.
    :meth:`of` returns one object for each communicator.

    Attributes
    ----------
    members : int
        How many optimizers, tables and checkpoint folders all ranks have made, in the same order.
    """

    def __init__(self, communicator: Any) -> None:
        from mpi4py import MPI  # not at the top: the package is imported without MPI, too

        self.members = 0
        world = MPI.COMM_WORLD
        if communicator.size > 1:
            end_all_on_error(world.rank, world.size, lambda: world.Abort(1))
        super().__init__(communicator)
        if self.size > 1:
            atexit.register(self._leave)
        if self.size == world.size:  # where it is only a part of the job, ranks outside it may share the machine
            neighbours = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
            ranks_here = neighbours.size
            neighbours.Free()
            warn_of_binding(ranks_here, self.rank)

    @classmethod
    def of(cls, communicator: Any) -> Ranks:
        """Return the ranks of a communicator; all ranks make the first call together.

        Raises
        ------
        TypeError
            If it is not a communicator of mpi4py.
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
        """Return the number of a new member."""
        self.members += 1
        return self.members

    def agree(
        self,
        key: int,
        describe: Callable[[], str],
        *,
        error: Exception | None = None,
        counts: Counts | None = None,
        flag: int = 0,
    ) -> tuple[Counts, NDArray[np.int64]]:
        """Make sure that all ranks make the same call, and that none of them refuses it.

        Where calls differ and a signal waits for its handler on some rank, handlers are called before anything is
        raised, and then the ranks agree anew: Ctrl-C reaches ranks at different calls, and what the program does then
        is likely to be the same on all.

        Parameters
        ----------
        key : int
            Equal on all ranks if they make the same call.
        describe : callable
            Returns the words for this rank's call, for the message where calls differ.
        error : Exception, optional
            Why this rank refuses the call.
        counts : ndarray of int64, shape (ranks,), optional
            A number for each rank.
        flag : int
            A number for all ranks.

        Returns
        -------
        counts, flags : ndarray of int64, shape (ranks,)
            The numbers that each rank has for this one.

        Raises
        ------
        Exception
            ``error``, on the rank that has it.
        OtherRankError
            On the others; or if the program of a rank has ended.
        ValueError
            On all ranks, if their keys differ.
        """
        if self._broken:
            raise error or OtherRankError(f"{self._broken}, so nothing can be done together")
        if self.size == 1:
            if error is not None:
                raise error
            return np.zeros(1, np.int64) if counts is None else counts, np.array([flag], np.int64)
        told, heard = np.zeros((2, self.size, 4), np.int64)
        told[:, KEY], told[:, REFUSED], told[:, FLAG] = key, error is not None, flag
        if counts is not None:
            told[:, COUNT] = counts
        with Uninterrupted():
            for retries in itertools.count(MOST_RETRIES, -1):
                self._wait(self._comm.Ialltoall(told, heard), SPINNING)
                self._count(told.nbytes - told[0].nbytes, self.size - 1)
                if not heard[:, REFUSED].any() and (heard[:, KEY] == key).all():
                    break
                self._raise_or_retry(describe, error, heard[:, KEY], may_retry=retries > 0)
        return heard[:, COUNT].copy(), heard[:, FLAG].copy()

    def together(self, what: str, work: Callable[[], Result]) -> list[Result]:
        """Call ``work`` on each rank, and return the result of each; raise as :meth:`agree` where it fails on any."""
        with Refusal() as refusal:
            result = work()
        with Uninterrupted():
            self.agree(zlib.crc32(what.encode()), lambda: what, error=refusal.error)
            return self.all_gather_objects(result)

    def _raise_or_retry(
        self, describe: Callable[[], str], error: Exception | None, keys: NDArray[np.int64], *, may_retry: bool
    ) -> None:
        """Raise the same on all ranks; or return, so that they agree anew, where some rank was interrupted."""
        reason = None if error is None else f"{type(error).__name__}: {error}"
        told = self.all_gather_objects((describe(), reason, may_retry and bool(waiting())))
        if (keys != keys[0]).any() and any(interrupted for *_, interrupted in told):
            call_waiting()
            return
        gone = np.flatnonzero(keys == LEAVING).tolist()
        self._broken = f"the program of {_name(gone)} has ended" if gone else ""
        if error is not None:
            raise error
        refusals = [f"rank {rank}: {reason}" for rank, (_, reason, _) in enumerate(told) if reason is not None]
        if refusals:
            raise OtherRankError(f"nothing was done, since other ranks refused the call: {'; '.join(refusals)}")
        calls: dict[str, list[int]] = {}
        for rank, (call, _, _) in enumerate(told):
            calls.setdefault(call, []).append(rank)
        differing = "; ".join(f"{_name(ranks)}: {call}" for call, ranks in calls.items())
        raise ValueError(f"the ranks disagree, so nothing was done; expected the same call on all, got {differing}")

    def _leave(self) -> None:
        """Tell ranks that still make calls that the program of this one has ended."""
        if self._mpi.Is_finalized() or (self._broken and not self._given_up):
            return
        try:
            if not self._given_up:
                with suppress(ValueError, OtherRankError):  # the other ranks raise it, too
                    self.agree(LEAVING, lambda: "the end of its program")
                for request, *_ in list(self._under_way.values()):
                    self.finish(request)
        finally:
            if self._given_up:  # MPI would wait for these requests for ever when it ends
                self._mpi.COMM_WORLD.Abort(1)


_keyval: int | None = None
"""The key under which a communicator keeps its :class:`Ranks`."""


def _name(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
