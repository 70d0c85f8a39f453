"""Take sparse steps with and without moving averages, in the order asked for; print the sums of both tables."""

import sys

import numpy as np

from numba_rmsprop import IndexedSlices, RMSprop

found = {}
for use_ema in map(int, sys.argv[1:]):
    table, opt = np.ones((30, 4)), RMSprop(use_ema=bool(use_ema))
    for row in (3, 5, 5, 3):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [row]), table)])
    opt.flush()
    found[use_ema] = [float(table.sum()), *(float(slot.sum()) for slot in opt.get_weights()[1:])]
print(sorted(found.items()))
