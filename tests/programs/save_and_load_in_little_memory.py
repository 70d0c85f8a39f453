"""Save and load a table of 64 MB with no memory for a copy.

``python save_and_load_in_little_memory.py FOLDER C|F``, where C and F are the orders of the table's elements.
"""

import resource
import sys
from pathlib import Path

import numpy as np
from process_limits import data_in_use, limit, step

from numba_rmsprop import RMSprop

SPARE = 24 << 20

path = Path(sys.argv[1], "opt")
table, opt = np.ones((500_000, 32), np.float32, order=sys.argv[2]), RMSprop()
step(opt, table, [1, 2, 3])
limit(resource.RLIMIT_DATA, data_in_use() + SPARE)
opt.save(path, include_variables=True)
# The new optimizer has an rms of its own.
limit(resource.RLIMIT_DATA, data_in_use() + SPARE + table.nbytes + 2_000_000)
table[...] = 0
found = RMSprop.load(path, [table])
assert table[0, 0] == 1
assert table[3, 0] < 1
assert found.iterations == 1
