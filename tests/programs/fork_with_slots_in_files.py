"""Fork where slots are in files, which both processes share: the child is refused, and the parent goes on.

``python fork_with_slots_in_files.py FOLDER``
"""

import os
import sys

import numpy as np
import pytest
from optimizer_internals import state_of

from numba_rmsprop import IndexedSlices, RMSprop

folder = sys.argv[1]
opt, table = RMSprop(momentum=0.9, slots_folder=folder), np.ones((20_000, 2))
dense, sparse = (np.ones((20_000, 2)), table), (IndexedSlices(np.ones((1, 2)), [1]), table)
for _ in range(3):
    opt.apply_gradients([sparse])
before = state_of(opt, [table])


def use_in_child():
    for call in (
        lambda: opt.apply_gradients([sparse]),
        lambda: opt.apply_gradients([dense]),
        lambda: opt.apply_gradients([sparse, (np.ones(3), np.ones(3))]),
        lambda: opt.gather(table, [1, 2]),
        opt.flush,
        lambda: opt.save(f"{folder}/opt"),
    ):
        with pytest.raises(RuntimeError, match="slots are in files"):
            call()
    own, other = RMSprop(slots_folder=folder), np.ones((20_000, 2))
    assert own.apply_gradients([(sparse[0], other)]) == 1


child = os.fork()
if child == 0:
    use_in_child()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert state_of(opt, [table]) == before
opt.apply_gradients([sparse])
