"""Small tables, and steps on some of their rows."""

import numpy as np

from numba_rmsprop import IndexedSlices, RMSprop


def randn(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def rows_of(step, rows=40, columns=19, dtype=np.float32):
    indices = np.random.default_rng(step).integers(0, rows, 12)
    return IndexedSlices(randn(12, columns, seed=step, dtype=dtype), indices)


def trained(var, steps=6, dense=False, **options):
    opt = RMSprop(0.02, rho=0.9, **options)
    for step in range(steps):
        grad = rows_of(step, *var.shape)
        opt.apply_gradients([(dense_of(grad, var.shape) if dense else grad, var)])
    return opt


def dense_of(grad, shape):
    dense = np.zeros(shape, np.float32)
    np.add.at(dense, grad.indices, grad.values)
    return dense
