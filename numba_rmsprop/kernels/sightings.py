"""How often keys were seen, about: a count-min sketch (Cormode and Muthukrishnan, J. Algorithms 55, 2005).

Each key has a counter in each of ``DEPTH`` lines, at a place that its hash tells, and shares it with other keys. The
least of them is at most too high. Only counters that are the least are raised (conservative update: Estan and Varghese,
SIGCOMM 2002), so that frequent keys spoil the counts of rare ones less.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .hashing import LOW, hashed, unsigned
from .jit import Integer, compiled, inlined

DEPTH, MOST = 4, 255
"""Lines, and the highest count."""


@inlined
def _place(first: Any, second: Any, line: Integer, mask: Any) -> Any:
    return (first + unsigned(line) * second) & mask


@compiled
def count_sightings(keys: Any, rows: Any, counters: Any, least: Integer, admitted: Any, raised: Any) -> Integer:
    """Count each entry whose key has no row; write which entries are to get one. Return how many were counted.

    Parameters
    ----------
    keys, rows : ndarray of int64, shape (n,)
        The keys, and the row of each, -1 for none.
    counters : ndarray of uint8, shape (DEPTH, a power of two)
        The counters, which are raised.
    least : int
        From which sighting on a key gets a row.
    admitted : ndarray of bool, shape (n,)
        Result: whether the key has a row, or has now been seen so often.
    raised : ndarray of int32, shape (n, DEPTH)
        Result: the places of counters that were raised, each by 1, in the flattened array; -1 for none.
    """
    mask, counted = unsigned(counters.shape[1] - 1), np.int64(0)
    for i in range(keys.size):
        admitted[i] = rows[i] >= 0
        raised[i] = -1
        if rows[i] >= 0:
            continue
        first = hashed(hashed(unsigned(keys[i]) & LOW) ^ (unsigned(keys[i]) >> unsigned(32)))
        second = hashed(first + unsigned(1)) | unsigned(1)
        fewest = np.int64(MOST)
        for line in range(DEPTH):
            fewest = min(fewest, np.int64(counters[line, _place(first, second, line, mask)]))
        if fewest < MOST:
            for line in range(DEPTH):
                place = _place(first, second, line, mask)
                if counters[line, place] == fewest:
                    counters[line, place] = fewest + 1
                    raised[i, line] = line * counters.shape[1] + np.int64(place)
        counted += 1
        admitted[i] = fewest + 1 >= least
    return counted
