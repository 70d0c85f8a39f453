"""Take a first step whose slots have no room in the folder for them: it is refused, and nothing has changed.

``python make_slots_on_full_disk.py FOLDER``
"""

import resource
import sys

import numpy as np
import pytest
from process_limits import limit, step

from numba_rmsprop import RMSprop

limit(resource.RLIMIT_FSIZE, 1_000_000)
opt, table = RMSprop(slots_folder=sys.argv[1]), np.ones((20_000, 16))
with pytest.raises(OSError, match="too large"):
    step(opt, table, [1])
assert (table == 1).all()
assert opt.iterations == 0
assert opt.get_weights() == [0]
