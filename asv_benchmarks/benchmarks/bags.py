"""Training steps of pooled embeddings: forward and backward pass and the optimizer's step, beside FBGEMM's fused ones.

All are handed the same bags of Zipf-distributed rows and the same gradient of their sums, in float32. Which rule each
takes is in its name. FBGEMM's "exact Adagrad" is a serial loop over scalars on CPUs; its row-wise rules are vectorised,
and keep one number of state for a row where the others keep one for an element. Its row-wise RMSprop decays a row's
mean square only when the row is touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_rmsprop import RMSprop, SparseProduct
from numba_rmsprop.kernels.rmsprop import Numbers
from numba_rmsprop.runtime.launching import team_for

from . import steps
from .limits import limit_products

FUSED, NOT_FUSED = "numba_rmsprop.torch fused", "numba_rmsprop.torch"
FBGEMM_RMSPROP, FBGEMM_ROWWISE = "fbgemm row-wise RMSprop", "fbgemm row-wise Adagrad"
TRAINING = (FUSED, steps.OURS, NOT_FUSED, FBGEMM_RMSPROP, FBGEMM_ROWWISE, steps.FBGEMM, steps.SPARSE_ADAM)
LARGE = (FUSED, steps.OURS, FBGEMM_RMSPROP, FBGEMM_ROWWISE, steps.FBGEMM)
"""Those of which five copies of large tables fit into memory."""

COLUMNS = 64


class Batch:
    """Bags of each of some features, the same for all libraries.

    Parameters
    ----------
    features, rows : int
        The number of tables, and the rows of each.
    bags, size : int
        The number of bags of each feature, and the entries of each bag.
    """

    def __init__(self, features: int, rows: int, bags: int, size: int) -> None:
        self.features, self.rows, self.bags, self.size = features, rows, bags, size
        drawn = [steps.zipf(bags * size, rows, seed) for seed in range(features)]
        self.indices = [indices[: bags * size] for indices in drawn]
        self.offsets = np.arange(bags) * size
        self.grads = [steps.normal(bags, COLUMNS) for _ in range(features)]

    def stacked(self, torch: Any) -> tuple[Any, Any]:
        """Return the indices of all features, and their offsets with the last one."""
        offsets = np.arange(self.features * self.bags + 1) * self.size
        return torch.from_numpy(np.concatenate(self.indices)), torch.from_numpy(offsets)


def training(library: str, features: int, rows: int, bags: int, size: int) -> steps.Step:
    """Return a training step."""
    batch = Batch(features, rows, bags, size)
    if library == steps.OURS:
        return _numpy(batch)
    torch = steps.torch_module()
    if library in (FUSED, NOT_FUSED, steps.SPARSE_ADAM):
        return _modules(torch, library, batch)
    return _fbgemm(torch, library, batch)


def _numpy(batch: Batch) -> steps.Step:
    tables = [np.zeros((batch.rows, COLUMNS), np.float32) for _ in range(batch.features)]
    opt, sums = RMSprop(rho=steps.RHO), np.empty((batch.bags, COLUMNS), np.float32)

    def step() -> None:
        pairs = []
        for table, indices, grads in zip(tables, batch.indices, batch.grads, strict=True):
            opt.gather_sum(table, indices, batch.offsets, out=sums)
            pairs.append((SparseProduct.from_bags(grads, indices, batch.offsets), table))
        opt.apply_gradients(pairs)

    return step


def _modules(torch: Any, library: str, batch: Batch) -> steps.Step:
    indices, offsets = batch.stacked(torch)
    grads = torch.from_numpy(np.stack(batch.grads))
    if batch.features > 1:
        assert library == FUSED
        module = steps.ours("EmbeddingBagCollection")([batch.rows] * batch.features, COLUMNS, include_last_offset=True)
    else:
        make = torch.nn.EmbeddingBag if library == steps.SPARSE_ADAM else steps.ours("EmbeddingBag")
        weight, fused = torch.zeros(batch.rows, COLUMNS), {"fused": True} if library == FUSED else {}
        module = make(batch.rows, COLUMNS, mode="sum", sparse=True, include_last_offset=True, _weight=weight, **fused)
        grads = grads[0]
    parameters = list(module.parameters())
    adam = library == steps.SPARSE_ADAM
    optimizer = torch.optim.SparseAdam(parameters) if adam else steps.ours("RMSprop")(parameters, alpha=steps.RHO)

    def step() -> None:
        optimizer.zero_grad()
        module(indices, offsets).backward(grads)
        optimizer.step()

    return step


def _fbgemm(torch: Any, library: str, batch: Batch) -> steps.Step:
    steps.need("fbgemm_gpu")
    made = steps.need("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = steps.need("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    table = batch.rows, COLUMNS, common.EmbeddingLocation.HOST, made.ComputeDevice.CPU
    rules = made.OptimType
    rule = rules.EXACT_ADAGRAD if library == steps.FBGEMM else rules.EXACT_ROWWISE_ADAGRAD
    module = made.SplitTableBatchedEmbeddingBagsCodegen([table] * batch.features, optimizer=rule, learning_rate=1e-3)
    look_up = _rowwise_rmsprop(torch, module) if library == FBGEMM_RMSPROP else module
    indices, offsets = batch.stacked(torch)
    grads = torch.from_numpy(np.concatenate(batch.grads, axis=1))
    return lambda: look_up(indices, offsets).backward(grads)


def _rowwise_rmsprop(torch: Any, module: Any) -> Any:
    """Return a forward pass of FBGEMM's ``rowwise_rmsprop_ar``, for which its module has no name.

    Weights and state are those of a module of row-wise Adagrad.
    """
    ask = torch.ops.fbgemm.split_embedding_codegen_lookup_rowwise_rmsprop_ar_function_pt2
    places = module.momentum1_placements, module.momentum1_offsets
    latest = torch.zeros_like(module.momentum1_host)
    count = [0]

    def look_up(indices: Any, offsets: Any) -> Any:
        count[0] += 1
        return ask(
            placeholder_autograd_tensor=module.placeholder_autograd_tensor,
            weights=[module.weights_host, module.weights_placements, module.weights_offsets],
            D_offsets=module.D_offsets,
            total_D=module.total_D,
            max_D=module.max_D,
            hash_size_cumsum=module.hash_size_cumsum,
            total_hash_size_bits=module.total_hash_size_bits,
            indices=indices,
            offsets=offsets,
            pooling_mode=0,
            indice_weights=None,
            feature_requires_grad=None,
            output_dtype=0,
            max_B=-1,
            max_B_feature_rank=-1,
            vbe_output_size=-1,
            vbe_output=None,
            aux_tensor=[None, None, None, torch.zeros(0, dtype=torch.int32), None, None, None],
            aux_int=[count[0], module.info_B_num_bits, module.info_B_mask],
            aux_float=[0.0, 1.0],
            aux_bool=[False] * 7,
            learning_rate_tensor=torch.tensor(1e-3),
            momentum1=[module.momentum1_host, *places],
            prev_iter=[latest, *places],
            optim_float=[1e-7, steps.RHO, 0.9, 0.0],
        )

    return look_up


def step_alone(library: str, rows: int, bags: int, size: int) -> steps.Step:
    """Return the step without the passes; the limit's is handed the different rows and the bags of each."""
    batch = Batch(1, rows, bags, size)
    indices, grads = batch.indices[0], batch.grads[0]
    product = SparseProduct.from_bags(grads, indices, batch.offsets)
    if library == steps.OURS:
        table, opt = np.zeros((rows, COLUMNS), np.float32), RMSprop(rho=steps.RHO)
        return lambda: opt.apply_gradients([(product, table)])
    state = np.zeros((rows, COLUMNS), np.float32), np.zeros((rows, COLUMNS), np.float32), None, None, None
    numbers = Numbers(1e-3, steps.RHO, 1 - steps.RHO, 0.0, 0.0, 1e-7, 1.0, 1.0, 0.0, 0.0, 1.0)
    packed = np.array([np.inf, 1.0, *numbers], np.float32)
    different, starts, sources = by_row(product)
    sums = np.empty((len(different), COLUMNS), np.float32)

    def step() -> None:
        limit_products(team_for(len(indices) * COLUMNS), (different, starts, sources, grads), sums, state, packed)

    return step


def by_row(product: SparseProduct) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return the different rows in the order in which they first come, and where the bags of each lie."""
    _, firsts, numbers, counts = np.unique(product.indices, True, True, True)
    order = np.argsort(firsts)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    grouped = np.argsort(places[numbers], kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts[order])])
    return product.indices[firsts[order]], starts, product.sources[grouped]


class Training(steps._Timed):
    """A training step of bags of 20, of 1,000,000 rows of 64."""

    params = (steps.sizes(4096, 65_536), steps.sizes(20, 1), list(TRAINING))
    param_names = ("entries", "entries of a bag", "library")

    def setup(self, entries: int, size: int, library: str) -> None:
        """Make the step."""
        self.warm_up(training(library, 1, 1_000_000, entries // size, size))
