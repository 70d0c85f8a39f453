"""The training of the recommender example."""

from __future__ import annotations

import dataclasses
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import psutil
from numpy.typing import NDArray

from .embedding_optimizers import make_optimizer
from .interactions import Interactions
from .matrix_factors import Batch, Epoch, Model, Options, Trainer
from .resumable_training import ResumableTraining
from .top_items import SCORED_BYTES, Recommender, recall_and_ndcg

ASKED_USERS = 10_000
"""At a look, so many users are asked at most."""


class Training(ResumableTraining):
    """A model that learns who likes what, and what its checkpoints hold.

    Parameters
    ----------
    train : Interactions
        What is learnt.
    asked : Interactions
        What looks ask for. It changes nothing in the training, which always goes to its end.
    items : int
        How many items there are.
    options : Options
        What to train.
    folder : Path
        For checkpoints.
    pool : ThreadPoolExecutor
        The threads to use.
    """

    unit = "interactions"
    measured = ("recall@20", "ndcg@20")

    def __init__(
        self,
        train: Interactions,
        asked: Interactions,
        items: int,
        options: Options,
        folder: Path,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.train, self.options, self.pool = train, options, pool
        users = len(train.bounds) - 1
        check_memory(users, items, train, options)
        self.asked = some_users(asked, ASKED_USERS, options.seed)
        self.model = Model(users, items, options)
        self.trainer = Trainer(self.model, train, options, pool)
        noted = self._begin(folder, options.epochs, options.every, len(train), None)
        steps = options.epochs * len(Epoch(train, options, 0).learnt)
        self.opt = make_optimizer(options, steps, [self.model.users, self.model.items, *noted])
        arrays = (train.bounds, train.items, asked.bounds, asked.items)
        self._restore(dataclasses.asdict(options) | {"data": [zlib.crc32(array) for array in arrays]})

    def _plan(self, epoch: int) -> Epoch:
        return Epoch(self.train, self.options, epoch)

    def _train(self, batch: Batch) -> float:
        loss, count = self.trainer.train_batch(self.opt, batch)
        return loss / count

    def _look(self) -> tuple[float, ...]:
        return recall_and_ndcg(self.recommender(), self.asked, self.pool)

    def _tables(self) -> dict[str, NDArray[Any]]:
        users, items, biases = self.model.directions()
        return {"users": users, "items": items, "biases": biases}

    def _compile(self) -> None:
        """Take two steps on noise."""
        rng = np.random.default_rng(0)
        users, items = 2 * self.options.batch, 4000
        train = Interactions.of_pairs(rng.integers(0, users, 20 * users), rng.integers(0, items, 20 * users), users)
        model = Model(users, items, self.options)
        opt = make_optimizer(self.options, 2, [model.users, model.items])
        trainer = Trainer(model, train, self.options, self.pool)
        for batch in Epoch(train, self.options, 0).batches(0):
            trainer.train_batch(opt, batch)
        recall_and_ndcg(Recommender(*model.directions(), train), train, self.pool)

    def recommender(self) -> Recommender:
        """Return what recommends with the rows of now."""
        return Recommender(*self.model.directions(), self.train)

    def results(self) -> dict[str, float]:
        """Return what is to be told of the training."""
        return dataclasses.asdict(self.options) | super().results()


def some_users(asked: Interactions, count: int, seed: int) -> Interactions:
    """Return the interactions of so many users, drawn at random, or of all."""
    users = np.flatnonzero(asked.counts)
    if len(users) <= count:
        return asked
    drawn = np.random.default_rng(seed).choice(users, count, replace=False)
    return asked.parted(np.isin(asked.users, drawn))[1]


def check_memory(users: int, items: int, train: Interactions, options: Options) -> None:
    """Raise MemoryError if what the training needs is not free: Linux promises memory, and kills who takes it."""
    batch = min(options.batch, users)
    candidates = min(items, options.negatives + int(np.sort(train.counts)[-batch:].sum()))
    copies = 6 if options.optimizer in ("sparse-adam", "dense") else 4  # tables, state, and directions to ask with
    tables = (users + items) * (options.rank + 1) * copies
    buffers = batch * candidates + 5 * candidates * (options.rank + 1)
    needed = 4 * (tables + buffers) + 2 * numba.get_num_threads() * SCORED_BYTES
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(f"the training needs {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free")
