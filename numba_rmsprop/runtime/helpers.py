"""The threads of :mod:`~numba_rmsprop.kernels.thread_pool`: their memory, their start and their end."""

from __future__ import annotations

import atexit
import ctypes
import signal
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
from numba import int64

from ..kernels.jit import ONE_THREAD
from ..kernels.thread_pool import ACCOUNTS, BELL, KINDS, LINE, STOP, THREADS, serve, words
from .caller_warnings import warn
from .interrupts import Uninterrupted

AVAILABLE = sys.platform == "linux" and not ONE_THREAD
"""Other systems have no semaphores in memory of one's own, and take Numba's threads."""

SECONDS_TO_END = 1.0
"""How long the end of the process waits for the helpers."""


class Pool:
    """The memory that threads share, one of which is the caller; the others are helpers, unless Numba's threads come.

    Parameters
    ----------
    threads : int
        How many there are.
    helped : bool
        Start helpers.

    Attributes
    ----------
    address : int
        Of the pool's memory.
    accounts : memoryview
        The accounts of all kinds of jobs, four words each.
    """

    def __init__(self, threads: int, helped: bool) -> None:
        size = words(threads)
        self._memory = np.zeros(size + LINE, np.int64)
        first = -self._memory.ctypes.data // self._memory.itemsize % LINE  # where a line begins
        self.memory = self._memory[first : first + size]
        self.address = int(self.memory.ctypes.data)
        self.accounts = self.memory.data[ACCOUNTS : ACCOUNTS + KINDS * 4]
        self.memory[THREADS] = threads
        self._helpers: list[threading.Thread] = []
        if helped:
            self._start(threads)

    def _start(self, threads: int) -> None:
        self._libc = ctypes.CDLL(None)
        self._bell = ctypes.c_void_p(self.address + BELL * self.memory.itemsize)
        if self._libc.sem_init(self._bell, 0, 0):
            raise OSError('expected sem_init to make a semaphore; take set_threads("numba")')
        compile_helpers()  # here, and not on the threads
        for k in range(1, threads):
            name = f"numba_rmsprop helper {k}"
            helper = threading.Thread(target=_help, args=(self.address, k), name=name, daemon=True)
            try:
                helper.start()
            except RuntimeError as error:
                warn(f"only {k} of {threads} threads can work, since no more can be started ({error}); see ulimit -u")
                break
            self._helpers.append(helper)

    def stop(self) -> None:
        """Let the helpers end: at the end of the process, the code that they run may go before they do."""
        self.memory[STOP] = 1
        for _ in self._helpers:
            self._libc.sem_post(self._bell)
        for helper in self._helpers:
            helper.join(SECONDS_TO_END)


def compile_helpers() -> None:
    """Compile what helpers run."""
    compiled: Any = serve
    compiled.compile((int64, int64))


def _help(address: int, thread: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
    serve(address, thread)


@cache
def pool_of(threads: int, helped: bool) -> Pool:
    """Return the pool of some threads; its helpers are started at its first use."""
    with Uninterrupted():  # or else helpers might use the memory of a pool that nobody has
        pool = Pool(threads, helped)
        atexit.register(pool.stop)
        return pool
