"""Rows that a batch asks of other processes: each once, dealt to its owner, with the sums of what the batch repeats.

Rows are dealt like cards: of each block of as many neighbouring rows as there are ranks, every rank gets one, and a
hash of the block says who gets the first. So each rank has as many rows as the others, neighbours lie on different
ranks, and where a row lies takes a hash and no table.

Arguments that travel together
------------------------------
chains
    ``(firsts, following)``: int32. ``firsts[k]`` is the first entry of distinct row ``k``; ``following[i]`` the next
    entry of the same row after entry ``i``, or -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .aliased_access import load_grad, load_var, store_var
from .duplicates import unsigned
from .jit import Integer, compiled, compiled_parallel, inlined
from .prefetch import prefetch_row

LOW = unsigned(0xFFFFFFFF)

BLOCK_ROWS = 64
"""Rows that a worker adds up at a time."""


@inlined
def _hashed(number: Any) -> Any:
    """Return 32 well-mixed bits, the finalizer of MurmurHash3; no product passes 64 bits, also as plain Python."""
    mixed = unsigned(number)
    mixed = (mixed ^ (mixed >> unsigned(32))) & LOW
    mixed = ((mixed ^ (mixed >> unsigned(16))) * unsigned(0x85EBCA6B)) & LOW
    mixed = ((mixed ^ (mixed >> unsigned(13))) * unsigned(0xC2B2AE35)) & LOW
    return mixed ^ (mixed >> unsigned(16))


@inlined
def _turn(block: Any, ranks: Integer) -> Any:
    return np.int64((_hashed(block) * unsigned(ranks)) >> unsigned(32))


@compiled
def turns(begin: Integer, ranks: Integer, out: Any) -> None:
    """Write which rank owns the first row of each block from number ``begin`` on."""
    for i in range(out.size):
        out[i] = _turn(begin + i, ranks)


@compiled
def number_rows(indices: Any, buckets: Any, numbers: Any, firsts: Any, following: Any) -> Integer:
    """Give the distinct rows numbers in the order in which they first come, and chain the entries of each.

    Parameters
    ----------
    indices : ndarray of int, shape (n,)
        Rows, of any size.
    buckets : ndarray of int32
        Scratch, a power of two and at least 2n.
    numbers, firsts, following : ndarray of int32, shape (n,)
        Where the results go: the number of each entry's row, and its chains.

    Returns
    -------
    int
        How many rows are distinct.
    """
    mask = unsigned(buckets.size - 1)
    for bucket in range(buckets.size):
        buckets[bucket] = -1
    count = np.int64(0)
    for i in range(indices.size):
        row = indices[i]
        following[i] = -1
        bucket = _hashed(row) & mask
        number = np.int64(buckets[bucket])
        while number >= 0 and indices[firsts[number]] != row:
            bucket = (bucket + unsigned(1)) & mask
            number = np.int64(buckets[bucket])
        if number < 0:
            number = count
            buckets[bucket] = number
            firsts[number] = i
            count += 1
        numbers[i] = number
    # Backwards, so that each row's first entry, until then the head of its chain, needs no second array.
    for i in range(indices.size - 1, -1, -1):
        first = firsts[numbers[i]]
        if first != i:
            following[i] = following[first]
            following[first] = i
    return count


@compiled
def deal_rows(
    indices: Any, ranks: Integer, numbers: Any, chains: Any, places: Any, order: Any, wanted: Any, counts: Any
) -> None:
    """Order distinct rows by owner.

    Parameters
    ----------
    indices, numbers, chains
        As :func:`number_rows` left them; ``firsts`` cut to the distinct rows, of which there are m.
    ranks : int
        How many owners there are.
    places : ndarray of int64, shape (n,)
        Gets, for each entry, where its row stands in that order.
    order : ndarray of int64, shape (m,)
        Gets the first entry of each row, in that order.
    wanted : ndarray of uint32 or uint64, shape (m,)
        Gets twice the number that each row has at its owner, plus 1 if it has more than one entry.
    counts : ndarray of int64, shape (ranks + 1,)
        Gets how many rows lie at each rank; the last one is scratch.
    """
    firsts, following = chains
    counts[:] = 0
    for k in range(firsts.size):
        row = indices[firsts[k]]
        block = row // ranks
        counts[(row - block * ranks + _turn(block, ranks)) % ranks + 1] += 1
    for rank in range(ranks):
        counts[rank + 1] += counts[rank]
    for k in range(firsts.size):
        first = firsts[k]
        row = indices[first]
        block = row // ranks
        owner = (row - block * ranks + _turn(block, ranks)) % ranks
        place = counts[owner]
        counts[owner] += 1
        order[place] = first
        wanted[place] = 2 * block + (following[first] >= 0)
        # The head of the chain keeps the place meanwhile: entries find it through their number.
        firsts[k] = place
    for rank in range(ranks - 1, 0, -1):
        counts[rank] -= counts[rank - 1]
    for i in range(indices.size):
        places[i] = firsts[numbers[i]]


@compiled
def link_ranks(chains: Any, askers: Any, repeats: Any, bits: Integer, links: Any) -> None:
    """Say which ranks pass the running sum of a row on to one another, so that it is taken in the order of the batch.

    A sum in floating point depends on its order. A rank that has several entries of a row can add them up by itself
    only if it is the first to have any; otherwise it must go on from the sum of those before it. Ranks with one entry
    that come after the last such rank send theirs to the owner, which adds them in order.

    Parameters
    ----------
    chains
        Of the requests, all ranks' one after the other; ``firsts`` cut to the distinct rows.
    askers : ndarray of int32, shape (n,)
        Which rank each request is from.
    repeats : ndarray of bool, shape (n,)
        Whether that rank's batch has several entries of the row.
    bits : int
        How many of them can hold a rank plus 1.
    links : ndarray of uint32, shape (n,)
        Gets ``from << bits | to``: which rank to go on from, and which to pass the sum on to, plus 1; 0 for none.
    """
    firsts, following = chains
    links[:] = 0
    for k in range(firsts.size):
        last = np.int64(-1)
        i = np.int64(following[firsts[k]])
        while i >= 0:
            if repeats[i]:
                last = i
            i = np.int64(following[i])
        i = np.int64(firsts[k])
        while last >= 0 and i != last:
            after = np.int64(following[i])
            links[i] |= np.uint32(askers[after] + 1)
            links[after] |= np.uint32(askers[i] + 1) << np.uint32(bits)
            i = after


@compiled
def add_entries_of(begin: Integer, end: Integer, rows: Any, values: Any, order: Any, following: Any, sums: Any) -> None:
    """Add up the entries of the rows ``rows[begin:end]``.

    Parameters
    ----------
    rows : ndarray of int64, shape (m, 3)
        Which row, in the order of :func:`deal_rows`; where its sum goes; and whether the sum goes on from what stands
        there.
    values : ndarray, shape (n, columns)
        The entries.
    order, following
        The first entry of each row, and the next after each.
    sums : ndarray, shape (places, columns)
        Gets the sums.
    """
    for r in range(begin, end):
        i, place = np.int64(order[rows[r, 0]]), rows[r, 1]
        if rows[r, 2] == 0:
            for j in range(values.shape[1]):
                store_var(sums, place, j, load_grad(values, i, j))
            i = np.int64(following[i])
        while i >= 0:
            after = np.int64(following[i])
            if after >= 0:
                prefetch_row(values, after)
            for j in range(values.shape[1]):
                store_var(sums, place, j, load_var(sums, place, j) + load_grad(values, i, j))
            i = after


@compiled_parallel
def add_entries(rows: Any, values: Any, order: Any, following: Any, sums: Any) -> None:
    """Add up the entries of rows on all threads: :func:`add_entries_of` for all of ``rows``."""
    for block in prange(-(-rows.shape[0] // BLOCK_ROWS)):
        begin = np.int64(block) * BLOCK_ROWS
        add_entries_of(begin, min(begin + BLOCK_ROWS, rows.shape[0]), rows, values, order, following, sums)


@compiled
def uniform_rows(indices: Any, seed: Integer, low: float, width: float, out: Any) -> None:
    """Write numbers from ``low`` to ``low + width``, which depend on row, column and seed alone."""
    for i in range(indices.size):
        row = _hashed(unsigned(indices[i])) ^ _hashed((unsigned(indices[i]) >> unsigned(32)) + unsigned(0x9E3779B9))
        for j in range(out.shape[1]):
            bits = _hashed(_hashed(_hashed(unsigned(j) + unsigned(1)) ^ row) + unsigned(seed))
            out[i, j] = low + width * (np.float64(bits >> unsigned(8)) * 2.0**-24)
