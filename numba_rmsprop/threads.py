"""Who launches kernels, on how many threads, when a launch is not worth it, and what workers need for themselves."""

from __future__ import annotations

import threading

import numba
import numpy as np
from numpy.typing import NDArray

from .kernels.rows import CHUNK
from .variables import FloatArray

launch_lock = threading.RLock()
"""Held during every launch: Numba's workqueue layer aborts the process when two threads launch at once."""

SERIAL_ITEMS = 8192
"""Below this many elements a serial loop (2.6 us for 1,000) beats a launch (4.7 us and more)."""


def workers_for(items: int) -> int:
    """Return how many workers to share ``items`` elements among: 1, or all of Numba's threads."""
    return 1 if items < SERIAL_ITEMS else int(numba.get_num_threads())


def new_counters(workers: int) -> NDArray[np.int64]:
    """Return ``counters`` as :func:`numba_rmsprop.kernels.shares.next_share` wants them."""
    return np.empty((workers, 8), np.int64)


def row_links(n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return ``(following, chains)`` as the kernels in :mod:`numba_rmsprop.kernels.duplicates` want them."""
    return np.empty(n, np.int32), np.empty((n, 2), np.int32)


def row_scratch(workers: int, values: FloatArray) -> tuple[NDArray[np.int32], FloatArray, NDArray[np.int64]]:
    """Return ``scratch`` as the kernels in :mod:`numba_rmsprop.kernels.rows` want it."""
    sums = np.empty((workers, values.shape[1]), values.dtype)
    return np.empty((workers, CHUNK), np.int32), sums, new_counters(workers)
