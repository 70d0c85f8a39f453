"""Keyed tables in tests: batches, and all that a table is."""

import numpy as np

from numba_rmsprop.keyed import Uniform

DRAW = Uniform(-1.0, 1.0, 3, seed=5)


def batch(step, n=40):
    """Return the keys and the gradients of a step."""
    rng = np.random.default_rng(step)
    return rng.zipf(1.4, n).astype(np.int64) * (1 - 2 * (step % 2)), rng.standard_normal((n, 3)).astype(np.float32)


def state_of(keyed):
    """Return all that a table is, but for rows that no key has."""
    own, keys, seen = keyed.optimizer.known.slots[0], keyed._map, keyed._seen
    rows, given = keys.rows_in_use(), keys.counts[0]
    assert keys.find(keys.row_keys[rows]).tolist() == rows.tolist()
    arrays = [
        *(keys.row_keys[rows], keys.touched[rows], keys.free, own.history.runs),
        *(keyed._var[rows], *(array[rows] for array in own.slots.values())),
        *(np.maximum(own.row_clocks()[rows], own.floor), seen.counters[seen.counters > 0]),
    ]
    numbers = int(given), keys.steps, keyed.iterations, own.steps, own.floor, seen.least, seen.counted, own.rho_product
    return [array.tobytes() for array in arrays], numbers
