"""A map of 64-bit keys to rows: open addressing with linear probing.

Arguments that travel together
------------------------------
places : ndarray of int32, shape (a power of two,)
    The row of the key that lies at each place, ``EMPTY``, or ``GONE`` where a key was removed.
row_keys : ndarray of int64
    The key of each row. A place holds only the row, and so takes 4 bytes; the key is compared there.

No search goes further than ``MOST_PROBES`` places, whatever the keys are: a key that finds no place within them is not
entered, and the caller makes another map with another seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .hashing import LOW, hashed, unsigned
from .jit import Integer, compiled, compiled_inline, compiled_inside
from .parallel_loop import run_shares
from .prefetch import prefetch_item

EMPTY, GONE = -1, -2
MOST_PROBES = 128
KEPT = 63
"""The first places of so many keys, and one more, are kept from when they are asked for until they are looked at."""

KEYS_AHEAD = 12
"""Prefetch distance, in keys: a map of a million keys does not fit into the caches near a core."""


@compiled_inline
def home_of(key: Integer, seed: Integer, mask: Integer) -> Any:
    """Return the first place at which a key is looked for.

    Its two halves are mixed one after the other, as at the end of MurmurHash3, and with the seed, so that nobody who
    does not know it can choose keys that all have the same home.
    """
    low, high = unsigned(key) & LOW, unsigned(key) >> unsigned(32)
    first = hashed(low ^ (unsigned(seed) & LOW))
    return hashed(first ^ high ^ (unsigned(seed) >> unsigned(32))) & unsigned(mask)


@compiled
def find_key_owners(keys: Any, ranks: Integer, owners: Any) -> None:
    """Write the rank that owns each key into ``owners``, int64: ranks get equal parts of the hashes."""
    for i in range(keys.size):
        owners[i] = np.int64((home_of(keys[i], 0, LOW) * unsigned(ranks)) >> unsigned(32))


@compiled_inline
def _find(key: Integer, home: Any, places: Any, row_keys: Any) -> Integer:
    """Return the place of a key, or -1."""
    mask = unsigned(places.size - 1)
    place = unsigned(home)
    for _ in range(MOST_PROBES):
        row = places[place]
        if row == EMPTY:
            return np.int64(-1)
        if row >= 0 and row_keys[row] == key:
            return np.int64(place)
        place = (place + unsigned(1)) & mask
    return np.int64(-1)


@compiled_inside
def _find_share(
    worker: Integer, workers: Integer, keys: Any, places: Any, row_keys: Any, seed: Integer, homes: Any, rows: Any
) -> None:
    begin, end, last = worker * keys.size // workers, (worker + 1) * keys.size // workers, places.size - 1
    for i in range(begin - 2 * KEYS_AHEAD, end):
        # First the place, and when it has arrived the key of the row there.
        if i + 2 * KEYS_AHEAD < end:
            home = np.int64(home_of(keys[i + 2 * KEYS_AHEAD], seed, last))
            homes[worker, (i + 2 * KEYS_AHEAD) & KEPT] = home
            prefetch_item(places, home)
        if begin <= i + KEYS_AHEAD < end:
            row = places[homes[worker, (i + KEYS_AHEAD) & KEPT]]
            if row >= 0:
                prefetch_item(row_keys, row)
        if i >= begin:
            place = _find(keys[i], homes[worker, i & KEPT], places, row_keys)
            rows[i] = -1 if place < 0 else places[place]


@compiled
def find_keys(team: Any, keys: Any, places: Any, row_keys: Any, seed: Integer, homes: Any, rows: Any) -> None:
    """Write the row of each key into ``rows``, int64, or -1; ``homes``, int64 (workers, KEPT + 1), is scratch."""
    run_shares(_find_share, team, (keys, places, row_keys, seed, homes, rows))


@compiled
def enter_keys(
    begin: Integer, keys: Any, rows: Any, fresh: Any, counts: Any, free: Any, places: Any, row_keys: Any, seed: Integer
) -> Integer:
    """Give rows to the keys from ``begin`` on that have none; return the first one that finds no place, or how many.

    Parameters
    ----------
    begin : int
        With which key to begin.
    keys, rows : ndarray of int64, shape (n,)
        The keys, and the row of each, -1 for none yet; a key may come twice.
    fresh : ndarray of int64, shape (n,)
        Where to write the rows that are given, one after the other.
    counts : ndarray of int64, shape (3,)
        How many rows were ever given, how many of them are ``free`` again, and how many are in ``fresh``.
    free : ndarray of int64
        Rows whose keys were removed; the last one is given first.
    places, row_keys, seed
        The map, with room for as many rows in ``row_keys``.
    """
    mask = unsigned(places.size - 1)
    for i in range(begin, keys.size):
        if rows[i] >= 0:
            continue
        place, chosen = home_of(keys[i], seed, places.size - 1), np.int64(-1)
        for _ in range(MOST_PROBES):
            row = places[place]
            if row < 0:
                chosen = np.int64(place) if chosen < 0 else chosen
                if row == EMPTY:
                    break
            elif row_keys[row] == keys[i]:  # the key has come before in this call
                rows[i] = row
                break
            place = (place + unsigned(1)) & mask
        if rows[i] >= 0:
            continue
        if chosen < 0:
            return np.int64(i)
        if counts[1] > 0:
            counts[1] -= 1
            given = free[counts[1]]
        else:
            given = counts[0]
            counts[0] += 1
        places[chosen] = given
        row_keys[given] = keys[i]
        rows[i] = given
        fresh[counts[2]] = given
        counts[2] += 1
    return np.int64(keys.size)


@compiled
def remove_keys(keys: Any, places: Any, row_keys: Any, seed: Integer) -> None:
    """Remove keys, all of which are in the map."""
    for i in range(keys.size):
        place = _find(keys[i], home_of(keys[i], seed, places.size - 1), places, row_keys)
        if place >= 0:
            places[place] = GONE
