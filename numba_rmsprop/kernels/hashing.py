"""Hashes of row numbers, and random bits made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import Integer, compiled_inline, inlined

unsigned = np.uint64
LOW = unsigned(0xFFFFFFFF)


@inlined
def hashed(number: Any) -> Any:
    """Return 32 bits of a number, mixed as at the end of MurmurHash3; no product passes 64 bits, also in Python."""
    mixed = unsigned(number)
    mixed = (mixed ^ (mixed >> unsigned(32))) & LOW
    mixed = ((mixed ^ (mixed >> unsigned(16))) * unsigned(0x85EBCA6B)) & LOW
    mixed = ((mixed ^ (mixed >> unsigned(13))) * unsigned(0xC2B2AE35)) & LOW
    return mixed ^ (mixed >> unsigned(16))


@inlined
def owner_of_first(block: Integer, ranks: Integer) -> Any:
    """Return the rank that owns the first row of a block, which has a row for each rank."""
    return np.int64((hashed(block) * unsigned(ranks)) >> unsigned(32))


@compiled_inline
def noise_of_row(row: Integer, key: Integer, ranks: Integer, rank: Integer, rows: Any) -> Any:
    """Return 64 random bits of a row, the same on all ranks among which a table is shared.

    ``key`` stands for the seed, the variable and the step; there are so many ``ranks``, and this is number ``rank``.
    Copies of rows come with the numbers of these ``rows``, or else there is None.
    """
    if rows is not None:
        row = np.int64(rows[row])
    if ranks > 1:
        row = row * ranks + (rank - owner_of_first(row, ranks) + ranks) % ranks
    first = hashed(unsigned(key) ^ hashed(row))
    return first | (hashed((unsigned(key) >> unsigned(32)) ^ (first + unsigned(row))) << unsigned(32))
