"""Save a delta on a disk that is full: nothing is left of it, and it can be saved when there is room.

``python save_delta_on_full_disk.py FOLDER``
"""

import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from optimizer_internals import state_of
from process_limits import limit, step

from numba_rmsprop import RMSprop

folder = Path(sys.argv[1])
table, opt = np.ones((20_000, 16)), RMSprop()
step(opt, table, np.arange(10_000))
opt.save(folder / "base")
step(opt, table, np.arange(10_000))
for size in (100, 70_000, 1_000_000):
    limit(resource.RLIMIT_FSIZE, size)
    with pytest.raises(OSError, match="too large"):
        opt.save_delta(folder / "delta")
    assert os.listdir(folder) == ["base"]
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
opt.save_delta(folder / "delta")
copy = np.zeros_like(table)
found = RMSprop.load([folder / "base", folder / "delta"], [copy])
assert state_of(found, [copy]) == state_of(opt, [table])
