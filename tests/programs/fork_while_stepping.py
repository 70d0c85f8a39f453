"""Fork again and again while another thread takes steps; print how the children ended, and a digest."""

import json
import os
import threading

import numpy as np
from training_digests import in_threads, train_and_digest

from numba_rmsprop import RMSprop

opt, var, grad = RMSprop(0.01, momentum=0.9), np.ones(1_000_000, np.float32), np.ones(1_000_000, np.float32)
stop = threading.Event()


def keep_stepping():
    while not stop.is_set():
        opt.apply_gradients([(grad, var)])


def step_in_child():
    """Take a step; return whether all elements are equal, so that no step was left half done."""
    opt.apply_gradients([(grad, var)])
    rms = opt.get_slot(var, "rms")
    return (var == var[0]).all() and (rms == rms[0]).all()


def status_of_fork(succeeds):
    child = os.fork()
    if child == 0:
        os._exit(0 if succeeds() else 1)
    return os.waitpid(child, 0)[1]


digest = train_and_digest(0)
thread = threading.Thread(target=keep_stepping)
thread.start()
statuses = [status_of_fork(step_in_child) for _ in range(15)]
statuses.append(status_of_fork(lambda: in_threads(train_and_digest, [0]) == [digest]))
stop.set()
thread.join()
print(json.dumps([statuses, digest]))
