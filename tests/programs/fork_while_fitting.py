"""Fit in forked processes, before and while another thread fits; print their exit statuses."""

import json
import os
import threading
import warnings

from small_fits import problem, valley

from numba_rmsprop import minimize_many

warnings.simplefilter("ignore")  # of forks where there are threads


def digest():
    return minimize_many(valley, *problem(20, 3), jac="complex", maxiter=100).x.tobytes()


def in_child():
    child = os.fork()
    if child == 0:
        os._exit(0 if digest() == expected else 1)
    return os.waitpid(child, 0)[1]


def keep_fitting():
    while not over.is_set():
        digest()


expected, over = digest(), threading.Event()
statuses = [in_child()]
other = threading.Thread(target=keep_fitting)
other.start()
statuses += [in_child() for _ in range(5)]
over.set()
other.join()
print(json.dumps([*statuses, digest() == expected]))
