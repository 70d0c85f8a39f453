"""Work that examples share out among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from threadpoolctl import threadpool_limits


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Yield as many threads as Numba has, each of which multiplies matrices by itself.

    BLAS with threads of its own, beside Numba's and these, would have more of them than there are cores.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(numba.get_num_threads()) as pool:
        yield pool


def shared(pool: ThreadPoolExecutor, count: int, at_once: int, work: Callable[[slice], Any]) -> list[Any]:
    """Return what ``work`` returns for each part of ``count``, at most ``at_once``, from all threads."""
    bounds = np.linspace(0, count, -(-count // at_once) + 1).astype(int)
    return list(pool.map(work, [slice(*pair) for pair in pairwise(bounds)]))
