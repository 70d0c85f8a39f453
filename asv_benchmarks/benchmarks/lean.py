"""Steps on rows of tables in several forms, each beside the limit of its layout, and FBGEMM's row-wise Adagrad.

Batches of different rows follow one another, so that rows come from memory and not from the cache.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.kernels.rmsprop import Numbers
from numba_rmsprop.runtime.launching import team_for

from . import steps
from .limits import limit_rows

BFLOAT16, STOCHASTIC = ml_dtypes.bfloat16, {"rounding": "stochastic"}
FORMS: dict[str, tuple[Any, dict[str, str]]] = {
    "float32": (np.float32, {}),
    "float32, row-wise": (np.float32, {"state": "rowwise"}),
    "bfloat16, row-wise": (BFLOAT16, {"state": "rowwise"}),
    "float16, row-wise": (np.float16, {"state": "rowwise"}),
    "bfloat16, row-wise, stochastic": (BFLOAT16, {"state": "rowwise"} | STOCHASTIC),
    "bfloat16, stochastic": (BFLOAT16, STOCHASTIC),
    "bfloat16 with its state, stochastic": (BFLOAT16, {"state_dtype": "bfloat16"} | STOCHASTIC),
}
LIMIT_OF = "limit: "
FBGEMM, FBGEMM_HALF = "fbgemm row-wise Adagrad", "fbgemm row-wise Adagrad, float16"
LABELS = (*FORMS, *(LIMIT_OF + form for form in list(FORMS)[:4]), FBGEMM, FBGEMM_HALF)

BATCHES = 16


def step(label: str, shape: tuple[int, int], entries: int) -> steps.Step:
    """Return a step on different rows each time."""
    values = steps.normal(entries, shape[1])
    batches = [steps.unique(entries, shape[0], seed) for seed in range(BATCHES)]
    if label in (FBGEMM, FBGEMM_HALF):
        return _fbgemm(label, shape, batches, values)
    dtype, options = FORMS[label.removeprefix(LIMIT_OF)]
    table = np.ones(shape, dtype)
    opt = RMSprop(rho=steps.RHO, **options)
    gradients = cycle([IndexedSlices(values, indices) for indices in batches])
    if label in FORMS:
        return lambda: opt.apply_gradients([(next(gradients), table)])
    opt.build([table])
    state, _ = opt.known.slots[0].borrow_all(None)
    numbers = Numbers(1e-3, steps.RHO, 1 - steps.RHO, 0.0, 0.0, 1e-7, 1.0, 1.0, 0.0, 0.0, 1.0)
    packed = np.array([np.inf, 1.0, *numbers], np.float32)
    team = team_for(values.size)
    entered = opt.known.slots[0].scratch.entered(team[0])
    return lambda: limit_rows(team, next(gradients).indices, values, state, packed, entered)


def _fbgemm(label: str, shape: tuple[int, int], batches: list[NDArray[np.int64]], values: steps.Floats) -> steps.Step:
    """Return the backward pass alone, which holds the update; the graph of each batch is kept."""
    torch = steps.torch_module()
    steps.need("fbgemm_gpu")
    training = steps.need("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = steps.need("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    precisions = steps.need("fbgemm_gpu.split_embedding_configs").SparseType
    embeddings = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(*shape, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=training.OptimType.EXACT_ROWWISE_ADAGRAD,
        weights_precision=precisions.FP16 if label == FBGEMM_HALF else precisions.FP32,
        learning_rate=1e-3,
    )
    offsets, grad = torch.arange(len(values) + 1), torch.from_numpy(values)
    graphs = cycle([embeddings(torch.from_numpy(indices), offsets) for indices in batches])
    return lambda: next(graphs).backward(grad, retain_graph=True)


class Lean(steps._Timed):
    """Rows that come from memory, in tables of several forms."""

    params = (steps.sizes((4096, 1_000_000, 64), (65_536, 1_000_000, 64), (65_536, 5_000_000, 64)), list(LABELS))
    param_names = ("entries, rows, columns", "form")

    def setup(self, case: tuple[int, int, int], label: str) -> None:
        """Make the step."""
        entries, rows, columns = case
        self.warm_up(step(label, (rows, columns), entries))
