"""Take one step where Numba cannot keep what it compiles.

``python step_without_cache.py [full_disk|no_folder]``: the disk is full, or the cache folder has gone, after the
import; without an argument, nothing changes.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np

from numba_rmsprop import RMSprop

if "full_disk" in sys.argv:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
if "no_folder" in sys.argv:
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    shutil.rmtree(folder)
    folder.touch()  # a file, where the folder was

var = np.ones(3)
assert RMSprop(0.1, rho=0.75).apply_gradients([(np.ones(3), var)]) == 1
assert abs(var - 0.8).max() < 1e-6, var
