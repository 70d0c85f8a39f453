"""The skip-gram model in PyTorch, and its training with either optimizer.

The model of ``skip_gram.py``: autograd computes what is written out there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from numba_rmsprop.torch import Embedding, RMSprop

from .documentation_text import Text, related_words_auc
from .skip_gram import Batch, Options, expected_batches, start_tables


class SkipGram(nn.Module):
    """The model of ``skip_gram.py``: the score of two words is the inner product of their rows."""

    def __init__(self, text: Text, options: Options, embedding: Callable[..., nn.Module]) -> None:
        super().__init__()
        tables = [torch.from_numpy(table) for table in start_tables(text, options)]
        self.vectors, self.contexts = (embedding(*table.shape, sparse=True, _weight=table) for table in tables)

    def forward(self, words: Tensor, owner: Tensor, targets: Tensor, sign: Tensor, weight: Tensor) -> Tensor:
        """Return the sum of the pairs' losses; target ``k`` belongs to ``words[owner[k]]``."""
        x = self.vectors(words).index_select(0, owner)
        scores = (x * self.contexts(targets)).sum(dim=1)
        return -(weight * nn.functional.logsigmoid(sign * scores)).sum()


def as_tensors(batch: Batch, options: Options) -> tuple[list[Tensor], int]:
    """Return what the model wants of a batch, and how many pairs it has."""
    counts = np.diff(batch.offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    occurs = np.arange(len(owner)) - batch.offsets[owner] < batch.pairs[owner]
    weight = np.where(occurs, 1.0, options.negatives / options.draws * batch.pairs[owner]).astype(np.float32)
    sign = np.where(occurs, 1.0, -1.0).astype(np.float32)
    return [torch.from_numpy(x) for x in (batch.words, owner, batch.targets, sign, weight)], int(batch.pairs.sum())


class Trial:
    """A model and its optimizer, the seconds that they took, and the loss on what is held out."""

    def __init__(self, name: str, text: Text, options: Options, rate: float, momentum: float) -> None:
        self.name = name
        self.rate = rate
        # What another program would change, to go over to RMSprop, are the classes of the table and of the optimizer.
        if name == "RMSprop":
            self.model = SkipGram(text, options, partial(Embedding, fused=True))
            self.optimizer = RMSprop(self.model.parameters(), lr=rate, alpha=options.rho, momentum=momentum)
        else:
            self.model = SkipGram(text, options, nn.Embedding)
            self.optimizer = torch.optim.SparseAdam(self.model.parameters(), lr=rate)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, expected_batches(text, options))
        self.steps = 0
        self.passes = self.stepping = 0.0
        self.curve: list[tuple[float, float]] = []

    def train(self, batches: list[tuple[list[Tensor], int]]) -> None:
        """Take a step for each batch."""
        for tensors, _ in batches:
            before = time.perf_counter()
            self.optimizer.zero_grad()
            self.model(*tensors).backward()
            between = time.perf_counter()
            self.optimizer.step()
            self.stepping += time.perf_counter() - between
            self.passes += between - before
            self.steps += 1
            self.schedule.step()

    def ask(self, batches: list[tuple[list[Tensor], int]]) -> None:
        """Note the loss of a pair in ``batches``."""
        with torch.no_grad():
            loss = sum(self.model(*tensors).item() for tensors, _ in batches)
        self.curve.append((self.passes + self.stepping, loss / max(1, sum(pairs for _, pairs in batches))))

    def state_dict(self) -> dict[str, Any]:
        """Return all that training goes on from."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        return parts | {name: getattr(self, name) for name in ("steps", "passes", "stepping", "curve")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        for name, value in state.items():
            if name in ("model", "optimizer", "schedule"):
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)

    def results(self, text: Text) -> dict[str, float]:
        """Return what is to be told."""
        told = {
            "learning_rate": self.rate,
            "held_out_loss": round(self.curve[-1][1], 4),
            "seconds": round(self.passes + self.stepping, 2),
            "ms_forward_backward": round(1000 * self.passes / self.steps, 3),
            "ms_step": round(1000 * self.stepping / self.steps, 3),
        }
        vectors = self.model.state_dict()["vectors.weight"].numpy()
        return told | ({"auc": round(related_words_auc(vectors, text.related), 4)} if text.related else {})
