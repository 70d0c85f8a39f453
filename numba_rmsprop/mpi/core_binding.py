"""A warning where mpiexec has bound a rank to too few cores."""

from __future__ import annotations

import os

from ..runtime.caller_warnings import warn


def warn_of_binding(ranks_here: int, rank: int) -> None:
    """Warn if this process may run on fewer cores than its share of the machine.

    Unless it is told otherwise, ``mpiexec`` binds each rank to one core where there are at most two ranks, and to a
    part of the machine, which ``ranks_here`` share, where there are more. Numba then has as many threads as that.
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
    """Return how many cores ``mpiexec``, the parent process, may use: it binds its children and not itself."""
    try:
        return len(os.sched_getaffinity(os.getppid()))
    except OSError:  # the parent has ended, or belongs to another user
        return os.cpu_count() or 1
