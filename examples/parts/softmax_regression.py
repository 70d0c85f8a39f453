"""Softmax regression on sparse rows: the model of the classifier example.

The gradient of a mini-batch X of documents is X.T @ (probabilities - answers). It has a row for each word of the batch
and none for the thousands of others, and the optimizer takes its two factors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from numba_rmsprop import RMSprop, SparseProduct, schedules


@dataclass(frozen=True)
class Options:
    """How to train; see ``sparse_classifier.py --help``."""

    epochs: int
    batch: int
    learning_rate: float
    momentum: float
    weight_decay: float
    rho: float
    seed: int


@dataclass
class Rows:
    """Documents as sparse rows, and the number of each one's class, below ``classes``."""

    features: csr_array
    labels: NDArray[np.int64]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: NDArray[np.int64] | slice) -> Rows:
        return Rows(self.features[which], self.labels[which], self.classes)


class Model:
    """A row of weights for each word, a column for each class; all 0 before training."""

    def __init__(self, rows: Rows) -> None:
        self.weights = np.zeros((rows.features.shape[1], rows.classes), np.float32)
        self.bias = np.zeros(rows.classes, np.float32)

    def answers(self, rows: Rows) -> NDArray[np.int64]:
        """Return the likeliest class of each row."""
        return np.argmax(rows.features @ self.weights + self.bias, axis=1)


@dataclass
class Course:
    """How a training went: epochs and seconds until then, and the held-out accuracy; asking is not timed.

    Attributes
    ----------
    epochs, seconds, accuracy : list
        One for each time that it was asked.
    settings : dict of str to float
        What was tuned.
    """

    epochs: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    settings: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, accuracy: float, epochs: int = 1) -> None:
        """Note what further epochs took, and the accuracy after them."""
        self.epochs.append(sum(self.epochs[-1:]) + epochs)
        self.seconds.append(sum(self.seconds[-1:]) + seconds)
        self.accuracy.append(float(accuracy))

    def results(self) -> dict[str, float]:
        """Return what is reported: the end, and the time of an epoch."""
        if not self.epochs:
            return {"accuracy": 0.0, "epochs": 0, "seconds_per_epoch": 0.0} | self.settings
        each = {"epochs": self.epochs[-1], "seconds_per_epoch": round(self.seconds[-1] / self.epochs[-1], 5)}
        return {"accuracy": round(self.accuracy[-1], 4)} | each | self.settings


def train(
    model: Model,
    rows: Rows,
    options: Options,
    after_batch: Callable[[int], object] = lambda documents: None,
    after_epoch: Callable[[float], object] = lambda seconds: None,
) -> None:
    """Train the model in place. If this is interrupted, the model is what the steps until then have made of it."""
    steps = options.epochs * -(-len(rows) // options.batch)
    opt = RMSprop(
        schedules.PolynomialDecay(options.learning_rate, steps, 0.0),
        rho=options.rho,
        momentum=options.momentum,
        epsilon=1e-6,
        weight_decay=options.weight_decay,
    )
    opt.build([model.weights, model.bias])
    try:
        for epoch in range(options.epochs):
            started = time.perf_counter()
            shuffled = rows[np.random.default_rng([options.seed, epoch]).permutation(len(rows))]
            for start in range(0, len(rows), options.batch):
                batch = shuffled[start : start + options.batch]
                train_batch(opt, model, batch)
                after_batch(len(batch))
            opt.flush()  # the model is read as a whole after an epoch
            after_epoch(time.perf_counter() - started)
    finally:
        opt.flush()


def train_batch(opt: RMSprop, model: Model, batch: Rows) -> None:
    """Take one step."""
    x, documents = batch.features, np.arange(len(batch))
    # x @ weights, of which those of the batch's words have moved, with momentum, since a batch last had these words.
    scores = opt.multiply(x, model.weights) + model.bias
    residual = np.exp(scores - scores.max(axis=1, keepdims=True))
    residual /= residual.sum(axis=1, keepdims=True)
    residual[documents, batch.labels] -= 1
    residual /= len(batch)
    opt.apply_gradients([(SparseProduct(x, residual), model.weights), (residual.sum(axis=0), model.bias)])
