"""One step of every library on the same data: functions that make a function to be timed.

Each maker takes the library's name first and returns a callable without arguments that takes one step, on state of
its own, and returns when the step is done. A library that is not installed raises NotImplementedError, which asv
counts as skipped.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.kernels.rmsprop import Numbers
from numba_rmsprop.runtime.launching import team_for

from .limits import limit_dense, limit_rows

Step = Callable[[], object]
Floats = NDArray[np.float32]

OURS, OURS_TORCH, LIMIT = "numba_rmsprop", "numba_rmsprop.torch", "limit"
TORCH, FOREACH, FUSED_ADAM, FUSED_ADAGRAD = "torch", "torch foreach", "torch fused Adam", "torch fused Adagrad"
SPARSE_ADAM, FBGEMM, OPTAX, TENSORFLOW = "torch SparseAdam", "fbgemm Adagrad", "optax", "tensorflow"
NUMPY, NUMPY_CLIP = "np.take", "np.take clip"
DELTA, FULL = "delta", "all"

DENSE = (OURS, LIMIT, OURS_TORCH, TORCH, FOREACH, FUSED_ADAM, FUSED_ADAGRAD, OPTAX, TENSORFLOW)
ROWS = (OURS, LIMIT, OURS_TORCH, SPARSE_ADAM, FBGEMM, TORCH, TENSORFLOW)

RHO = 0.9


def sizes(*values: Any) -> list[Any]:
    """Return a benchmark's sizes, or only the first where a run is to show no more than that it works."""
    return list(values[:1] if os.environ.get("SMALLEST_SIZES") else values)


class _Timed:
    """A benchmark whose ``setup`` calls ``warm_up``; asv overlooks names with an underscore."""

    warmup_time = 0.2
    timeout = 300

    def warm_up(self, step: Step) -> None:
        """Compile, and bring the caches to what they are in a loop."""
        self.step = step
        for _ in range(3):
            step()

    def time_step(self, *_: Any) -> None:
        """One step."""
        self.step()

    def peakmem_step(self, *_: Any) -> None:
        """Memory at its highest, with the library itself."""
        self.step()


def need(module: str) -> Any:
    """Import a peer, or tell asv to skip."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotImplementedError(f"{module} is not installed") from error


def torch_module() -> Any:
    """Import torch, on as many threads as Numba."""
    torch = need("torch")
    torch.set_num_threads(numba.get_num_threads())
    return torch


def ours(name: str) -> Any:
    """Return a class of ours for torch, which must be installed."""
    return getattr(importlib.import_module("numba_rmsprop.torch"), name)


def use_threads(count: int) -> None:
    """Let Numba use so many threads, or tell asv to skip."""
    if count > numba.config.NUMBA_NUM_THREADS:
        raise NotImplementedError(f"{count} threads: there are {numba.config.NUMBA_NUM_THREADS}")
    numba.set_num_threads(count)


def zipf(entries: int, rows: int, seed: int = 0) -> NDArray[np.int64]:
    """Return Zipf-distributed indices; which row is how frequent is drawn too."""
    rng = np.random.default_rng(seed)
    drawn = rng.zipf(1.2, 20 * entries) - 1
    return rng.permutation(rows)[drawn[drawn < rows][:entries]]


def unique(entries: int, rows: int, seed: int = 0) -> NDArray[np.int64]:
    """Return indices that are unique, in no order."""
    rng = np.random.default_rng(seed)
    drawn = np.unique(rng.integers(0, rows, 2 * entries if entries < rows // 4 else 8 * entries))
    return rng.permutation(drawn)[:entries]


def normal(*shape: int) -> Floats:
    """Return normally distributed numbers, the same at every call."""
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def dense(library: str, sizes: list[int], **options: Any) -> Step:
    """Return a step on variables of the given sizes; ``options`` are our optimizer's."""
    gradients = [normal(size) for size in sizes]
    if library == OURS:
        pairs = [(grad, np.ones(grad.shape, np.float32)) for grad in gradients]
        opt = RMSprop(rho=RHO, **options)
        return lambda: opt.apply_gradients(pairs)
    if library == LIMIT:
        streams = [(np.ones_like(grad), grad, np.ones_like(grad)) for grad in gradients]
        return lambda: [limit_dense(team_for(arrays[0].size, fine=True), *arrays) for arrays in streams]
    if library == OPTAX:
        return _optax(gradients)
    if library == TENSORFLOW:
        return _tensorflow([(grad, grad.shape) for grad in gradients])
    torch = torch_module()
    make, settings = {
        OURS_TORCH: (ours("RMSprop"), {"alpha": RHO}),
        TORCH: (torch.optim.RMSprop, {"alpha": RHO, "foreach": False}),
        FOREACH: (torch.optim.RMSprop, {"alpha": RHO, "foreach": True}),
        FUSED_ADAM: (torch.optim.Adam, {"fused": True}),
        FUSED_ADAGRAD: (torch.optim.Adagrad, {"fused": True}),
    }[library]
    parameters = [torch.nn.Parameter(torch.ones(grad.shape)) for grad in gradients]
    for parameter, grad in zip(parameters, gradients, strict=True):
        parameter.grad = torch.from_numpy(grad)
    return make(parameters, **settings).step


def _optax(gradients: list[Floats]) -> Step:
    jax, optax = need("jax"), need("optax")
    tx = optax.rmsprop(1e-3, decay=RHO)
    grads = [jax.numpy.asarray(grad) for grad in gradients]
    params = [jax.numpy.ones(grad.shape) for grad in grads]
    state = [params, tx.init(params)]

    def update(params: Any, opt_state: Any, grads: Any) -> Any:
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        state[:] = compiled(*state, grads)
        jax.block_until_ready(state[0])

    return step


def _tensorflow(gradients: list[tuple[Any, tuple[int, ...]]]) -> Step:
    """Return a step inside a tf.function; a gradient is an array, or ``(values, indices)``."""
    tf, tf_keras = need("tensorflow"), need("tf_keras")
    opt = tf_keras.optimizers.legacy.RMSprop(rho=RHO)
    variables = [tf.Variable(tf.ones(shape)) for _, shape in gradients]
    grads = [
        tf.IndexedSlices(*map(tf.constant, grad), dense_shape=shape) if isinstance(grad, tuple) else tf.constant(grad)
        for grad, shape in gradients
    ]

    @tf.function
    def step() -> None:
        opt.apply_gradients(list(zip(grads, variables, strict=True)))

    opt._create_all_weights(variables)
    return step


def rows(library: str, shape: tuple[int, int], indices: NDArray[np.int64], **options: Any) -> Step:
    """Return a step on the rows ``indices`` of a table; the limit's take no notice of repeated ones."""
    values = normal(len(indices), shape[1])
    if library == OURS:
        table = np.ones(shape, np.float32)
        opt = RMSprop(rho=RHO, **options)
        grad = IndexedSlices(values, indices)
        return lambda: opt.apply_gradients([(grad, table)])
    if library == LIMIT:
        state = np.ones(shape, np.float32), np.ones(shape, np.float32), None, None, None
        numbers = Numbers(1e-3, RHO, 1 - RHO, 0.0, 0.0, 1e-7, 1.0, 1.0, 0.0, 0.0, 1.0)
        packed = np.array([np.inf, 1.0, *numbers], np.float32)  # neither clipped nor scaled
        return lambda: limit_rows(team_for(values.size), indices, values, state, packed, None)
    if library == TENSORFLOW:
        return _tensorflow([((values, indices), shape)])
    torch = torch_module()
    if library == FBGEMM:
        return _fbgemm(torch, shape, indices, values)
    parameter = torch.nn.Parameter(torch.ones(shape))
    sparse = torch.sparse_coo_tensor(
        torch.from_numpy(indices[np.newaxis]), torch.from_numpy(values), shape, check_invariants=False
    )
    if library in (OURS_TORCH, SPARSE_ADAM):
        parameter.grad = sparse
        settings = {"alpha": RHO} if library == OURS_TORCH else {}
        return (ours("RMSprop") if library == OURS_TORCH else torch.optim.SparseAdam)([parameter], **settings).step
    parameter.grad = sparse.to_dense()
    return torch.optim.RMSprop([parameter], alpha=RHO).step


def _fbgemm(torch: Any, shape: tuple[int, int], indices: NDArray[np.int64], values: Floats) -> Step:
    """Return the backward pass alone, which holds the update; its graph is kept."""
    need("fbgemm_gpu")
    training = need("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = need("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    embeddings = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(*shape, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=training.OptimType.EXACT_ADAGRAD,
        learning_rate=1e-3,
    )
    offsets = torch.arange(len(indices) + 1)
    pooled = embeddings(torch.from_numpy(indices), offsets)
    grad = torch.from_numpy(values)
    return lambda: pooled.backward(grad, retain_graph=True)


def fresh_rows(shape: tuple[int, int], entries: int, batches: int = 64) -> Step:
    """Return a step of ours that goes through ``batches`` sets of rows in turn, so that few are still in cache."""
    rng = np.random.default_rng(0)
    # Not np.ones: of a table of gigabytes, only what is touched need come to be.
    table = np.zeros(shape, np.float32)
    opt = RMSprop(rho=RHO)
    values = normal(entries, shape[1])
    gradients = cycle([IndexedSlices(values, rng.integers(0, shape[0], entries)) for _ in range(batches)])
    return lambda: opt.apply_gradients([(next(gradients), table)])


def gather(library: str, shape: tuple[int, int], indices: NDArray[np.int64]) -> Step:
    """Return a gather into an array that is there already."""
    table, out = np.ones(shape, np.float32), np.empty((len(indices), shape[1]), np.float32)
    if library == OURS:
        opt = RMSprop()
        opt.build([table])
        return lambda: opt.gather(table, indices, out=out)
    mode = {NUMPY: "raise", NUMPY_CLIP: "clip"}[library]
    return lambda: np.take(table, indices, axis=0, out=out, mode=mode)


def saving(kind: str, shape: tuple[int, int], indices: NDArray[np.int64]) -> tuple[Step, Path]:
    """Return a step on some rows and a save after it, of everything or of the changes, and the folder of its file."""
    table, values = np.ones(shape, np.float32), normal(len(indices), shape[1])
    gradient = IndexedSlices(values, indices)
    opt = RMSprop()
    opt.apply_gradients([(gradient, table)])
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    opt.save(folder / "base", include_variables=True)
    (folder / "base").unlink()
    numbers = count()

    def step() -> None:
        assert temporary  # it lives as long as the step does
        for path in folder.iterdir():
            path.unlink()
        opt.apply_gradients([(gradient, table)])
        if kind == DELTA:
            opt.save_delta(folder / str(next(numbers)))
        else:
            opt.save(folder / str(next(numbers)), include_variables=True)

    return step, folder
