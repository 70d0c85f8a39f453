"""One step on the rows that an indexed gradient touches, and the catching up of rows.

Each worker owns the rows that hash to it and alone reads and writes them, so that no atomics are needed and a row's
arithmetic is the same at any number of threads. It goes over the indices twice: first to chain the duplicates of a
row together, in the order in which they came, then to step each row once with their sum. The marks of the first pass
are kept in the row clocks, which the step must read anyway: a clock of ``-1 - i`` says that the row's first
occurrence is at position ``i``.

Integers are cast to int64 where one function calls another: Numba compiles a function anew for a literal, an int32
or the unsigned index of a ``prange``, and each of these takes a second.

Arguments that travel together
------------------------------
state
    ``(var, rms, mg, momentum)``, each of shape (rows, columns) or None.
ages
    ``(clocks, floor, now)``: row ``r`` is current after step ``max(clocks[r], floor)``; ``now`` is this step's number.
    Clocks are relative to the variable's own first step, and >= 0 between launches.
history
    See :mod:`numba_rmsprop.kernels.gaps`; None in lazy mode, in which nothing is caught up.
links
    int32, shape (n, 4), scratch: for a position, its row's next duplicate, its row's last duplicate so far, the step
    after which its row is current, and the next position that is the first of its row. -1 ends a chain.
sums
    Shape (workers, columns), scratch: where the duplicates of a row are added up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .gaps import factors_of
from .jit import Integer, compiled, compiled_parallel
from .optional import load_element, store_element
from .prefetch import prefetch_item, prefetch_row
from .rule import catch_up, clip, unpack_rates, update

DUPLICATE, LAST, CURRENT, NEXT = 0, 1, 2, 3

CLOCKS_AHEAD = 16
ROWS_AHEAD = 6
"""How many rows ahead to prefetch: enough to cover a miss, few enough that none is evicted before its use."""


@compiled
def owner(row: Any, workers: Integer) -> Any:
    """Return which worker owns a row: a hash, since neighbouring rows are often equally hot."""
    hashed = (np.uint64(row) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    return np.int64((hashed * np.uint64(workers)) >> np.uint64(32))


@compiled
def prefetch_state(row: Integer, state: Any) -> None:
    """Prefetch one row of every array of the state."""
    var, rms, mg, momentum = state
    prefetch_row(row, var)
    prefetch_row(row, rms)
    prefetch_row(row, mg)
    prefetch_row(row, momentum)


@compiled
def step_row(
    row: Integer, grads: Any, i: Integer, state: Any, start: Integer, now: Integer, history: Any, rates: Any
) -> None:
    """Catch up one row from step ``start`` and step it with the gradient ``grads[i]``."""
    factors = None if history is None else factors_of(start, now, history)
    for j in range(grads.shape[1]):
        var, rms, mg, momentum = load_caught_up(state, row, j, factors)
        store(state, row, j, update(var, clip(grads[i, j], rates), rms, mg, momentum, rates))


@compiled
def load_caught_up(state: Any, row: Integer, j: Integer, factors: Any) -> Any:
    """Return one element's ``(var, rms, mg, momentum)``, caught up unless ``factors`` is None."""
    var, rms, mg, momentum = state
    element = var[row, j], rms[row, j], load_element(mg, row, j), load_element(momentum, row, j)
    if factors is None:
        return element
    return catch_up(element[0], element[1], element[2], element[3], factors)


@compiled
def store(state: Any, row: Integer, j: Integer, new: Any) -> None:
    """Write one element's ``(var, rms, mg, momentum)``."""
    var, rms, mg, momentum = state
    var[row, j] = new[0]
    rms[row, j] = new[1]
    store_element(mg, row, j, new[2])
    store_element(momentum, row, j, new[3])


@compiled
def chain_duplicates(worker: Integer, workers: Integer, indices: Any, ages: Any, links: Any) -> Integer:
    """Mark and chain the positions of the worker's rows; return the first position that is the first of its row."""
    clocks, floor, _ = ages
    first: Integer = np.int64(-1)
    latest: Integer = np.int64(-1)
    for i in range(indices.size):
        if i + CLOCKS_AHEAD < indices.size:
            prefetch_item(clocks, indices[i + CLOCKS_AHEAD])
        row = indices[i]
        if workers > 1 and owner(row, workers) != worker:
            continue
        clock = clocks[row]
        links[i, DUPLICATE] = -1
        if clock >= 0:
            clocks[row] = -1 - i
            links[i, LAST] = i
            links[i, CURRENT] = max(clock, floor)
            links[i, NEXT] = -1
            if latest < 0:
                first = i
            else:
                links[latest, NEXT] = i
            latest = i
        else:
            head = np.int64(-1 - clock)
            links[links[head, LAST], DUPLICATE] = i
            links[head, LAST] = i
    return first


@compiled
def add_duplicates(worker: Integer, i: Integer, values: Any, links: Any, sums: Any) -> None:
    """Add up, in ``sums[worker]``, the values of the row that occurs first at position ``i``, in order."""
    for j in range(values.shape[1]):
        sums[worker, j] = values[i, j]
    i = links[i, DUPLICATE]
    while i >= 0:
        for j in range(values.shape[1]):
            sums[worker, j] += values[i, j]
        i = links[i, DUPLICATE]


@compiled
def step_owned_rows(
    worker: Integer,
    workers: Integer,
    indices: Any,
    values: Any,
    state: Any,
    ages: Any,
    history: Any,
    rates: Any,
    links: Any,
    sums: Any,
) -> None:
    """Step the rows that one worker owns."""
    clocks, _, now = ages
    named = unpack_rates(rates)
    i = chain_duplicates(worker, workers, indices, ages, links)
    ahead = i
    for _ in range(ROWS_AHEAD):
        if ahead >= 0:
            prefetch_state(indices[ahead], state)
            ahead = links[ahead, NEXT]
    while i >= 0:
        if ahead >= 0:
            prefetch_state(indices[ahead], state)
            ahead = links[ahead, NEXT]
        row = indices[i]
        grads, source = values, i
        if links[i, DUPLICATE] >= 0:
            add_duplicates(worker, i, values, links, sums)
            grads, source = sums, worker
        step_row(row, grads, source, state, np.int64(links[i, CURRENT]), now, history, named)
        clocks[row] = now + 1
        i = links[i, NEXT]


@compiled
def step_rows_serial(
    indices: Any, values: Any, state: Any, ages: Any, history: Any, rates: Any, links: Any, sums: Any
) -> None:
    """Step the touched rows on the calling thread: a launch costs more than a few rows."""
    step_owned_rows(np.int64(0), np.int64(1), indices, values, state, ages, history, rates, links, sums)


@compiled_parallel
def step_rows(
    workers: Integer, indices: Any, values: Any, state: Any, ages: Any, history: Any, rates: Any, links: Any, sums: Any
) -> None:
    """Step the touched rows; ``indices`` is int64, shape (n,), and ``values`` (n, columns)."""
    for worker in prange(workers):
        step_owned_rows(np.int64(worker), workers, indices, values, state, ages, history, rates, links, sums)


@compiled
def any_outside(indices: Any, rows: Integer) -> bool:
    """Return whether an index lies outside [0, rows); without an early exit, so that LLVM vectorises it."""
    outside = 0
    for i in range(indices.size):
        outside |= (indices[i] < 0) | (indices[i] >= rows)
    return outside != 0
