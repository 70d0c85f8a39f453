"""Compile one function for three types at once, in forked processes that share an empty cache.

``python compile_in_forks.py FOLDER``; the folder holds ``module.py``, with the compiled function ``twice``. Print how
the children ended, and what the function then returns.
"""

import importlib
import json
import multiprocessing
import os
import sys

from numba.core.caching import IndexDataCacheFile

NUMBERS = 21, 21.5, True
barrier = multiprocessing.get_context("fork").Barrier(len(NUMBERS))


def write_in_turn(method, turn):
    """Let the processes write one after the other, as soon as all of them are about to write."""
    write = getattr(IndexDataCacheFile, method)

    def written(*arguments):
        for k in range(len(NUMBERS)):
            barrier.wait()
            if k == turn:
                write(*arguments)
        barrier.wait()

    setattr(IndexDataCacheFile, method, written)


sys.path.insert(0, sys.argv[1])
module = importlib.import_module("module")  # forked processes share what it has made
children = []
for k, number in enumerate(NUMBERS):
    children.append(os.fork())
    if children[-1] == 0:
        write_in_turn("_save_index", k)
        write_in_turn("_save_data", len(NUMBERS) - 1 - k)
        os._exit(module.twice(number) != 2 * number)
statuses = [os.waitpid(child, 0)[1] for child in children]
print(json.dumps([statuses, [module.twice(number) for number in NUMBERS]]))
