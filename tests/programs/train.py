"""Train once for each seed; print the digests of the results.

``python train.py [--serial] SEED...``; with ``--serial``, no kernel is launched on several threads.
"""

import json
import sys

import training_digests

from numba_rmsprop.runtime import launching

arguments = sys.argv[1:]
if arguments[0] == "--serial":
    launching.SERIAL_ITEMS = 10**9
    del arguments[0]
print(json.dumps([training_digests.train_and_digest(int(seed)) for seed in arguments]))
