"""Count the pages that a sparse step writes of a table and of its slots, all in files: those of the touched rows.

``python count_dirty_pages.py FOLDER [SETTINGS]``, where SETTINGS are JSON.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from optimizer_internals import slots_of
from process_limits import step

from numba_rmsprop import RMSprop


def dirty_pages(array):
    """Return how many pages of an array this process has written since they were last synchronised."""
    address, found = array.__array_interface__["data"][0], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            found = low <= address < high
        elif found and first in ("Private_Dirty:", "Shared_Dirty:") and line.split()[1] != "0":
            return int(line.split()[1]) * 1024 // 4096
    return 0


def synchronise(array):
    """Write the pages of an array to its file."""
    while not isinstance(array, np.memmap):
        array = array.base
    array.flush()


folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
opt = RMSprop(**settings, slots_folder=folder)
table = np.memmap(folder / "table", np.float32, "w+", shape=(50_000, 64))  # all zeros, no page on the disk
rows = np.arange(16) * 3000  # 16 rows of 256 bytes, on 16 pages
for t in range(3):
    step(opt, table, rows + t)
arrays = [table, *slots_of(opt, table).arrays.values()]
os.sync()
for array in arrays:
    synchronise(array)
clean = [dirty_pages(array) for array in arrays]
assert clean == [0] * len(arrays), clean
for t in range(20):
    step(opt, table, rows + 3 + t)
    dirty = [dirty_pages(array) for array in arrays]
    assert max(dirty) <= 16, dirty
    if dirty == [16] * len(arrays):
        break
    for array in arrays:  # the system has written some of them meanwhile, as when another process asks for it
        synchronise(array)
else:
    raise AssertionError(f"expected 16 pages of each array, got {dirty}")
