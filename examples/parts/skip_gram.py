"""Skip-gram with negative sampling: the model of the word-vector example.

Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", 2013, equation 4. For a
word of the text and the words around it, the model raises the scores (inner products) of the pairs that occur and
lowers those with words drawn at random. Each occurrence of a word draws its own random words once, for all of its
pairs, and more than it needs: a draw then weighs ``negatives * pairs / draws``, which has the same mean as drawing
for each pair anew, less noise, and a third of the rows to gather.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct

from .documentation_text import Text
from .table_forms import dtype_of

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Options:
    """What to train; see ``word_vectors.py --help``."""

    dim: int
    window: int
    negatives: int
    draws: int
    batch: int
    epochs: int
    sample: float
    learning_rate: float
    rho: float
    seed: int
    form: str = "float32"


@dataclass
class Batch:
    """Words and where their targets lie: those of word ``p`` are ``targets[offsets[p] : offsets[p + 1]]``.

    The first ``pairs[p]`` of them stand around it in the text; the rest are random.
    """

    words: NDArray[np.int64]
    pairs: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int64]


class Epoch:
    """One pass over the text, the same for the same seed: which words are left out, in what order the rest comes."""

    def __init__(self, text: Text, options: Options, epoch: int) -> None:
        rng = np.random.default_rng([options.seed, epoch])
        kept = rng.random(len(text.words)) < keep_probability(text, options.sample)[text.words]
        before = np.concatenate([[0], np.cumsum(kept)])
        self.text = text.words[kept]
        self.starts, self.ends = before[text.starts[kept]], before[text.ends[kept]]
        self.order = rng.permutation(len(self.text))
        self.spans = rng.integers(1, options.window + 1, len(self.text))
        here = np.arange(len(self.text))
        self.pairs = np.minimum(here - self.starts, self.spans) + np.minimum(self.ends - 1 - here, self.spans)
        self.seed = np.uint64(rng.integers(2**63))
        self.cumulative = np.cumsum(text.counts**0.75)
        self.options = options

    def __len__(self) -> int:
        return -(-len(self.order) // self.options.batch)

    def batches(self, first: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield the batches from number ``first`` on, or of each batch one of several parts of about the same size."""
        size = self.options.batch
        for start in range(first * size, len(self.order), size):
            positions = self.order[start : start + size]
            positions = positions[part * len(positions) // parts : (part + 1) * len(positions) // parts]
            pairs = self.pairs[positions]
            offsets = np.zeros(len(positions) + 1, np.int64)
            np.cumsum(pairs + self.options.draws, out=offsets[1:])
            words, targets = np.empty(len(positions), np.int64), np.empty(offsets[-1], np.int64)
            fill_batch(
                positions, self.spans, self.text, self.starts, self.ends, offsets,
                self.cumulative, self.seed, words, targets,
            )  # fmt: skip
            yield Batch(words, pairs, offsets, targets)


def keep_probability(text: Text, sample: float) -> NDArray[np.float64]:
    """Return how likely each word is to be kept: frequent ones are left out often, as word2vec does."""
    threshold = sample / (text.counts / text.counts.sum())
    return np.minimum(1.0, np.sqrt(threshold) + threshold)


def expected_batches(text: Text, options: Options) -> int:
    """Return about how many batches the whole training has, for the learning-rate schedule."""
    return options.epochs * max(1, round(keep_probability(text, options.sample)[text.words].sum() / options.batch))


def start_tables(text: Text, options: Options) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vectors of words and of contexts before training."""
    shape = len(text.vocabulary), options.dim
    rng = np.random.default_rng(options.seed)
    vectors = (rng.random(shape, np.float32) - np.float32(0.5)) / np.float32(options.dim)
    return vectors.astype(dtype_of(options.form)), np.zeros(shape, dtype_of(options.form))


class Buffers:
    """Memory for the rows and gradients of any batch, kept from step to step: new pages take time to come."""

    def __init__(self, options: Options) -> None:
        targets = options.batch * (2 * options.window + options.draws)
        self.x, self.x_grad = (np.empty((options.batch, options.dim), np.float32) for _ in range(2))
        self.y = np.empty((targets, options.dim), np.float32)
        self.slopes = np.empty(targets, np.float32)
        self.losses = np.empty(options.batch)


def train_batch(
    opt: RMSprop,
    vectors: NDArray[np.float32],
    contexts: NDArray[np.float32],
    batch: Batch,
    buffers: Buffers,
    options: Options,
) -> float:
    """Take one step on both tables, and return the sum of the pairs' losses."""
    n, m = len(batch.words), len(batch.targets)
    x = opt.gather(vectors, batch.words, out=buffers.x[:n])
    y = opt.gather(contexts, batch.targets, out=buffers.y[:m])
    losses = buffers.losses[:n]
    x_grad, y_grad = gradients(x, y, batch, buffers, options)
    opt.apply_gradients([(IndexedSlices(x_grad, batch.words), vectors), (y_grad, contexts)])
    return float(losses.sum())


def gradients(
    x: NDArray[np.float32], y: NDArray[np.float32], batch: Batch, buffers: Buffers, options: Options
) -> tuple[NDArray[np.float32], SparseProduct]:
    """Return the gradients of a batch's words, and of its contexts, each of which is a number times a row of x."""
    n, m = x.shape[0], y.shape[0]
    x_grad, slopes, weight = buffers.x_grad[:n], buffers.slopes[:m], np.float32(options.negatives / options.draws)
    batch_gradients(x, y, batch.pairs, batch.offsets, weight, x_grad, slopes, buffers.losses[:n])
    return x_grad, SparseProduct.from_bags(x, batch.targets, batch.offsets, slopes, include_last_offset=True)


@njit(cache=True)
def _mixed(z):
    """Return the random bits of state ``z`` (splitmix64, https://prng.di.unimi.it/splitmix64.c)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, parallel=True)
def fill_batch(positions, spans, text, starts, ends, offsets, cumulative, seed, words, targets):
    """Write each position's word, the words around it, and words drawn by ``cumulative`` weight."""
    for p in prange(positions.size):
        i = positions[p]
        words[p] = text[i]
        k = offsets[p]
        for j in range(max(starts[i], i - spans[i]), min(ends[i], i + spans[i] + 1)):
            if j != i:
                targets[k] = text[j]
                k += 1
        # a generator of its own for each position: the draws do not depend on the number of threads
        state = _mixed(seed + np.uint64(i) * GOLDEN)
        for draw in range(k, offsets[p + 1]):
            state += GOLDEN
            uniform = (_mixed(state) >> np.uint64(11)) * 2.0**-53
            targets[draw] = np.searchsorted(cumulative, uniform * cumulative[-1], "right")


@njit(cache=True, parallel=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def batch_gradients(x, y, pairs, offsets, weight, x_grad, slopes, losses):
    """Write the gradient of the loss with respect to ``x``, and to ``y`` as factors of ``x``; and each word's loss."""
    dim = x.shape[1]
    for p in prange(x.shape[0]):
        losses[p] = 0.0
        for d in range(dim):
            x_grad[p, d] = 0
        for k in range(offsets[p], offsets[p + 1]):
            score = np.float32(0)
            for d in range(dim):
                score += x[p, d] * y[k, d]
            occurs = k - offsets[p] < pairs[p]
            margin = score if occurs else -score
            each = np.float32(1) if occurs else weight * np.float32(pairs[p])
            losses[p] += each * (np.log1p(np.exp(-abs(margin))) + max(-margin, np.float32(0)))
            slope = -each / (np.float32(1) + np.exp(margin))
            slope = slope if occurs else -slope
            slopes[k] = slope
            for d in range(dim):
                x_grad[p, d] += slope * y[k, d]
