"""Take one step with an IndexedSlices; print the sum of the table and the number of steps."""

import numpy as np

from numba_rmsprop import IndexedSlices, RMSprop

table = np.ones((300, 64), np.float32)
opt = RMSprop()
opt.apply_gradients([(IndexedSlices(np.ones((3, 64), np.float32), [7, 2, 7]), table)])
print(float(table.sum()), opt.iterations)
