"""Who launches kernels, on how many threads, and when a launch is not worth it."""

from __future__ import annotations

import threading

import numba

launch_lock = threading.RLock()
"""Held during every launch: Numba's workqueue layer aborts the process when two threads launch at once."""

SERIAL_ITEMS = 8192
"""Below this many elements a serial loop (2.6 us for 1,000) beats a launch (4.7 us and more)."""


def workers_for(items: int) -> int:
    """Return how many workers to share ``items`` elements among: 1, or all of Numba's threads."""
    return 1 if items < SERIAL_ITEMS else int(numba.get_num_threads())
