"""Fork while another thread holds Numba's compiler lock; compile in the child, and print how it ended."""

import json
import os
import threading
import time

import numba

import numba_rmsprop  # noqa: F401 -- lets forks wait for the compiler

holds, forks = threading.Event(), threading.Event()


def hold_the_compiler():
    with numba.core.compiler_lock.global_compiler_lock:
        holds.set()
        forks.wait()
        time.sleep(0.2)  # for as long as it takes to get from forks.set() to the fork


thread = threading.Thread(target=hold_the_compiler)
thread.start()
holds.wait()
forks.set()
child = os.fork()
if child == 0:
    os._exit(numba.njit(lambda x: x - 1)(1))
print(json.dumps(os.waitpid(child, 0)[1]))
thread.join()
