"""Rows of a table that are dealt to ranks, and the entries of a batch that belong to the same row.

Rows are dealt like cards. A block is as many neighbouring rows as there are ranks; every rank gets one of them, and a
hash of the block says which rank gets the first. So all ranks have the same number of rows, neighbours lie on different
ranks, and the owner of a row is computed and not looked up.

Arguments that travel together
------------------------------
chains
    ``(firsts, following)``, int32: ``firsts[k]`` is the first entry of distinct row ``k``, and ``following[i]`` is the
    next entry of the same row after entry ``i``, or -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .aliased_access import load_grad, load_var, store_var
from .duplicates import source_of, unsigned, weight_of
from .hashing import hashed, owner_of_first
from .jit import Integer, compiled, compiled_inside
from .parallel_loop import run_shares
from .prefetch import prefetch_row


@compiled
def find_owners(rows: Any, ranks: Integer, owners: Any) -> None:
    """Write the rank that owns each row into ``owners``."""
    for i in range(rows.size):
        block = rows[i] // ranks
        owners[i] = (rows[i] - block * ranks + owner_of_first(block, ranks)) % ranks


@compiled
def number_rows(indices: Any, buckets: Any, numbers: Any, firsts: Any, following: Any) -> Integer:
    """Give the distinct rows numbers, in the order in which they first come, and chain the entries of each.

    Parameters
    ----------
    indices : ndarray of int, shape (n,)
        The row of each entry.
    buckets : ndarray of int32
        Scratch; its size is a power of two and at least 2n.
    numbers, firsts, following : ndarray of int32, shape (n,)
        Results: the number of each entry's row, and the chains.

    Returns
    -------
    int
        How many distinct rows there are.
    """
    mask = unsigned(buckets.size - 1)
    for bucket in range(buckets.size):
        buckets[bucket] = -1
    count = np.int64(0)
    for i in range(indices.size):
        row = indices[i]
        following[i] = -1
        bucket = hashed(row) & mask
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
    # Backwards: each entry is put behind the first one of its row, before those that are there already.
    for i in range(indices.size - 1, -1, -1):
        first = firsts[numbers[i]]
        if first != i:
            following[i] = following[first]
            following[first] = i
    return count


@compiled
def link_ranks(chains: Any, askers: Any, repeats: Any, bits: Integer, links: Any) -> None:
    """Find out which ranks pass the running sum of a row on to one another, to add it up in the order of the batch.

    A sum in floating point depends on its order. A rank with several entries of a row can add them up by itself only if
    no rank before it has any; otherwise it goes on from the sum of the ranks before it. The ranks after the last such
    rank have one entry each; they send it to the owner, which adds it in order.

    Parameters
    ----------
    chains
        Chains of the rows that ranks ask for, rank after rank; ``firsts`` cut to the distinct rows.
    askers : ndarray of int32, shape (n,)
        The rank that asks.
    repeats : ndarray of bool, shape (n,)
        Whether that rank's batch has several entries of the row.
    bits : int
        How many bits hold a rank plus 1.
    links : ndarray of uint32, shape (n,)
        Result: ``from << bits | to``, the rank that this one goes on from and the one that it passes the sum on to,
        each plus 1, or 0 for none.
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


@compiled_inside
def _sum_share(
    worker: Integer, workers: Integer, rows: Any, entries: Any, order: Any, following: Any, sums: Any
) -> None:
    _, values, sources, weights = entries
    count = rows.shape[0]
    for r in range(worker * count // workers, (worker + 1) * count // workers):
        i, place = np.int64(order[rows[r, 0]]), rows[r, 1]
        if rows[r, 2] == 0:
            source, weight = source_of(sources, i), weight_of(weights, i)
            for j in range(values.shape[1]):
                store_var(sums, place, j, load_grad(values, source, j) * weight)
            i = np.int64(following[i])
        while i >= 0:
            after = np.int64(following[i])
            if after >= 0:
                prefetch_row(values, source_of(sources, after))
            source, weight = source_of(sources, i), weight_of(weights, i)
            for j in range(values.shape[1]):
                store_var(sums, place, j, load_var(sums, place, j) + load_grad(values, source, j) * weight)
            i = after


@compiled
def sum_entries(team: Any, rows: Any, entries: Any, order: Any, following: Any, sums: Any) -> None:
    """Add up the entries of rows.

    Parameters
    ----------
    team
        See :mod:`~numba_rmsprop.kernels.parallel_loop`.
    rows : ndarray of int64, shape (m, 3)
        The place of each row in ``order``; the row of ``sums`` for its sum; and 1 to add to what is there, or 0.
    entries
        See :mod:`~numba_rmsprop.kernels.rows`; the indices are not read.
    order, following : ndarray of int
        The first entry of each row, and the next entry after each.
    sums : ndarray, shape (places, columns)
        Result.
    """
    run_shares(_sum_share, team, (rows, entries, order, following, sums))


@compiled
def uniform_rows(indices: Any, seed: Integer, low: float, width: float, out: Any) -> None:
    """Write random numbers from ``low`` to ``low + width``, which depend on row, column and seed alone."""
    for i in range(indices.size):
        row = hashed(unsigned(indices[i])) ^ hashed((unsigned(indices[i]) >> unsigned(32)) + unsigned(0x9E3779B9))
        for j in range(out.shape[1]):
            bits = hashed(hashed(hashed(unsigned(j) + unsigned(1)) ^ row) + unsigned(seed))
            out[i, j] = low + width * (np.float64(bits >> unsigned(8)) * 2.0**-24)
