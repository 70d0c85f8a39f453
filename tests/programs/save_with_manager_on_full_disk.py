"""Let a CheckpointManager that keeps one file save on a disk that is full: the last file stays.

``python save_with_manager_on_full_disk.py FOLDER``
"""

import os
import resource
import sys

import numpy as np
import pytest
from process_limits import limit, step

from numba_rmsprop import CheckpointManager, RMSprop

table, opt = np.ones((20_000, 16)), RMSprop()
manager = CheckpointManager(sys.argv[1], keep=1)
step(opt, table, [1])
path = manager.save(opt)
limit(resource.RLIMIT_FSIZE, 1_000_000)
with pytest.raises(OSError, match="too large"):
    manager.save(opt)
assert manager.latest() == [path]
assert os.listdir(sys.argv[1]) == [path.name]
