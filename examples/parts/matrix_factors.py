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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numba_rmsprop import IndexedSlices

from .embedding_optimizers import Optimizer
from .interactions import Interactions
from .row_kernels import norm_rows, slopes_through_norms, softmax_slopes
from .table_forms import dtype_of
from .threads import shared

Array = NDArray[np.float32]

USERS_AT_ONCE, ITEMS_AT_ONCE = 64, 1024
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
        directions = np.empty_like(users), np.empty_like(items[:, :-1], order="C")
        for rows, normed in zip((users, items), directions, strict=True):
            norm_rows(rows, normed, np.empty(len(rows), np.float32))
        return directions[0] / self.temperature, directions[1], items[:, -1].copy()


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
    """The rows of a batch and what becomes of them: directions, slopes by these, and gradients.

    User ``u`` of the batch has the right answers ``right[bounds[u] : bounds[u + 1]]``, places among the candidates.
    """

    users: Array
    items: Array
    user_norms: Array
    item_norms: Array
    scores: Array
    shifts: Array
    rarity: Array
    bounds: NDArray[np.int64]
    right: NDArray[np.int64]
    user_grads: Array
    item_grads: Array


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
        share = min(1.0, options.batch / np.count_nonzero(train.counts))
        missed = (1 - 1 / count) ** options.negatives * (1 - share) ** np.bincount(train.items, minlength=count)
        self._chosen, self._places = np.zeros(count, bool), np.zeros(count, np.int64)
        self._memory: dict[str, Array] = {}
        self._rarity = -np.log1p(-missed).astype(np.float32)

    def train_batch(self, opt: Optimizer, batch: Batch) -> tuple[float, int]:
        """Take one step on both tables; return the sum of the losses, and of how many items."""
        owned, _ = self.train.of(batch.users)
        candidates, right = self._candidates(owned, batch.seed)
        n, k, rank = len(batch.users), len(candidates), self.options.rank
        users = opt.gather(self.model.users, batch.users, self._scratch("rows of users", n, rank))
        items = opt.gather(self.model.items, candidates, self._scratch("rows of items", k, rank + 1))
        rarity = self._rarity[candidates]
        work = Work(
            self._scratch("users", n, rank), self._scratch("items", k, rank), np.empty(n, np.float32),
            np.empty(k, np.float32), self._scratch("scores", n, k), items[:, rank] + rarity, rarity,
            np.append(0, np.cumsum(self.train.counts[batch.users])), right,
            self._scratch("gradients of users", n, rank), self._scratch("gradients of items", k, rank + 1),
        )  # fmt: skip
        norm_rows(users, work.users, work.user_norms)
        shared(
            self.pool, k, ITEMS_AT_ONCE, lambda part: norm_rows(items[part], work.items[part], work.item_norms[part])
        )
        loss = sum(shared(self.pool, n, USERS_AT_ONCE, lambda part: self._ask(part, work)))
        shared(self.pool, k, ITEMS_AT_ONCE, lambda part: self._blame(part, work))
        started = time.perf_counter()
        opt.apply_gradients(
            [
                (IndexedSlices(work.user_grads, batch.users), self.model.users),
                (IndexedSlices(work.item_grads, candidates), self.model.items),
            ]
        )
        self.stepping += time.perf_counter() - started
        return loss, len(owned)

    def _candidates(self, owned: NDArray[np.int64], seed: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return different items, in order, and the place of each owned one among them."""
        drawn = np.random.default_rng(seed).integers(0, len(self.model.items), self.options.negatives)
        self._chosen[drawn] = self._chosen[owned] = True
        candidates = np.flatnonzero(self._chosen)
        self._chosen[candidates] = False
        self._places[candidates] = np.arange(len(candidates))
        return candidates, self._places[owned]

    def _scratch(self, name: str, rows: int, columns: int) -> Array:
        """Return memory that is the same for every batch."""
        flat = self._memory.get(name)
        if flat is None or flat.size < rows * columns:
            flat = self._memory[name] = np.empty(rows * columns * 5 // 4, np.float32)
        return flat[: rows * columns].reshape(rows, columns)

    def _ask(self, part: slice, work: Work) -> float:
        """Ask some users: return the sum of their losses, write its slopes by scores and users' rows."""
        scores, scale = work.scores[part], 1 / self.model.temperature
        np.matmul(work.users[part] * scale, work.items.T, out=scores)
        bounds = work.bounds[part.start : part.stop + 1]
        loss: float = softmax_slopes(scores, work.shifts, work.rarity, bounds, work.right)
        slopes = scores @ work.items
        slopes_through_norms(slopes, scale, work.users[part], work.user_norms[part], work.user_grads[part])
        return loss

    def _blame(self, part: slice, work: Work) -> None:
        """Write the gradients of some candidates."""
        scores = work.scores[:, part]
        slopes = scores.T @ work.users
        grads = work.item_grads[part]
        slopes_through_norms(slopes, 1 / self.model.temperature, work.items[part], work.item_norms[part], grads)
        grads[:, -1] = scores.sum(axis=0)
