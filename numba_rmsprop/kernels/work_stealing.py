"""Sharing of the items of a step among workers."""

from __future__ import annotations

from typing import Any

from .aliased_access import claim
from .jit import Integer, inlined


@inlined
def give_none_away(counters: Any) -> None:
    """Set the counters to 0, before the workers start."""
    for worker in range(counters.shape[0]):
        counters[worker, 0] = 0


@inlined
def next_share(worker: Integer, workers: Integer, items: Integer, counters: Any) -> Integer:
    """Return an item that no worker has taken yet, or -1.

    A worker first takes its own part of ``range(items)``, the same at every call, since what it touched last time may
    still lie in its cache; then what others have left, so that none waits for one that is late.

    Parameters
    ----------
    counters : ndarray of int64, shape (workers, 8)
        How many each part has given away; :func:`give_none_away` first. A worker's row is a cache line.
    """
    for turn in range(workers):
        helped = (worker + turn) % workers
        first = helped * items // workers
        item = first + claim(counters, helped)
        if item < (helped + 1) * items // workers:
            return item
    return -1
