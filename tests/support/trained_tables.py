"""A small trained optimizer with variables of several kinds."""

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
