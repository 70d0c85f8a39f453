"""How well a model answers questions: ranks of the known answers among all entities, filtered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .bilinear import Model
from .triples import Answers, Graph

ASKED_BYTES = 2**25
"""What the scores that a thread holds at a time may take, if one question's do not take more."""


def ranks(
    model: Model, graph: Graph, answers: Answers, triples: NDArray[np.int64], pool: ThreadPoolExecutor
) -> NDArray[np.float64]:
    """Return the rank of each triple's tail, and then of each triple's head, among all entities.

    Other entities that are known to be right, in any part of the graph, are left out. Of equals, the rank is the mean:
    half of them count as better. An entity whose score is no number counts as better, so that a model
    that has diverged gets bad ranks.
    """
    asked = graph.both_ways(triples)

    def ranks_of(part: NDArray[np.int64]) -> NDArray[np.float64]:
        scores = model.questions(part) @ model.entities.T
        own = scores[np.arange(len(part)), part[:, 2]][:, None]
        known, owner = answers.of(part)
        scores[owner, known] = -np.inf
        better = np.count_nonzero(~(scores <= own), axis=1)
        equal = np.count_nonzero(scores == own, axis=1)
        return 1 + better + equal / 2

    at_once = max(1, ASKED_BYTES // (4 * len(graph.entities)))
    parts = [asked[start : start + at_once] for start in range(0, len(asked), at_once)]
    found = tqdm(pool.map(ranks_of, parts), total=len(parts), desc="asking", delay=1, leave=False)
    return np.concatenate(list(found))


def summary(ranks: NDArray[np.float64]) -> dict[str, float]:
    """Return the mean reciprocal rank, and how often the right answer is among the first 1, 3 and 10."""
    return {"mrr": float((1 / ranks).mean())} | {f"hits@{k}": float((ranks <= k).mean()) for k in (1, 3, 10)}
