"""ComplEx and DistMult with sampled softmax: the models of the knowledge-graph example.

ComplEx (Trouillon et al., "Complex Embeddings for Simple Link Prediction", 2016) gives each entity and each relation a
row of complex numbers; DistMult (Yang et al., 2015), of real ones. The score of a triple is
``Re(sum(h * r * conj(t)))``. A question "head, relation, what?" is the row ``h * r``, so the scores of all questions of
a batch and all candidates that they share are one product of matrices. Each relation has an inverse with a row of its
own: "what, relation, tail?" asks for the tail of the inverse (Lacroix et al., "Canonical Tensor Decomposition for
Knowledge Base Completion", 2018, from which the N3 penalty is, too: the sum of ``|x|**3`` over the rows of each triple
of a batch).

The loss of a triple is the cross-entropy of its tail among candidates that all questions of a batch share: the tails
of all of them, so that what is often right is often wrong as well, and entities drawn at random. From the score of each
candidate but the right ones, the logarithm of its chance to be drawn is subtracted, so that the sum over the candidates
estimates that over all entities (Jean et al., "On Using Very Large Target Vocabulary for Neural Machine Translation",
2015, equation 8).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_rmsprop import IndexedSlices

from .embedding_optimizers import Optimizer
from .table_forms import dtype_of
from .threads import shared
from .triples import distinct, spans

Array = NDArray[np.float32]

CHUNK = 64
"""Questions or candidates that a thread takes at a time, at most: enough for a product of matrices to run at speed, few
enough for their scores to stay in its cache, and for all threads to have some."""


@dataclass(frozen=True)
class Options:
    """What to train; see ``knowledge_graph.py --help``."""

    model: str
    rank: int
    negatives: int
    batch: int
    answers: int
    epochs: int
    learning_rate: float
    rho: float
    n3: float
    dropout: float
    init: float
    every: int
    patience: int
    seed: int
    optimizer: str
    form: str = "float32"


class Model:
    """The rows of all entities, and of all relations and their inverses.

    Attributes
    ----------
    entities, relations : ndarray, shape (entities, width), (2 * relations, width)
        Of float32, or of the dtype of another form. With ComplEx, ``width`` is twice the rank: real and imaginary
        parts, in turn.
    """

    def __init__(self, entities: int, relations: int, options: Options) -> None:
        self.dtype = np.dtype(np.complex64 if options.model == "complex" else np.float32)
        width = options.rank * self.dtype.itemsize // 4
        rng = np.random.default_rng(options.seed)
        self.entities, self.relations = (
            rng.standard_normal((count, width), np.float32) for count in (entities, relations)
        )
        for table in (self.entities, self.relations):
            table *= np.float32(options.init)
        self.entities, self.relations = (
            table.astype(dtype_of(options.form), copy=False) for table in (self.entities, self.relations)
        )

    def in_float32(self) -> Model:
        """Return the same model to compute with."""
        if self.entities.dtype == np.float32:
            return self
        model = copy.copy(self)
        model.entities, model.relations = self.entities.astype(np.float32), self.relations.astype(np.float32)
        return model

    def factors(self, rows: Array) -> NDArray[Any]:
        """Return rows as the numbers, complex or real, that the model multiplies."""
        return rows.view(self.dtype)

    def questions(self, triples: NDArray[np.int64]) -> Array:
        """Return a row for each triple, whose inner product with an entity's row is that entity's score as tail."""
        heads, relations = self.entities[triples[:, 0]], self.relations[triples[:, 1]]
        return (self.factors(heads) * self.factors(relations)).view(np.float32)


class Questions:
    """What is to be learnt: each head and relation that occurs, with its right answers.

    The scores of all entities are the same for each answer to a question, so one with many answers costs as much as one
    triple. WN18RR has 1.7 triples to a question and CoDEx-S 5.5. One with more than ``most_answers`` comes several
    times, so that no question makes up a batch.

    Attributes
    ----------
    heads, relations : ndarray of int64, shape (questions,)
        The questions.
    bounds : ndarray of int64, shape (questions + 1,)
        Question ``i`` has the answers ``tails[bounds[i] : bounds[i + 1]]``.
    tails : ndarray of int64, shape (triples,)
        The answers; triples that come twice are taken once.
    """

    def __init__(self, triples: NDArray[np.int64], most_answers: int) -> None:
        heads, relations, self.tails = np.ascontiguousarray(distinct(triples).T)
        new = np.append(True, (np.diff(heads) != 0) | (np.diff(relations) != 0))
        places = np.arange(len(heads))
        within = places - np.maximum.accumulate(np.where(new, places, 0))
        first = np.flatnonzero(within % most_answers == 0)
        self.bounds = np.append(first, len(heads))
        self.heads, self.relations = heads[first], relations[first]

    def __len__(self) -> int:
        return len(self.heads)


@dataclass
class Batch:
    """Questions to learn: answer ``i`` is ``tails[i]``, to question ``owners[i]`` of the batch.

    ``seed`` tells what is drawn while they are learnt.
    """

    heads: NDArray[np.int64]
    relations: NDArray[np.int64]
    tails: NDArray[np.int64]
    owners: NDArray[np.int64]
    seed: list[int]


class Epoch:
    """One pass over the questions, in an order that is the same for the same seed.

    Attributes
    ----------
    learnt : ndarray of int64, shape (batches,)
        How many triples have been learnt after each batch.
    """

    def __init__(self, questions: Questions, options: Options, epoch: int) -> None:
        self.questions = questions
        self.seed = [options.seed, epoch + 1]
        self.order = np.random.default_rng(self.seed).permutation(len(questions))
        ends = np.cumsum(np.diff(questions.bounds)[self.order])
        # A batch ends with the first question that fills it: some are larger, the mean is what it should be.
        number = (ends - 1) // options.batch
        self.last = np.append(np.flatnonzero(np.diff(number)) + 1, len(ends))
        self.learnt = ends[self.last - 1]

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield the batches from number ``first`` on."""
        questions = self.questions
        for number in range(first, len(self.last)):
            asked = self.order[self.last[number - 1] if number else 0 : self.last[number]]
            answers, owners = spans(questions.bounds, asked)
            # A seed may not end with 0: [1, 0] and [1, 0, 0] draw the same.
            seed = [*self.seed, number + 1]
            yield Batch(questions.heads[asked], questions.relations[asked], questions.tails[answers], owners, seed)


class Candidates:
    """Draws the entities that all questions of a batch choose from: the right answers to all of them, and others.

    Parameters
    ----------
    questions : Questions
        What is learnt.
    entities : int
        How many there are.
    options : Options
        How many are drawn at random, and how large a batch is.

    Attributes
    ----------
    most : int
        So many are drawn at most.
    rarity : ndarray of float32, shape (entities,)
        For each entity, minus the logarithm of its chance to be drawn.
    """

    def __init__(self, questions: Questions, entities: int, options: Options) -> None:
        self.entities = entities
        self.count = min(options.negatives, entities)
        self.most = min(self.count + options.batch + int(np.diff(questions.bounds).max()), entities)
        share = min(1.0, options.batch / len(questions.tails))
        missed = (1 - self.count / entities) * (1 - share) ** np.bincount(questions.tails, minlength=entities)
        self.rarity = -np.log1p(-missed).astype(np.float32)

    def draw(self, batch: Batch) -> NDArray[np.int64]:
        """Return different entities, in order."""
        if self.count == self.entities:
            return np.arange(self.entities)
        drawn = np.random.default_rng(batch.seed).choice(self.entities, self.count, replace=False, shuffle=False)
        return np.unique(np.concatenate([drawn, batch.tails]))


@dataclass
class Work:
    """The rows of a batch and what becomes of them: the same memory for every batch, cut to its size."""

    heads: Array
    relations: Array
    candidates: Array
    head_grads: Array
    relation_grads: Array
    candidate_grads: Array
    questions: Array
    scores: Array
    owners: NDArray[np.int64]
    right: NDArray[np.int64]
    rarity: Array


class Trainer:
    """What learns batch after batch, on all threads.

    The bits do not depend on the number of threads: what a thread takes at a time does not, nor the order of any sum.

    Attributes
    ----------
    stepping : float
        Seconds that the optimizer's steps took.
    """

    def __init__(self, model: Model, questions: Questions, options: Options, pool: ThreadPoolExecutor) -> None:
        self.model = model
        self.options = options
        self.pool = pool
        self.stepping = 0.0
        self._candidates = Candidates(questions, len(model.entities), options)
        batch, most, width = min(options.batch, len(questions)), self._candidates.most, model.entities.shape[1]
        self._rows, self._grads = (np.empty((batch + most, width), np.float32) for _ in range(2))
        self._relations, self._relation_grads, self._questions = (
            np.empty((batch, width), np.float32) for _ in range(3)
        )
        self._scores = np.empty(batch * most, np.float32)

    def train_batch(self, opt: Optimizer, batch: Batch) -> float:
        """Take one step on both tables, and return the sum of the questions' losses."""
        drawn = self._candidates.draw(batch)
        n, k = len(batch.heads), len(drawn)
        touched = np.concatenate([batch.heads, drawn])
        rows = opt.gather(self.model.entities, touched, out=self._rows[: n + k])
        relations = opt.gather(self.model.relations, batch.relations, out=self._relations[:n])
        grads, relation_grads = self._grads[: n + k], self._relation_grads[:n]
        work = Work(
            rows[:n], relations, rows[n:], grads[:n], relation_grads, grads[n:], self._questions[:n],
            self._scores[: n * k].reshape(n, k), batch.owners, np.searchsorted(drawn, batch.tails),
            self._candidates.rarity[drawn],
        )  # fmt: skip
        loss = sum(shared(self.pool, n, CHUNK, lambda part: self._ask(part, work, [*batch.seed, part.start + 1])))
        counts = np.bincount(work.right, minlength=k).astype(np.float32)
        shared(self.pool, k, CHUNK, lambda part: self._blame(part, work, counts[part, None]))
        started = time.perf_counter()
        opt.apply_gradients(
            [
                (IndexedSlices(grads, touched), self.model.entities),
                (IndexedSlices(relation_grads, batch.relations), self.model.relations),
            ]
        )
        self.stepping += time.perf_counter() - started
        return loss

    def _ask(self, part: slice, work: Work, seed: list[int]) -> float:
        """Ask some questions: return the sum of their losses, write its slopes by scores, heads and relations."""
        factors = self.model.factors
        head, relation = factors(work.heads[part]), factors(work.relations[part])
        question = work.questions[part]
        np.multiply(head, relation, out=factors(question))
        kept = self._dropout(question.shape, seed)
        question *= kept
        answers = slice(*np.searchsorted(work.owners, [part.start, part.stop]))
        owners, right = work.owners[answers] - part.start, work.right[answers]
        loss = softmax_slopes(question, work.candidates, work.rarity, owners, right, work.scores[part])
        question_grad = work.scores[part] @ work.candidates
        question_grad *= kept
        np.multiply(factors(question_grad), np.conj(relation), out=factors(work.head_grads[part]))
        np.multiply(factors(question_grad), np.conj(head), out=factors(work.relation_grads[part]))
        counts = np.bincount(owners).astype(np.float32)[:, None]
        self._penalize(work.heads[part], counts, work.head_grads[part])
        self._penalize(work.relations[part], counts, work.relation_grads[part])
        return loss

    def _blame(self, part: slice, work: Work, counts: Array) -> None:
        """Write the gradients of some candidates, ``counts`` of which are right answers."""
        np.matmul(work.scores[:, part].T, work.questions, out=work.candidate_grads[part])
        self._penalize(work.candidates[part], counts, work.candidate_grads[part])

    def _dropout(self, shape: tuple[int, ...], seed: list[int]) -> Array | int:
        """Return what to multiply questions by, so that a part of their numbers is 0 and the mean remains."""
        share = self.options.dropout
        if share == 0:
            return 1
        return (np.random.default_rng(seed).random(shape, np.float32) >= share) * np.float32(1 / (1 - share))

    def _penalize(self, rows: Array, counts: Array, grads: Array) -> None:
        """Add the slope of the N3 penalty of rows that have part in ``counts`` triples."""
        numbers = self.model.factors(rows)
        slopes = self.model.factors(grads)
        slopes += np.float32(3 * self.options.n3) * counts * np.abs(numbers) * numbers


def softmax_slopes(
    questions: Array,
    candidates: Array,
    rarity: Array,
    owners: NDArray[np.int64],
    right: NDArray[np.int64],
    slopes: Array,
) -> float:
    """Write the slopes of the cross-entropies by the scores; return the sum of the cross-entropies.

    Parameters
    ----------
    questions, candidates : ndarray of float32, shape (questions, width), (candidates, width)
        The rows whose inner products are the scores.
    rarity : ndarray of float32, shape (candidates,)
        Is added to the scores of wrong answers.
    owners, right : ndarray of int64, shape (answers,)
        The question and the candidate of each right answer, each of which has a cross-entropy; ``owners`` is sorted,
        and each question has an answer.
    slopes : ndarray of float32, shape (questions, candidates)
        Is written.
    """
    scores = np.matmul(questions, candidates.T, out=slopes)
    scores += rarity
    scores[owners, right] -= rarity[right]
    scores -= scores.max(axis=1, keepdims=True)
    answers = scores[owners, right]
    np.exp(scores, out=scores)
    totals = scores.sum(axis=1)
    scores *= (np.bincount(owners) / totals).astype(np.float32)[:, None]
    scores[owners, right] -= 1
    return float(np.log(totals)[owners].sum() - answers.sum())
