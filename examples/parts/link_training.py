"""The training of the knowledge-graph example: its course, its checkpoints, and when it ends."""

from __future__ import annotations

import dataclasses
import json
import os
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
from tqdm import tqdm

from .bilinear import Epoch, Model, Options, Questions, Trainer
from .embedding_optimizers import make_optimizer
from .options_and_files import replacing
from .ranking import ASKED_BYTES, ranks, summary
from .triples import Answers, Graph


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
        self.graph, self.options, self.folder, self.pool = graph, options, folder, pool
        self.questions = Questions(graph.both_ways(graph.train), options.answers)
        check_memory(graph, self.questions, options)
        self.answers = Answers(graph)
        self.model = Model(len(graph.entities), 2 * len(graph.relations), options)
        self.trainer = Trainer(self.model, self.questions, options, pool)
        self.course = np.zeros((-(-options.epochs // options.every), 3))
        self.seconds = 0.0
        self._place = np.zeros(4)  # epoch, batch, seconds, those of the optimizer: a variable that gets no gradients
        variables = [self.model.entities, self.model.relations, self.course, self._place]
        steps = options.epochs * -(-len(self.questions.tails) // options.batch)
        self.opt = make_optimizer(options, steps, variables)
        self._restore()

    def _restore(self) -> None:
        """Go on from the last checkpoint, if there is one, and refuse that of another training."""
        arrays = (self.questions.heads, self.questions.relations, self.questions.tails)
        asked = (np.ascontiguousarray(part) for part in (self.graph.valid, self.graph.test))
        settings = dataclasses.asdict(self.options) | {"data": [zlib.crc32(array) for array in (*arrays, *asked)]}
        path = self.folder / "settings.json"
        shutil.rmtree(_done(self.folder), ignore_errors=True)
        if self.opt.has_saved(self.folder):
            if not path.exists() or json.loads(path.read_text(encoding="utf8")) != settings:
                raise SystemExit(
                    f"{self.folder} holds a training with other settings or data; remove it, or use other --out"
                )
            self.opt.restore(self.folder)
            self.seconds, self.trainer.stepping = self._place[2:]
            print(f"going on from step {self._place[1]:.0f} of epoch {self._place[0] + 1:.0f}", flush=True)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_text(json.dumps(settings), encoding="utf8")

    def run(self, checkpoint_every: int) -> None:
        """Train to the last epoch, or until the valid triples have long been answered no better.

        Raises
        ------
        DivergedError
            If the loss is infinite or no number. The checkpoints, of which nothing good can come, are removed.
        """
        compile_kernels(self.options, self.pool)
        total = self.options.epochs * len(self.questions.tails)
        with tqdm(total=total, unit=" triples", unit_scale=True, smoothing=0.05) as bar:
            while self._place[0] < self.options.epochs and not self._is_over():
                self._learn(checkpoint_every, bar)
                self._place[:2] = self._place[0] + 1, 0
                if self._place[0] % self.options.every == 0 or self._place[0] == self.options.epochs:
                    self._ask()
                    self._save()

    def _learn(self, checkpoint_every: int, bar: tqdm[Any]) -> None:
        """Learn the batches of an epoch that have not been learnt."""
        epoch, first = (int(place) for place in self._place[:2])
        started = time.perf_counter() - self.seconds
        plan = Epoch(self.questions, self.options, epoch)
        for number, batch in enumerate(plan.batches(first), first + 1):
            loss = self.trainer.train_batch(self.opt, batch) / len(batch.tails)
            self.seconds = time.perf_counter() - started
            if not np.isfinite(loss):
                self.remove_checkpoints()
                raise DivergedError(f"the loss became {loss} in epoch {epoch + 1}; try a smaller --learning-rate")
            bar.update(epoch * len(self.questions.tails) + plan.learnt[number - 1] - bar.n)
            if number % 50 == 0:
                valid = f"{self.course[:, 2].max():.4f}"
                bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", valid_mrr=valid, refresh=False)
            if self.opt.iterations % checkpoint_every == 0:
                self._place[1] = number
                self._save()

    def _save(self) -> None:
        """Save everything, and how far the training is."""
        self._place[2:] = self.seconds, self.trainer.stepping
        self.opt.save(self.folder)

    def _ask(self) -> None:
        """Note how well the valid triples are answered; keep the tables if it is better than before."""
        model = self.model.in_float32()
        mrr = summary(ranks(model, self.graph, self.answers, self.graph.valid, self.pool))["mrr"]
        if mrr > self.course[:, 2].max():
            tables = {"entities": model.entities, "relations": model.relations}
            with replacing(self.folder / "best.safetensors") as new:
                safetensors.numpy.save_file(tables, new)
        self.course[np.flatnonzero(self.course[:, 0] == 0)[0]] = self._place[0], self.seconds, mrr

    def _is_over(self) -> bool:
        """Return whether the last ``patience`` looks all were no better than one before."""
        asked = self.course[self.course[:, 0] > 0, 2]
        return len(asked) - 1 - int(np.argmax(asked)) >= self.options.patience if len(asked) else False

    def best(self) -> Model:
        """Return the model as it was when it answered best."""
        tables = safetensors.numpy.load_file(self.folder / "best.safetensors")
        self.model.entities[:], self.model.relations[:] = tables["entities"], tables["relations"]
        return self.model.in_float32()

    def results(self) -> dict[str, float]:
        """Return what is to be told of the training."""
        asked = self.course[self.course[:, 0] > 0]
        best = asked[np.argmax(asked[:, 2])]
        epochs, seconds = asked[-1, :2]
        return dataclasses.asdict(self.options) | {
            "epochs_trained": int(epochs),
            "seconds": round(seconds, 1),
            "optimizer_seconds_per_epoch": round(self.trainer.stepping / epochs, 3),
            "best_epoch": int(best[0]),
            "valid_mrr": round(best[2], 4),
        }

    def remove_checkpoints(self) -> None:
        """Remove the files of a training that is over."""
        # What a kill leaves in the folder while it is emptied would be taken for a training to go on with.
        os.replace(self.folder, _done(self.folder))
        shutil.rmtree(_done(self.folder))


def _done(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.done")


def compile_kernels(options: Options, pool: ThreadPoolExecutor) -> None:
    """Take two steps on a table of noise, so that the training is timed and not the compiler, which runs once."""
    print("compiling (seconds the first time, then from the cache) ...", flush=True)
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
