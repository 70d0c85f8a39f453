"""Matrix factorisation with sampled softmax: the model of the recommender example.

Each user has a row, and each item a row and a bias. A score is the cosine of the two rows, divided by a temperature,
plus the bias. For each item of a user, the loss is the cross-entropy of that item among the items that the user does
not have, estimated from candidates: all users of a batch share the items of all of them, so that what is often right is
often wrong as well, and items drawn at random. From the score of each wrong candidate, the logarithm of its chance to
be drawn is subtracted, so that their sum estimates that over all items (Jean et al., "On Using Very Large Target
Vocabulary for Neural Machine Translation", 2015, equation 8).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_rmsprop import IndexedSlices

from .embedding_optimizers import Optimizer
from .interactions import Interactions
from .table_forms import dtype_of

Array = NDArray[np.float32]

USERS_AT_ONCE, ITEMS_AT_ONCE = 64, 512
"""What a thread takes at a time, at most."""


@dataclass(frozen=True)
class Options:
    """What to train; see ``recommender.py --help``."""

    rank: int
    batch: int
    negatives: int
    epochs: int
    learning_rate: float
    rho: float
    temperature: float
    every: int
    seed: int
    optimizer: str
    form: str = "float32"


class Model:
    """The rows of all users and items.

    Attributes
    ----------
    users : ndarray, shape (users, rank)
        Of float32, or of the dtype of another form.
    items : ndarray, shape (items, rank + 1)
        The bias stands in the last column.
    """

    def __init__(self, users: int, items: int, options: Options) -> None:
        rng = np.random.default_rng(options.seed)
        self.temperature = np.float32(options.temperature)
        self.users, self.items = (
            0.1 * rng.standard_normal((count, options.rank + more), np.float32)
            for count, more in ((users, 0), (items, 1))
        )
        self.items[:, -1] = 0
        dtype = dtype_of(options.form)
        self.users, self.items = self.users.astype(dtype, copy=False), self.items.astype(dtype, copy=False)

    def directions(self) -> tuple[Array, Array, Array]:
        """Return what scores are made of: ``users @ items.T + biases``."""
        users, items = self.users.astype(np.float32), self.items.astype(np.float32)
        users, _ = _normed(users)
        biases = items[:, -1].copy()
        items, _ = _normed(items[:, :-1])
        return users / self.temperature, items, biases


class Epoch:
    """One pass over all users who have items, in an order that is the same for the same seed.

    Attributes
    ----------
    learnt : ndarray of int64, shape (batches,)
        How many interactions have been learnt after each batch.
    """

    def __init__(self, train: Interactions, options: Options, epoch: int) -> None:
        self.seed = [options.seed, epoch + 1]
        counts = train.counts
        order = np.random.default_rng(self.seed).permutation(np.flatnonzero(counts))
        self._users = [order[begin : begin + options.batch] for begin in range(0, len(order), options.batch)]
        self.learnt = np.cumsum([int(counts[users].sum()) for users in self._users])

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield the batches from number ``first`` on."""
        for number, users in enumerate(self._users[first:], first + 1):
            yield Batch(users, [*self.seed, number])


@dataclass
class Batch:
    """Users to learn the items of; ``seed`` tells which other items are drawn."""

    users: NDArray[np.int64]
    seed: list[int]


@dataclass
class Work:
    """The rows of a batch and what becomes of them.

    ``owners`` and ``right`` tell the user of each right answer, and its place among the candidates.
    """

    users: Array
    items: Array
    user_grads: Array
    item_grads: Array
    user_norms: Array
    item_norms: Array
    scores: Array
    shifts: Array
    rarity: Array
    owners: NDArray[np.int64]
    right: NDArray[np.int64]


class Trainer:
    """What learns batch after batch, on all threads.

    The bits do not depend on the number of threads: what a thread takes at a time does not, nor the order of any sum.

    Attributes
    ----------
    stepping : float
        Seconds that the optimizer's steps took.
    """

    def __init__(self, model: Model, train: Interactions, options: Options, pool: ThreadPoolExecutor) -> None:
        self.model, self.train, self.options, self.pool = model, train, options, pool
        self.stepping = 0.0
        count = len(model.items)
        self._negatives = min(options.negatives, count)
        share = min(1.0, options.batch / np.count_nonzero(train.counts))
        missed = (1 - self._negatives / count) * (1 - share) ** np.bincount(train.items, minlength=count)
        self._rarity = -np.log1p(-missed).astype(np.float32)

    def train_batch(self, opt: Optimizer, batch: Batch) -> tuple[float, int]:
        """Take one step on both tables; return the sum of the losses, and of how many items."""
        owned, owners = self.train.of(batch.users)
        candidates = self._candidates(owned, batch.seed)
        n, k, rank = len(batch.users), len(candidates), self.options.rank
        rows = opt.gather(self.model.users, batch.users, np.empty((n, rank), np.float32))
        items = opt.gather(self.model.items, candidates, np.empty((k, rank + 1), np.float32))
        users, norms = _normed(rows)
        rarity = self._rarity[candidates]
        work = Work(
            users, np.empty((k, rank), np.float32), np.empty_like(rows), np.empty_like(items), norms,
            np.empty((k, 1), np.float32), np.empty((n, k), np.float32), items[:, -1] + rarity, rarity, owners,
            np.searchsorted(candidates, owned),
        )  # fmt: skip

        def norm(part: slice) -> None:
            work.items[part], work.item_norms[part] = _normed(items[part, :-1])

        self._shared(k, ITEMS_AT_ONCE, norm)
        loss = sum(self._shared(n, USERS_AT_ONCE, lambda part: self._ask(part, work)))
        self._shared(k, ITEMS_AT_ONCE, lambda part: self._blame(part, work))
        started = time.perf_counter()
        opt.apply_gradients(
            [
                (IndexedSlices(work.user_grads, batch.users), self.model.users),
                (IndexedSlices(work.item_grads, candidates), self.model.items),
            ]
        )
        self.stepping += time.perf_counter() - started
        return loss, len(owned)

    def _candidates(self, owned: NDArray[np.int64], seed: list[int]) -> NDArray[np.int64]:
        """Return different items, in order."""
        count = len(self.model.items)
        if self._negatives == count:
            return np.arange(count)
        drawn = np.random.default_rng(seed).choice(count, self._negatives, replace=False, shuffle=False)
        return np.unique(np.concatenate([drawn, owned]))

    def _shared(self, count: int, at_once: int, work: Callable[[slice], Any]) -> list[Any]:
        """Return what ``work`` returns for each part, from all threads."""
        bounds = np.linspace(0, count, -(-count // at_once) + 1).astype(int)
        return list(self.pool.map(work, [slice(*pair) for pair in pairwise(bounds)]))

    def _ask(self, part: slice, work: Work) -> float:
        """Ask some users: return the sum of their losses, write its slopes by scores and users' rows."""
        scores, users = work.scores[part], work.users[part]
        np.matmul(users / self.model.temperature, work.items.T, out=scores)
        scores += work.shifts
        answers = slice(*np.searchsorted(work.owners, [part.start, part.stop]))
        loss = softmax_slopes(scores, work.rarity, work.owners[answers] - part.start, work.right[answers])
        slopes = scores @ work.items / self.model.temperature
        work.user_grads[part] = _across(slopes, users) / work.user_norms[part]
        return loss

    def _blame(self, part: slice, work: Work) -> None:
        """Write the gradients of some candidates."""
        scores, items = work.scores[:, part], work.items[part]
        slopes = scores.T @ (work.users / self.model.temperature)
        work.item_grads[part, :-1] = _across(slopes, items) / work.item_norms[part]
        work.item_grads[part, -1] = scores.sum(axis=0)


def softmax_slopes(scores: Array, rarity: Array, owners: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Replace scores by the slopes of the sum of all losses; return the sum.

    The loss of a right item is its cross-entropy among itself and all candidates that are not right for its user.

    Parameters
    ----------
    scores : ndarray of float32, shape (users, candidates)
        Scores, to which the rarity of the candidates was added.
    rarity : ndarray of float32, shape (candidates,)
        Minus the logarithm of each candidate's chance to be drawn.
    owners, right : ndarray of int64, shape (answers,)
        The user and the candidate of each right item.
    """
    own = scores[owners, right] - rarity[right]
    scores[owners, right] = -np.inf
    largest = scores.max(axis=1)
    largest[np.isinf(largest)] = 0  # a user who has all candidates
    scores -= largest[:, np.newaxis]
    np.exp(scores, out=scores)
    totals = scores.sum(axis=1)
    with np.errstate(divide="ignore"):
        behind = np.log(totals)[owners] + largest[owners] - own
    wrong = 1 / (1 + np.exp(-behind))
    shares = np.bincount(owners, wrong, len(totals)) / np.maximum(totals, np.finfo(np.float32).tiny)
    scores *= shares.astype(np.float32)[:, np.newaxis]
    scores[owners, right] = -wrong
    return float(np.logaddexp(0, behind).sum())


def _normed(rows: Array) -> tuple[Array, Array]:
    """Return rows of norm 1 and the norms, shape (n, 1)."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, np.newaxis] + np.float32(1e-12)
    return rows / norms, norms


def _across(slopes: Array, directions: Array) -> Array:
    """Return slopes without their part along directions of norm 1, by which no cosine changes."""
    return slopes - np.einsum("ij,ij->i", slopes, directions)[:, np.newaxis] * directions
