"""Train a table four times as large as the memory that this process may have, with slots of the same size.

``python train_a_table_beyond_memory.py FOLDER``
"""

import resource
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from optimizer_internals import slots_of
from process_limits import data_in_use, limit, step

from numba_rmsprop import RMSprop

folder, shape = Path(sys.argv[1]), (1_000_000, 64)
opt = RMSprop(momentum=0.9, slots_folder=folder)
small = np.memmap(folder / "small", np.float32, "w+", shape=(300, 64))
step(opt, small, [1])  # whatever Numba loads is loaded before the limit is set
opt.gather(small, [1])
limit(resource.RLIMIT_DATA, data_in_use() + (64 << 20))
table = np.memmap(folder / "table", np.float32, "w+", shape=shape)
rng = np.random.default_rng(0)
count = 50 if numba.config.DISABLE_JIT else 500
for _ in range(20):
    rows = rng.integers(0, len(table), count)
    opt.gather(table, rows)
    step(opt, table, rows)
assert opt.get_slot_names() == ["rms", "momentum"]
assert sorted(path.name for path in folder.iterdir()) == ["small", "table"]
opt.save(folder / "opt", include_variables=False)
same = RMSprop.load(folder / "opt", [small, table], slots_folder=folder)
for name, slot in slots_of(opt, table).arrays.items():
    assert (slot[rows] == slots_of(same, table).arrays[name][rows]).all()
blocks = (folder / "table").stat().st_blocks * 512
assert blocks < 20 * count * 4096 * 1.1, blocks  # the file has only the pages of touched rows
with pytest.raises(MemoryError):  # so the limit does limit
    RMSprop().build([np.memmap(folder / "table", np.float32, "r+", shape=shape)])
