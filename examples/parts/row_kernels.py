"""Kernels of the recommender example, which take a row at a time while it is in the cache; threads share rows out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

LOG2_E = np.float32(1 / math.log(2))
POWERS = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))
"""The series of 2**x, from the first power on; at most 2e-8 off where ``abs(x) <= 0.5``."""

LEAST = np.float32(-126)
"""Smaller powers of two are no normal numbers of float32, and count as this one."""

REASSOCIATED = {"reassoc", "nsz", "contract"}
"""What LLVM may change, to add up eight numbers at a time; the bits stay the same for a row."""


@njit(nogil=True, cache=True, fastmath=REASSOCIATED)
def norm_rows(rows: Any, normed: Any, norms: Any) -> None:
    """Write rows of norm 1, as many columns as ``normed`` has, and their norms before."""
    for r in range(normed.shape[0]):
        square = np.float32(1e-24)
        for j in range(normed.shape[1]):
            square += rows[r, j] * rows[r, j]
        norms[r] = np.sqrt(square)
        factor = np.float32(1) / norms[r]
        for j in range(normed.shape[1]):
            normed[r, j] = rows[r, j] * factor


@njit(nogil=True, cache=True, fastmath=REASSOCIATED)
def slopes_through_norms(slopes: Any, factor: float, normed: Any, norms: Any, grads: Any) -> None:
    """Write the slopes by rows, from those by their directions: without the part along these, and divided by norms."""
    for r in range(normed.shape[0]):
        along = np.float32(0)
        for j in range(normed.shape[1]):
            along += slopes[r, j] * normed[r, j]
        scale = np.float32(factor) / norms[r]
        for j in range(normed.shape[1]):
            grads[r, j] = (slopes[r, j] - along * normed[r, j]) * scale


@njit(nogil=True, cache=True, fastmath=REASSOCIATED)
def softmax_slopes(scores: Any, shifts: Any, rarity: Any, bounds: Any, right: Any) -> float:
    """Replace scores by the slopes of the sum of all losses; return the sum.

    The loss of a right item is its cross-entropy among itself and all candidates that are not right for its user.

    Parameters
    ----------
    scores : ndarray of float32, shape (users, candidates)
        Scores, without what does not depend on the user.
    shifts, rarity : ndarray of float32, shape (candidates,)
        What is added to the scores, and the part of that which is not to be added where a candidate is right: minus the
        logarithm of its chance to be drawn.
    bounds : ndarray of int64, shape (users + 1,)
        User ``u`` has the right items ``right[bounds[u] : bounds[u + 1]]``.
    right : ndarray of int64
        Places of candidates.
    """
    count = scores.shape[1]
    bits = np.empty(count, np.int32)
    powers = bits.view(np.float32)
    own = np.empty(0, np.float32)
    loss = 0.0
    for r in range(scores.shape[0]):
        row, mine = scores[r], right[bounds[r] : bounds[r + 1]]
        if mine.size > own.size:
            own = np.empty(2 * mine.size, np.float32)
        for k in range(mine.size):
            place = mine[k]
            own[k] = row[place] + shifts[place] - rarity[place]
            row[place] = np.float32(-1e30)
        largest = np.float32(-1e30)
        for j in range(count):
            row[j] += shifts[j]
            largest = max(largest, row[j])
        for j in range(count):  # 2**x is 2**whole, made of its bits, times 2**rest, by the series
            exponent = max((row[j] - largest) * LOG2_E, LEAST)
            whole = np.floor(exponent + np.float32(0.5))
            bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
            x = exponent - whole
            row[j] = np.float32(1) + x * (
                POWERS[0] + x * (POWERS[1] + x * (POWERS[2] + x * (POWERS[3] + x * (POWERS[4] + x * POWERS[5]))))
            )
        for k in range(mine.size):
            row[mine[k]] = 0
        total = np.float32(0)
        for j in range(count):
            row[j] *= powers[j]
            total += row[j]
        share = 0.0
        for k in range(mine.size):
            if total > 0:
                behind = math.log(total) + largest - own[k]
                wrong = 1 / (1 + math.exp(-behind)) if behind > -700 else 0.0
                loss += behind + math.log1p(math.exp(-behind)) if behind > 0 else math.log1p(math.exp(behind))
            else:  # the user has all candidates
                wrong = 0.0
            share += wrong
            own[k] = -wrong
        factor = np.float32(share / total) if total > 0 else np.float32(0)
        for j in range(count):
            row[j] *= factor
        for k in range(mine.size):
            row[mine[k]] = own[k]
    return loss
