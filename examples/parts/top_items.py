"""The items that a model would recommend, and how many of them are right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from tqdm import tqdm

from .interactions import Interactions
from .matrix_factors import Array

SCORED_BYTES = 2**25
"""What the scores that a thread holds at a time may take, if one user's do not take more."""


class Recommender:
    """Scores of all items for each user: ``users @ items.T + biases``; those that a user has are left out."""

    def __init__(self, users: Array, items: Array, biases: Array, known: Interactions) -> None:
        self.users, self.items, self.biases, self.known = users, items, biases, known

    def top(self, users: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Return the items with the highest scores, the highest first, shape (users, count); -1 where none are left."""
        scores = self.users[users] @ self.items.T
        scores += self.biases
        owned, owners = self.known.of(users)
        scores[owners, owned] = -np.inf
        found = np.empty((len(users), count), np.int64)
        _find_top(scores, found)
        return found


@njit(nogil=True, cache=True)
def _find_top(scores: Any, found: Any) -> None:
    """Write the columns of the largest numbers of each row, the largest first; of equals, the first column first."""
    count = found.shape[1]
    largest = np.empty(count, scores.dtype)
    for r in range(scores.shape[0]):
        largest[:] = -np.inf
        found[r] = -1
        for j in range(scores.shape[1]):
            score = scores[r, j]
            if score > largest[count - 1]:
                place = count - 1
                while place > 0 and largest[place - 1] < score:
                    largest[place] = largest[place - 1]
                    found[r, place] = found[r, place - 1]
                    place -= 1
                largest[place] = score
                found[r, place] = j


def recall_and_ndcg(
    recommender: Recommender, asked: Interactions, pool: ThreadPoolExecutor, count: int = 20
) -> tuple[float, float]:
    """Return Recall@count and NDCG@count, means over the users who are asked.

    As in the papers that report on Gowalla's split: recall is the share of a user's held-out items that are among the
    first ``count``; NDCG gives a right item at place ``p`` (from 1) ``1 / log2(1 + p)``, divided by what the best order
    of the held-out items would get.
    """
    users = np.flatnonzero(asked.counts)
    discounts = 1 / np.log2(np.arange(2, count + 2))
    best = np.cumsum(discounts)
    width = 1 + max(len(recommender.items), int(asked.items.max(initial=0)))
    right = np.sort(asked.users * width + asked.items)

    def measures(part: NDArray[np.int64]) -> NDArray[np.float64]:
        top = recommender.top(part, count)
        wanted = part[:, np.newaxis] * width + top
        places = np.minimum(np.searchsorted(right, wanted), len(right) - 1)
        hits = (right[places] == wanted) & (top >= 0)
        held = asked.counts[part]
        return np.array([(hits.sum(axis=1) / held).sum(), (hits @ discounts / best[np.minimum(held, count) - 1]).sum()])

    at_once = max(1, SCORED_BYTES // (4 * len(recommender.items)))
    parts = [users[begin : begin + at_once] for begin in range(0, len(users), at_once)]
    found = tqdm(pool.map(measures, parts), total=len(parts), desc="asking", delay=1, leave=False)
    recall, ndcg = np.sum(list(found), axis=0) / len(users)
    return float(recall), float(ndcg)
