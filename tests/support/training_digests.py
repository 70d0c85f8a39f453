"""A training with every kind of step, and digests of its results, to compare threads and processes."""

import hashlib
import threading

import numba
import numpy as np
import scipy.sparse

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.runtime import launching

LAUNCHED = launching.SERIAL_ITEMS
SLOTS = ("rms", "momentum")
SHAPES = (20_000,), (4_500,), (4_500,), (2_000, 8), (2_000, 8)
"""One variable alone, two small ones that are stepped together, and tables for rows and CSR, all large enough for a
parallel launch."""


def make_optimizer():
    return RMSprop(0.01, momentum=0.9, epsilon=1e-3, weight_decay=0.01, global_clipnorm=0.3)


def train(opt, seed):
    """Take dense, indexed and CSR steps, gather in between, and flush; return the variables and the gathered rows."""
    rng = np.random.default_rng(seed)
    variables = [np.ones(shape, np.float32) for shape in SHAPES]
    rows = variables[3]
    gathered = []
    for _ in range(3):
        indices = np.minimum(rng.zipf(1.3, len(rows)) - 1, len(rows) - 1)
        grads = [rng.standard_normal(shape, np.float32) for shape in SHAPES]
        grads[3] = IndexedSlices(grads[3], indices)
        grads[4] = scipy.sparse.csr_array(grads[4] * (grads[4] > -0.3))
        assert grads[4].nnz > LAUNCHED
        opt.apply_gradients(list(zip(grads, variables, strict=True)))
        gathered.append(opt.gather(rows, indices))
    opt.apply_gradients([(np.ones_like(rows), rows)])  # which needs every row
    return [*variables, *gathered]


def digest(opt, arrays):
    """Return a digest of the results of :func:`train` and of the slots."""
    slots = [opt.get_slot(var, name) for var in arrays[: len(SHAPES)] for name in SLOTS]
    return hashlib.sha256(b"".join(array.tobytes() for array in [*arrays, *slots])).hexdigest()


def train_and_digest(seed):
    opt = make_optimizer()
    return digest(opt, train(opt, seed))


def layer_in_use():
    """Return which threads have worked: Numba's threading layer, or "helpers" where it has started none."""
    try:
        return numba.threading_layer()
    except ValueError:
        return "helpers"


def in_threads(function, seeds):
    """Call ``function`` with each seed, in a Python thread of its own; return the results."""
    results = {}
    workers = [threading.Thread(target=lambda seed=seed: results.update({seed: function(seed)})) for seed in seeds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [results.get(seed) for seed in seeds]
