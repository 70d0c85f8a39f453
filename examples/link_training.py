"""The training of the knowledge-graph example: its course, its checkpoints, and when it ends."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import psutil
import safetensors.numpy
from bilinear import Epoch, Model, Options, Trainer
from embedding_optimizers import make_optimizer
from ranking import ASKED_BYTES, ranks, summary
from tqdm import tqdm
from triples import Answers, Graph


class DivergedError(ArithmeticError):
    """The loss is no number any more."""


class Training:
    """A model that learns a graph, and what its checkpoints hold.

    Parameters
    ----------
    graph : Graph
        Its training triples are learnt; the valid ones tell how well.
    options : Options
        What to train.
    folder : Path
        For checkpoints. A training that has left some there goes on from the last one.
    pool : ThreadPoolExecutor
        The threads to use.

    Attributes
    ----------
    course : ndarray of float64, shape (evaluations, 3)
        Epoch, seconds of training and MRR of the valid triples; zeros for those that have not come yet.
    seconds : float
        Seconds of training, over all its runs: without reading, compiling and asking.
    """

    def __init__(self, graph: Graph, options: Options, folder: Path, pool: ThreadPoolExecutor) -> None:
        check_memory(graph, options)
        self.graph, self.options, self.folder, self.pool = graph, options, folder, pool
        self.triples = graph.both_ways(graph.train)
        self.answers = Answers(graph)
        self.model = Model(len(graph.entities), 2 * len(graph.relations), options)
        self.trainer = Trainer(self.model, self.triples, options, pool)
        self.course = np.zeros((-(-options.epochs // options.every), 3))
        self._place = np.zeros(4)  # epoch, batch, seconds, those of the optimizer: a variable that gets no gradients
        variables = [self.model.entities, self.model.relations, self.course, self._place]
        self.seconds = 0.0
        steps = options.epochs * len(Epoch(self.triples, options, 0))
        self.opt = make_optimizer(options, steps, variables)
        self._check_settings()
        if self.opt.restore(folder):
            print(f"going on from step {self._place[1]:.0f} of epoch {self._place[0] + 1:.0f}", flush=True)

    def _check_settings(self) -> None:
        """Refuse to go on from the checkpoints of another training."""
        settings = dataclasses.asdict(self.options) | {
            "triples": zlib.crc32(self.triples),
            "asked": len(self.graph.valid),
        }
        path = self.folder / "settings.json"
        if path.exists():
            if json.loads(path.read_text(encoding="utf8")) != settings:
                raise SystemExit(
                    f"{self.folder} holds a training with other settings or data; remove it, or use other --out"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf8")

    def run(self, checkpoint_every: int) -> None:
        """Train to the last epoch, or until the valid triples have long been answered no better.

        Raises
        ------
        DivergedError
            If the loss is infinite or no number.
        """
        compile_kernels(self.options, self.pool)
        epoch, batch = self._place[:2].astype(int)
        self.seconds, self.trainer.stepping = self._place[2:]
        total = self.options.epochs * len(self.triples)
        with tqdm(total=total, unit=" triples", unit_scale=True, smoothing=0.05) as bar:
            for number in range(epoch, self.options.epochs):
                self._learn(number, batch if number == epoch else 0, checkpoint_every, bar)
                if (number + 1) % self.options.every == 0 or number + 1 == self.options.epochs:
                    self._ask(number + 1)
                    if self._is_over():
                        break

    def _learn(self, epoch: int, first: int, checkpoint_every: int, bar: tqdm[Any]) -> None:
        """Learn the batches of an epoch from number ``first`` on."""
        started = time.perf_counter() - self.seconds
        for number, batch in enumerate(Epoch(self.triples, self.options, epoch).batches(first), first + 1):
            loss = self.trainer.train_batch(self.opt, batch) / len(batch.heads)
            self.seconds = time.perf_counter() - started
            if not np.isfinite(loss):
                raise DivergedError(f"the loss became {loss} in epoch {epoch + 1}; try a smaller --learning-rate")
            learnt = epoch * len(self.triples) + min(number * self.options.batch, len(self.triples))
            bar.update(learnt - bar.n)
            if number % 50 == 0:
                valid = f"{self.course[:, 2].max():.4f}"
                bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", valid_mrr=valid, refresh=False)
            if number % checkpoint_every == 0:
                self._place[:] = epoch, number, self.seconds, self.trainer.stepping
                self.opt.save(self.folder)

    def _ask(self, epochs: int) -> None:
        """Note how well the valid triples are answered; keep the tables if it is better than before."""
        mrr = summary(ranks(self.model, self.graph, self.answers, self.graph.valid, self.pool))["mrr"]
        if mrr > self.course[:, 2].max():
            tables = {"entities": self.model.entities, "relations": self.model.relations}
            safetensors.numpy.save_file(tables, self.folder / "best.safetensors")
        self.course[np.flatnonzero(self.course[:, 0] == 0)[0]] = epochs, self.seconds, mrr

    def _is_over(self) -> bool:
        """Return whether the last ``patience`` evaluations all were no better than one before."""
        asked = self.course[self.course[:, 0] > 0, 2]
        return len(asked) - 1 - int(np.argmax(asked)) >= self.options.patience

    def best(self) -> Model:
        """Return the model as it was when it answered best."""
        model = Model(1, 1, self.options)
        tables = safetensors.numpy.load_file(self.folder / "best.safetensors")
        model.entities, model.relations = tables["entities"], tables["relations"]
        return model

    def results(self) -> dict[str, float]:
        """Return what is to be told of the training."""
        asked = self.course[self.course[:, 0] > 0]
        best = asked[np.argmax(asked[:, 2])]
        epochs, seconds = asked[-1, :2]
        return {
            "model": self.options.model,
            "optimizer": self.options.optimizer,
            "learning_rate": self.options.learning_rate,
            "n3": round(self.options.n3, 5),
            "seed": self.options.seed,
            "epochs": int(epochs),
            "seconds": round(seconds, 1),
            "optimizer_seconds_per_epoch": round(self.trainer.stepping / epochs, 3),
            "best_epoch": int(best[0]),
            "valid_mrr": best[2],
        }

    def remove_checkpoints(self) -> None:
        """Remove the files of a training that is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def compile_kernels(options: Options, pool: ThreadPoolExecutor) -> None:
    """Take two steps on a table of noise, so that the training is timed and not the compiler, which runs once."""
    print("compiling (seconds the first time, then from the cache) ...", flush=True)
    options = dataclasses.replace(options, rank=8)
    triples = np.random.default_rng(0).integers(0, 2, (2 * options.batch, 3))
    model = Model(4 * options.batch, 2, options)
    triples[:, [0, 2]] = np.arange(4 * options.batch).reshape(-1, 2)
    opt = make_optimizer(options, 2, [model.entities, model.relations])
    trainer = Trainer(model, triples, options, pool)
    for batch in Epoch(triples, options, 0).batches(0):
        trainer.train_batch(opt, batch)


def check_memory(graph: Graph, options: Options) -> None:
    """Raise MemoryError if what the training needs is not free: Linux promises memory, and kills who takes it."""
    width = options.rank * (2 if options.model == "complex" else 1)
    entities = len(graph.entities)
    candidates = min(entities, options.negatives + options.batch)
    states = 3 if options.optimizer == "sparse-adam" else 2
    tables = (entities + 2 * len(graph.relations)) * width * states
    rows = (5 * options.batch + 2 * candidates) * width
    zero_filled = entities * width if options.optimizer == "dense" else 0
    needed = 4 * (tables + rows + zero_filled + options.batch * candidates) + 2 * numba.get_num_threads() * ASKED_BYTES
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(f"the training needs {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free")
