"""Small optimizers that were trained, and gradients to go on with."""

import numpy as np

from numba_rmsprop import IndexedSlices, RMSprop, schedules


def trained():
    opt = RMSprop(schedules.CosineDecay(0.1, 100), momentum=0.9, centered=True, weight_decay=0.01, clipnorm=3.0)
    table, scale = np.ones((5, 2), np.float32), np.array(2.0)
    fortran = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    for t in range(7):
        grad = IndexedSlices(np.ones((1, 2), np.float32), [t % 5])
        opt.apply_gradients([(grad, table), (1.0, scale), (np.arange(12.0).reshape(4, 3), fortran)])
    return opt, [table, scale, fortran]


def trained_on_ones(var, steps=3, **options):
    """Return an optimizer that has taken dense steps of one variable, with gradients of 1."""
    opt = RMSprop(0.1, **options)
    for _ in range(steps):
        opt.apply_gradients([(np.ones(var.shape), var)])
    return opt


def ones_for_rows(var, *indices):
    """Return the pairs of a call with gradients of 1 for some rows of a variable."""
    return [(IndexedSlices(np.ones((len(indices), *var.shape[1:]), var.dtype), list(indices)), var)]
