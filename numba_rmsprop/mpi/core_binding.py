"""On how many cores a rank may run."""

from __future__ import annotations

import os

from ..runtime.caller_warnings import warn


def warn_of_binding(ranks_here: int, rank: int) -> None:
    """Warn if this process may run on fewer cores than its share of those that its machine has for the job.

    ``mpiexec`` binds each rank to one core where there are at most two ranks, and to a part of the machine where there
    are more, unless it is told otherwise; Numba then has so many threads.

    Parameters
    ----------
    ranks_here : int
        How many ranks share the machine.
    rank : int
        Which one this is, for the message.
    """
    if not hasattr(os, "sched_getaffinity"):  # no such binding on this system
        return
    mine = len(os.sched_getaffinity(0))
    all_cores = _cores_of_job()
    share = all_cores // ranks_here
    if mine < share:
        warn(
            f"rank {rank} may run on {mine} of the {share} cores that are its share ({all_cores} cores, {ranks_here} "
            f"ranks on this machine): start the program with mpiexec --map-by slot:PE={share}, or with --bind-to none "
            f"and NUMBA_NUM_THREADS={share}",
            RuntimeWarning,
        )


def _cores_of_job() -> int:
    """Return how many cores ``mpiexec`` itself may use: it is the parent, and binds its children only."""
    try:
        return len(os.sched_getaffinity(os.getppid()))
    except OSError:  # a parent that ended, or is another user's
        return os.cpu_count() or 1
