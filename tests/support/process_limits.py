"""Limits of this process, its use of memory, and a step to take; for programs that limit themselves."""

import resource
from pathlib import Path

import numpy as np

from numba_rmsprop import IndexedSlices


def limit(kind, most):
    """Set a limit of this process, such as ``resource.RLIMIT_DATA``."""
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def data_in_use():
    """Return the bytes that count towards ``resource.RLIMIT_DATA``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def step(opt, table, rows):
    """Take a step with gradients of 1 for some rows."""
    opt.apply_gradients([(IndexedSlices(np.ones((len(rows), table.shape[1]), table.dtype), rows), table)])
