"""Sums of numbers over all ranks, none of them below 0, that are rounded once: the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = -1073, 1024
"""Exponents of the smallest and the largest float64, as numpy.frexp returns them."""

DIGITS = 53
"""Bits of a float64, without its exponent."""

SUM_BYTES = 280
"""Bytes of a sum of 2**64 numbers, in units of the last digit of the smallest one."""


def partial_sum(terms: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return one rank's sum without rounding, in the bytes that ranks send to one another.

    Infinity and NaN are added up in the first eight bytes, all other numbers in the rest.
    """
    finite = np.isfinite(terms)
    mantissas, exponents = np.frexp(terms[finite])
    digits = (mantissas * 2.0**DIGITS).astype(np.int64)
    # Digits of one exponent are added up in two halves, so that 2³¹ of them stay within 64 bits.
    low, high = np.zeros((2, HIGHEST - LOWEST + 1), np.int64)
    np.add.at(low, exponents - LOWEST, digits & (2**27 - 1))
    np.add.at(high, exponents - LOWEST, digits >> 27)
    total = sum(((int(high[k]) << 27) + int(low[k])) << k for k in np.flatnonzero(high).tolist())
    return np.frombuffer(terms[~finite].sum().tobytes() + total.to_bytes(SUM_BYTES, "little"), np.uint8)


def exact_sum(parts: Iterable[NDArray[np.uint8]]) -> float:
    """Return the sum of all ranks' :func:`partial_sum`, rounded once.

    >>> exact_sum([partial_sum(np.array([1e16, 1.0])), partial_sum(np.array([1.0]))]) - 1e16
    2.0
    """
    not_finite, total = 0.0, 0
    for part in parts:
        not_finite += float(part[:8].view(np.float64)[0])
        total += int.from_bytes(part[8:].tobytes(), "little")
    if not_finite:
        return not_finite
    try:
        return total / (1 << (DIGITS - LOWEST))  # integers, whose quotient Python rounds once
    except OverflowError:
        return math.inf
