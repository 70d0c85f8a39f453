"""Interrupt a call at any point at which Python looks for signals."""

import inspect
import os
import signal
import sys
import threading

import numpy as np
import scipy.sparse

import numba_rmsprop
from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.runtime.launching import launch_lock

PACKAGE = os.path.join(os.path.dirname(numba_rmsprop.__file__), "")  # a clone may lie in a folder of its name


KERNELS = os.path.join(PACKAGE, "kernels", "")


GRADIENTS = np.random.default_rng(0).standard_normal((6, 4))


def trained(**settings):
    """Return a run whose next step touches variables of every kind, also strided ones and one never seen before."""
    opt = RMSprop(0.1, **settings)
    strided = np.ones((6, 4, 2))[:, :2]
    variables = [np.ones((6, 4)), np.ones((6, 4)), np.ones(3), np.ones((6, 4), order="F"), strided]
    for t in range(3):
        opt.apply_gradients(gradients(variables, t))
    return opt, [*variables, np.ones(4)]


def gradients(variables, t):
    table, matrix, bias, dense, strided, *late = variables
    rows = np.array([t, 5, t])
    return [
        (IndexedSlices(GRADIENTS[:3], rows), table),
        (scipy.sparse.csr_array(GRADIENTS * (np.arange(6) == t)[:, np.newaxis]), matrix),
        (GRADIENTS[0, :3], bias),
        (GRADIENTS, dense),
        (IndexedSlices(GRADIENTS.reshape(6, 2, 2)[:3], rows), strided),
        *[(GRADIENTS[1], var) for var in late],
    ]


def interrupted_at(moment, call, *arguments, number=signal.SIGINT):
    """Call, with a SIGINT at the ``moment``-th chance; return whether there were as many chances.

    Python looks for signals when it enters a function and after a call.
    """
    left = moment

    def profile(frame, event, _):
        nonlocal left
        if event == "c_call":
            return  # it looks only after such a call
        # Numba reports kernels to profilers as if they were Python; and Python ignores what is raised while it closes
        # a generator.
        ours = frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_filename.startswith(KERNELS)
        if ours and not frame.f_code.co_flags & inspect.CO_GENERATOR:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                signal.raise_signal(number)

    try:
        sys.setprofile(profile)
        call(*arguments)
    except (KeyboardInterrupt, TimeoutError):
        return True
    finally:
        sys.setprofile(None)
    assert left > 0 or number != signal.SIGINT, "the interrupt was lost"
    return False


def lock_is_free():
    def take():
        if launch_lock.acquire(blocking=False):
            launch_lock.release()
            found.append(True)

    found = []
    other = threading.Thread(target=take)
    other.start()
    other.join()
    return found == [True]
