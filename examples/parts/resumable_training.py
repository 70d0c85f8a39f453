"""A training in epochs: its course, its checkpoints, and when it ends."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from tqdm import tqdm

from .embedding_optimizers import Optimizer
from .options_and_files import replacing


class DivergedError(ArithmeticError):
    """The loss is no number any more."""


class Plan(Protocol):
    """The batches of an epoch, always the same for the same epoch.

    Attributes
    ----------
    learnt : ndarray of int64, shape (batches,)
        How many examples have been learnt after each batch.
    """

    learnt: NDArray[np.int64]

    def batches(self, first: int) -> Iterator[Any]:
        """Yield the batches from number ``first`` on."""


class Trainer(Protocol):
    """What learns batches.

    Attributes
    ----------
    stepping : float
        Seconds that the optimizer's steps took.
    """

    stepping: float


class ResumableTraining:
    """A training that looks now and then how good it is, and goes on where it was interrupted.

    A subclass makes its tables, calls :meth:`_begin`, and says what a batch is and how good the tables are.

    Attributes
    ----------
    course : ndarray of float64, shape (looks, 2 + measures)
        Epoch, seconds of training and the measures of each look; zeros for looks that have not come yet.
    seconds : float
        Seconds of training, over all its runs: without reading, compiling and looks.
    folder : Path
        For checkpoints. A training that has left some there goes on from the last one.
    """

    unit = "examples"
    measured: tuple[str, ...]
    """Names of the measures; by the first one the best tables are chosen."""

    opt: Optimizer
    trainer: Trainer
    course: NDArray[np.float64]
    seconds: float
    folder: Path

    def _begin(self, folder: Path, epochs: int, every: int, examples: int, patience: int | None) -> list[NDArray[Any]]:
        """Set out, with a look after each ``every`` epochs; return the variables that the optimizer must save."""
        self.folder, self._epochs, self._every, self._examples = folder, epochs, every, examples
        self._patience = patience
        self.course = np.zeros((-(-epochs // every), 2 + len(self.measured)))
        self.seconds = 0.0
        self._place = np.zeros(4)  # epoch, batch, seconds, those of the optimizer: a variable that gets no gradients
        return [self.course, self._place]

    # What a subclass says

    def _plan(self, epoch: int) -> Plan:
        """Return the batches of an epoch."""
        raise NotImplementedError

    def _train(self, batch: Any) -> float:
        """Learn a batch; return the mean of its losses."""
        raise NotImplementedError

    def _look(self) -> tuple[float, ...]:
        """Return the measures of the tables as they are now."""
        raise NotImplementedError

    def _tables(self) -> dict[str, NDArray[Any]]:
        """Return the tables to keep when they are the best so far, as safetensors can hold them."""
        raise NotImplementedError

    def _compile(self) -> None:
        """Take some steps on noise, so that the training is timed and not the compiler, which runs once."""
        raise NotImplementedError

    # What is the same for all

    def _restore(self, settings: dict[str, Any]) -> None:
        """Go on from the last checkpoint, if there is one, and refuse that of another training."""
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
        """Train to the last epoch, or until looks have long been no better.

        Raises
        ------
        DivergedError
            If the loss is infinite or no number. The checkpoints, of which nothing good can come, are removed.
        """
        print("compiling (seconds the first time, then from the cache) ...", flush=True)
        self._compile()
        with tqdm(total=self._epochs * self._examples, unit=f" {self.unit}", unit_scale=True, smoothing=0.05) as bar:
            while self._place[0] < self._epochs and not self._is_over():
                self._learn(checkpoint_every, bar)
                self._place[:2] = self._place[0] + 1, 0
                if self._place[0] % self._every == 0 or self._place[0] == self._epochs:
                    self._note_look()
                    self._save()

    def _learn(self, checkpoint_every: int, bar: tqdm[Any]) -> None:
        """Learn the batches of an epoch that have not been learnt."""
        epoch, first = (int(place) for place in self._place[:2])
        started = time.perf_counter() - self.seconds
        plan = self._plan(epoch)
        for number, batch in enumerate(plan.batches(first), first + 1):
            loss = self._train(batch)
            self.seconds = time.perf_counter() - started
            if not np.isfinite(loss):
                self.remove_checkpoints()
                raise DivergedError(f"the loss became {loss} in epoch {epoch + 1}; try a smaller --learning-rate")
            bar.update(epoch * self._examples + plan.learnt[number - 1] - bar.n)
            if number % 50 == 0:
                best = f"{self.course[:, 2].max():.4f}"
                bar.set_postfix({"epoch": epoch + 1, "loss": f"{loss:.3f}", self.measured[0]: best}, refresh=False)
            if self.opt.iterations % checkpoint_every == 0:
                self._place[1] = number
                self._save()

    def _save(self) -> None:
        """Save everything, and how far the training is."""
        self._place[2:] = self.seconds, self.trainer.stepping
        self.opt.save(self.folder)

    def _note_look(self) -> None:
        """Note how good the tables are; keep them if they are better than before."""
        measures = self._look()
        if self._patience is not None and measures[0] > self.course[:, 2].max():
            with replacing(self.folder / "best.safetensors") as new:
                safetensors.numpy.save_file(self._tables(), new)
        self.course[np.flatnonzero(self.course[:, 0] == 0)[0]] = self._place[0], self.seconds, *measures

    def _is_over(self) -> bool:
        """Return whether the last ``patience`` looks all were no better than one before."""
        looks = self.looks
        if self._patience is None or not len(looks):
            return False
        return len(looks) - 1 - int(np.argmax(looks[:, 2])) >= self._patience

    @property
    def looks(self) -> NDArray[np.float64]:
        """The part of the course that has come."""
        return self.course[self.course[:, 0] > 0]

    def best_tables(self) -> dict[str, NDArray[Any]]:
        """Return the tables as they were at the best look; or where none is the best, as they are."""
        return (
            self._tables() if self._patience is None else safetensors.numpy.load_file(self.folder / "best.safetensors")
        )

    def results(self) -> dict[str, float]:
        """Return what is to be told of the training."""
        epochs, seconds = self.looks[-1, :2]
        return {
            "epochs_trained": int(epochs),
            "seconds": round(seconds, 1),
            "optimizer_seconds_per_epoch": round(self.trainer.stepping / epochs, 3),
        }

    def remove_checkpoints(self) -> None:
        """Remove the files of a training that is over."""
        # What a kill leaves in the folder while it is emptied would be taken for a training to go on with.
        os.replace(self.folder, _done(self.folder))
        shutil.rmtree(_done(self.folder))


def _done(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.done")
