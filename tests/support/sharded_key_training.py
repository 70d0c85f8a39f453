"""Trainings of rows by key, on the ranks of a communicator or in one process; a step depends on its number alone."""

import hashlib

import numpy as np
from sharded_training import part

from numba_rmsprop import schedules
from numba_rmsprop.arrays.storage import computed_in
from numba_rmsprop.distributed import ShardedKeyedTable, Uniform
from numba_rmsprop.keyed import KeyedTable

STEPS = 12
CASES = [
    ({}, (3, "float32")),
    ({"momentum": 0.9, "weight_decay": 0.01, "rho": 0.99}, (5, "float64")),
    ({"centered": True, "clipvalue": 0.5, "sparse_update": "lazy"}, (16, "float32")),
    ({"state": "rowwise", "learning_rate": schedules.ExponentialDecay(0.1, 3, 0.5)}, (17, "bfloat16")),
    ({"use_ema": True, "ema_momentum": 0.5, "momentum": 0.5, "bias_correction": True}, (4, "float32")),
]
CLIPPED = [({"clipnorm": 0.5, "momentum": 0.9}, (3, "float64")), ({"sum_order": "rank"}, (3, "float64"))]


def batch(step, columns, dtype):
    """Return the keys and the gradients of a global batch: some keys are hot, old ones fade, and one batch is empty."""
    rng = np.random.default_rng(step)
    n = int(rng.integers(0, 400)) * (step != 4)
    keys = (rng.zipf(1.3, n).astype(np.int64) + 3 * step) * (1 - 2 * rng.integers(0, 2, n))
    return keys, rng.standard_normal((n, columns)).astype(computed_in(np.dtype(dtype)))


def take_step(table, step, columns, dtype, mine=slice(None)):
    keys, grads = batch(step, columns, dtype)
    keys, grads = keys[mine], grads[mine]
    pulled = table.gather(keys) if step % 3 else np.zeros_like(grads)
    table.apply_gradients(keys, grads + pulled * grads.dtype.type(0.1))
    if step % 4 == 3:
        table.evict(max_age=5)
    if step % 5 == 4:
        table.evict(max_rows=90)


def new_table(comm, columns, dtype, **options):
    return ShardedKeyedTable(comm, columns, dtype, Uniform(-1, 1, columns, seed=3), **options)


def trained(comm, columns, dtype, steps=range(STEPS), table=None, **options):
    table = new_table(comm, columns, dtype, **options) if table is None else table
    for step in steps:
        take_step(table, step, columns, dtype, part(step, len(batch(step, columns, dtype)[0]), comm))
    return table


def trained_alone(columns, dtype, steps=range(STEPS), table=None, **options):
    table = KeyedTable(columns, dtype, Uniform(-1, 1, columns, seed=3), **options) if table is None else table
    for step in steps:
        take_step(table, step, columns, dtype)
    return table


def digest(table):
    """Return the digest of all keys and rows, on rank 0 of a sharded table."""
    if isinstance(table, KeyedTable):
        keys = np.sort(table.keys())
        found = keys, table.gather(keys)
    else:
        found = table.whole()
        assert (found is None) == (table.ranks.rank != 0)
        assert table.rows_of_rank == len(table.local)
        assert (table.owners_of(table.local.keys()) == table.ranks.rank).all()
    return None if found is None else hashlib.sha256(b"".join(map(np.ndarray.tobytes, found))).hexdigest()
