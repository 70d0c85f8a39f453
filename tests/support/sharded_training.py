"""One training, on the ranks of a communicator or in one process; each step depends on its number alone."""

import hashlib
import itertools

import numpy as np

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct, schedules
from numba_rmsprop.arrays.storage import computed_in
from numba_rmsprop.distributed import ShardedTable, Uniform

STEPS = 9
CASES = {
    "plain": {},
    "momentum and weight decay": {"momentum": 0.9, "weight_decay": 0.01, "rho": 0.99},
    "centered, clipped values": {"centered": True, "clipvalue": 0.5},
    "lazy": {"sparse_update": "lazy", "momentum": 0.5},
    "schedule": {"learning_rate": schedules.ExponentialDecay(0.1, 3, 0.5), "momentum": 0.5},
    "clipped norm": {"clipnorm": 0.5, "momentum": 0.9},
}
OPTIONS = {
    "learning_rate": schedules.ExponentialDecay(0.1, 50, 0.9),
    "momentum": 0.9,
    "nesterov": True,
    "bias_correction": True,
    "weight_decay": 0.01,
}
"""Options of a table that is saved and loaded."""

KINDS = [(1, 1, "float32"), (3, 2, "float32"), (60, 5, "float64"), (20_000, 16, "float32")]
"""Rows, columns and dtype."""

LEAN = {"state": "rowwise", "rounding": "stochastic", "seed": 5}, (500, 17, "bfloat16")
"""Options and kind of a lean table, whose random bits go by the rows of the whole table."""

AVERAGED = {"momentum": 0.9, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 4}, (60, 5, "float64")

TRAININGS = [LEAN, AVERAGED, *itertools.product(CASES.values(), KINDS)]
"""The clipped ones come last."""


def batch(step, rows, columns, dtype):
    """Return the indices and the gradients of a global batch: some rows are hot, and one batch is empty."""
    rng = np.random.default_rng([step, rows, columns])
    n = int(rng.integers(0, 400)) * (step != 4)
    return (rng.zipf(1.3, n) - 1) % rows, rng.standard_normal((n, columns)).astype(computed_in(dtype))


def part(step, n, comm):
    """Return this rank's part of a batch of n, cut at random places."""
    cuts = np.sort(np.random.default_rng([step, comm.size]).integers(0, n + 1, comm.size - 1))
    bounds = [0, *cuts, n]
    return slice(bounds[comm.rank], bounds[comm.rank + 1])


def new_table(comm, rows, columns, dtype="float32", order="batch", **options):
    return ShardedTable(comm, rows, columns, dtype, Uniform(-1, 1, columns, seed=3), sum_order=order, **options)


def take_step(comm, table, step):
    """Take a step: with a gather before it, with two under way at once, or with none."""
    indices, grads = batch(step, *table.shape, table.dtype)
    mine = part(step, len(indices), comm)
    pulled = np.zeros_like(grads[mine])
    if step % 3 == 0:
        table.gather(indices[mine], out=pulled)
    elif step % 3 == 1:
        other = table.gather_async(indices[mine][::2].reshape(1, -1))
        pulled = table.gather_async(indices[mine]).wait()
        assert (other.wait()[0] == pulled[::2]).all()
    values = grads[mine] + pulled * grads.dtype.type(0.1)
    if step % 4 == 2:  # the same, as a product
        backwards = np.arange(len(values))[::-1]
        table.apply_gradients(SparseProduct.from_entries(values[::-1], indices[mine], backwards))
    else:
        table.apply_gradients(indices[mine], values)


def trained(comm, *arguments, **options):
    table = new_table(comm, *arguments, **options)
    for step in range(STEPS):
        take_step(comm, table, step)
    return table


def digest(table):
    """Return the digest of a whole table, on rank 0."""
    table.flush()
    rms = table.optimizer.get_slot(table.shard, "rms")
    assert rms.shape[0] == len(table.shard) == len(table.rows_here)
    averages = table.gather(np.arange(table.shape[0]), averaged=True) if table.optimizer.use_ema else np.empty(0)
    whole = table.whole()
    assert (whole is None) == (table.ranks.rank != 0)
    return None if whole is None else hashlib.sha256(whole.tobytes() + averages.tobytes()).hexdigest()


def take_step_alone(opt, table, step):
    """Take the same step with RMSprop on one array."""
    indices, grads = batch(step, *table.shape, table.dtype)
    pulled = opt.gather(table, indices) if step % 3 != 2 else np.zeros_like(grads)
    opt.apply_gradients([(IndexedSlices(grads + pulled * grads.dtype.type(0.1), indices), table)])


def new_array(rows, columns, dtype="float32"):
    return Uniform(-1, 1, columns, seed=3)(np.arange(rows)).astype(dtype)


def digest_of_one_process(rows, columns, dtype, **options):
    """Return the digest of the same training with RMSprop on one array."""
    table, opt = new_array(rows, columns, dtype), RMSprop(**options)
    for step in range(STEPS):
        take_step_alone(opt, table, step)
    opt.flush()
    averages = opt.average(table) if opt.use_ema else np.empty(0)
    return hashlib.sha256(table.tobytes() + averages.tobytes()).hexdigest()
