"""Save on a disk that is full: the old file stays, and the next delta goes on from it.

``python save_on_full_disk.py FOLDER [--without-variables]``
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

folder, include_variables = Path(sys.argv[1]), "--without-variables" not in sys.argv
path = folder / "opt"
table, opt = np.ones((20_000, 16)), RMSprop()
step(opt, table, np.arange(10_000))
opt.save(path)
step(opt, table, np.arange(10_000))
content, state = path.read_bytes(), state_of(opt, [table])
for size in (0, 100, 70_000, 1_000_000):
    limit(resource.RLIMIT_FSIZE, size)
    with pytest.raises(OSError, match="too large"):
        opt.save(path, include_variables=include_variables)
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
assert os.listdir(folder) == ["opt"]
assert path.read_bytes() == content
assert state_of(opt, [table]) == state
opt.save_delta(folder / "delta")
copy = np.zeros_like(table)
assert state_of(RMSprop.load([path, folder / "delta"], [copy]), [copy]) == state
opt.save(path, include_variables=include_variables)
assert path.read_bytes() != content
