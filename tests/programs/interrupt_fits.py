"""Interrupt five fits, of which the third takes the given number of rounds to a call; print what they return."""

import json
import os
import signal
import sys
import threading
import time

import numba
import numpy as np

from numba_rmsprop import Shared, minimize_many

SPINS = int(sys.argv[1])


@numba.njit
def downhill(x, row):
    i, begun, spins = row
    begun[int(i)] = 1
    total = 0
    if i >= 2:
        for k in range(spins[0]):
            total = (total * 31 + k) % 1000003
    return x[0] * x[0] if i < 2 else -x[0] + 1e-9 * (total % 2)


def interrupt():
    for _ in range(2 if SPINS > 1 else 1):
        while not begun[2] or (signal.getsignal(signal.SIGINT) is before and not sent):
            time.sleep(0.001)
        while sent and signal.getsignal(signal.SIGINT) is not before:
            time.sleep(0.001)
        sent.append(1)
        os.kill(os.getpid(), signal.SIGINT)


numba.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have had ignored
before, sent = signal.default_int_handler, []
begun, x0 = np.zeros(5), np.array([[0.0], [0.0], [0.0], [0.0], [0.0]])
data = np.arange(5.0), Shared(begun), Shared(np.array([1]))
options = {"learning_rate": 1e-3, "ftol": None}
minimize_many(downhill, x0, data, maxiter=1, **options)
begun[:] = 0
data[2].array[0] = SPINS
other = threading.Thread(target=interrupt, daemon=True)
other.start()
try:
    found = minimize_many(downhill, x0, data, maxiter=2**40, **options)
    told = [found.status.tolist(), np.isfinite(found.fun).tolist(), bool(found.x[2, 0] > 0), list(found.message)]
except KeyboardInterrupt:
    told = "KeyboardInterrupt"
print(json.dumps([told, signal.getsignal(signal.SIGINT) is before, begun.tolist()]), flush=True)
os._exit(0)
