"""The training of the knowledge-graph example."""

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

from .bilinear import Batch, Epoch, Model, Options, Questions, Trainer
from .embedding_optimizers import make_optimizer
from .ranking import ASKED_BYTES, ranks, summary
from .resumable_training import ResumableTraining
from .triples import Answers, Graph


class Training(ResumableTraining):
    """A model that learns a graph, and what its checkpoints hold.

    Parameters
    ----------
    graph : Graph
        Its training triples are learnt; the valid ones tell how well.
    options : Options
        What to train.
    folder : Path
        For checkpoints.
    pool : ThreadPoolExecutor
        The threads to use.
    """

    unit = "triples"
    measured = ("valid_mrr",)

    def __init__(self, graph: Graph, options: Options, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.graph, self.options, self.pool = graph, options, pool
        self.questions = Questions(graph.both_ways(graph.train), options.answers)
        check_memory(graph, self.questions, options)
        self.answers = Answers(graph)
        self.model = Model(len(graph.entities), 2 * len(graph.relations), options)
        self.trainer = Trainer(self.model, self.questions, options, pool)
        triples = len(self.questions.tails)
        noted = self._begin(folder, options.epochs, options.every, triples, options.patience)
        steps = options.epochs * -(-triples // options.batch)
        self.opt = make_optimizer(options, steps, [self.model.entities, self.model.relations, *noted])
        arrays = (self.questions.heads, self.questions.relations, self.questions.tails)
        asked = (np.ascontiguousarray(part) for part in (graph.valid, graph.test))
        self._restore(dataclasses.asdict(options) | {"data": [zlib.crc32(array) for array in (*arrays, *asked)]})

    def _plan(self, epoch: int) -> Epoch:
        return Epoch(self.questions, self.options, epoch)

    def _train(self, batch: Batch) -> float:
        return self.trainer.train_batch(self.opt, batch) / len(batch.tails)

    def _look(self) -> tuple[float, ...]:
        model = self.model.in_float32()
        return (summary(ranks(model, self.graph, self.answers, self.graph.valid, self.pool))["mrr"],)

    def _tables(self) -> dict[str, NDArray[Any]]:
        model = self.model.in_float32()
        return {"entities": model.entities, "relations": model.relations}

    def _compile(self) -> None:
        compile_kernels(self.options, self.pool)

    def best(self) -> Model:
        """Return the model as it was when it answered best."""
        tables = self.best_tables()
        self.model.entities[:], self.model.relations[:] = tables["entities"], tables["relations"]
        return self.model.in_float32()

    def results(self) -> dict[str, float]:
        """Return what is to be told of the training."""
        best = self.looks[np.argmax(self.looks[:, 2])]
        told = {"best_epoch": int(best[0]), "valid_mrr": round(best[2], 4)}
        return dataclasses.asdict(self.options) | super().results() | told


def compile_kernels(options: Options, pool: ThreadPoolExecutor) -> None:
    """Take two steps on a table of noise."""
    # As large as a real one, up to a point: small steps are compiled apart from those that threads share.
    options = dataclasses.replace(options, batch=min(options.batch, 512), negatives=min(options.negatives, 512))
    numbers = np.arange(2 * options.batch)
    questions = Questions(np.stack([numbers, numbers % 2, numbers[::-1]], axis=1), 1)
    model = Model(len(numbers), 2, options)
    opt = make_optimizer(options, 2, [model.entities, model.relations])
    trainer = Trainer(model, questions, options, pool)
    for batch in Epoch(questions, options, 0).batches(0):
        trainer.train_batch(opt, batch)


def check_memory(graph: Graph, questions: Questions, options: Options) -> None:
    """Raise MemoryError if what the training needs is not free: Linux promises memory, and kills who takes it."""
    width = options.rank * (2 if options.model == "complex" else 1)
    entities = len(graph.entities)
    batch = min(options.batch, len(questions))
    candidates = min(entities, options.negatives + options.batch + int(np.diff(questions.bounds).max()))
    # The optimizer's state is as large as the tables, and so are, at the end, the best ones, read from a file.
    copies = 4 if options.optimizer in ("sparse-adam", "dense") else 3
    tables = (entities + 2 * len(graph.relations)) * width * copies
    buffers = (5 * batch + 2 * candidates) * width + batch * candidates
    needed = 4 * (tables + buffers) + 2 * numba.get_num_threads() * ASKED_BYTES
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(f"the training needs {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free")
