"""A training loop in PyTorch: forward and backward pass on its threads, the step on Numba's."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import steps

ALL, PASSES, STEP = "all of it", "passes alone", "step alone"
ADAM = "all, SparseAdam"
LOOPS = (ALL, PASSES, STEP, ADAM)


def loop(kind: str, rows: int, columns: int, batch: int) -> steps.Step:
    """Return a step of a model of two embeddings whose rows are multiplied, or a part of such a step."""
    torch = steps.torch_module()
    ours = kind != ADAM
    table = steps.ours("Embedding") if ours else torch.nn.Embedding
    torch.manual_seed(0)
    tables = [table(rows, columns, sparse=True) for _ in range(2)]
    parameters = [each.weight for each in tables]
    optimizer = steps.ours("RMSprop")(parameters) if ours else torch.optim.SparseAdam(parameters)
    words, others = (torch.from_numpy(steps.zipf(batch, rows, seed)) for seed in (0, 1))
    sign = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], batch).astype(np.float32))

    def passes() -> Any:
        optimizer.zero_grad()
        scores = (tables[0](words) * tables[1](others)).sum(dim=1)
        torch.nn.functional.softplus(-sign * scores).sum().backward()

    def everything() -> None:
        passes()
        optimizer.step()

    everything()
    return {PASSES: passes, STEP: optimizer.step}.get(kind, everything)


class Loop(steps._Timed):
    """Batches of 4,096 pairs of rows of two tables of 1,000,000 x 64, whole and in parts, beside SparseAdam."""

    params = (steps.sizes(1_000_000, 10_000), list(LOOPS))
    param_names = ("rows", "what")

    def setup(self, rows: int, kind: str) -> None:
        """Make the step."""
        self.warm_up(loop(kind, rows, 64, 4096))
