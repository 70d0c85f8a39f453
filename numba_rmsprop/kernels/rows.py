"""One step on the rows that an indexed gradient touches.

First the duplicates are chained (:mod:`~numba_rmsprop.kernels.duplicates`). Then the workers go over the entries in
chunks, and step each row at its first entry, with the sum of all of them. So a row belongs to one worker, no atomics
are needed on it, and its arithmetic is the same at any number of threads; and the gradient is read in order.

Integers are cast to int64 where one function calls another: Numba compiles a function anew for a literal or an int32,
and each of these takes up to a second.

Arguments that travel together
------------------------------
state
    The variable and its slots, each of shape (rows, columns), or (rows,), or None: see
    :mod:`~numba_rmsprop.kernels.state`.
ages
    ``(clocks, floor, now)``: row ``r`` is current after step ``max(clocks[r], floor)``; ``now`` is this step's number.
    Clocks are relative to the variable's own first step, and >= 0 between launches.
history
    See :mod:`numba_rmsprop.kernels.skip_factors`. In lazy mode the floor is ``now``, and nobody reads it.
packed
    The numbers of the step: clipvalue and scale, and those of the rule. Of the dtype of the arithmetic.
entries
    ``(indices, values, sources, weights)``: int64, shape (n,); and (n, columns), or, with sources, (m, columns). See
    :mod:`numba_rmsprop.kernels.duplicates` for the last two.
links
    ``(seen, following, chains)``, see :mod:`numba_rmsprop.kernels.duplicates`.
scratch
    ``(heads, sums, counters, entered)``: int32, shape (workers, CHUNK), for the positions of a chunk's rows; (workers,
    columns), for the sum of a row's entries; int64, shape (workers, 8), see
    :mod:`~numba_rmsprop.kernels.work_stealing`; and (workers, columns), for what enters a row's mean square, or None
    where no slot has one number for each row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .aliased_access import is_given, load_grad, load_out, store_out
from .clipping import clip
from .duplicates import add_duplicates, mark_duplicates, source_of, unsigned
from .jit import Integer, compiled, compiled_inline, compiled_inside, inlined
from .lanes import LINE, across, clip_lanes, lanes_of, load_grad_lanes, load_out_lanes, store_out_lanes
from .parallel_loop import run_shares
from .prefetch import prefetch_item, prefetch_state
from .rmsprop import catch_up, catch_up_any, entering, is_plain, unpack, update, update_in_row, update_row, values_enter
from .skip_factors import factors_of
from .state import (
    lanes_of_state,
    load_state,
    load_state_lanes,
    noise_apart,
    noise_of,
    slots_of,
    store_row_state,
    store_state,
    store_state_lanes,
)
from .work_stealing import give_none_away, next_share

ROWS_AHEAD = 6
"""Prefetch distance, in rows: enough to cover a miss, few enough that none is evicted before its use."""

CHUNK, SMALL_CHUNK, CHUNKS_EACH = 256, 64, 64
"""Entries that a worker takes at a time: at most and at least, and what it aims at between. The most frequent rows come
first, all in a few chunks: small ones let the other workers take over what the one at work on these leaves. Larger ones
are interrupted less often: 65,536 different rows of 64 float16 took 13 % less time in chunks of 256 than of 64."""


@compiled_inline
def catch_up_elements(row: Integer, state: Any, factors: Any, noise: Any) -> None:
    """Catch up one row, of which any element may be infinite."""
    if state[0].shape[1] > 0:
        own = catch_up_any(factors, *load_state(state, row, 0))
        for j in range(state[0].shape[1]):
            store_state(state, row, j, catch_up_any(factors, *load_state(state, row, j)), noise)
        store_row_state(state, row, own, noise)


@compiled_inside
def _catch_up_elements(row: Integer, state: Any, factors: Any, noise: Any) -> None:
    catch_up_elements(row, state, factors, noise)  # not in line: nearly every row has plain factors


@compiled_inline
def _caught_up(factors: Any, *values: Any) -> Any:
    """Return values after the steps that ``factors``, which are plain, stand for; None stands for no steps."""
    if factors is None:
        return values
    return catch_up(factors, *values)


@compiled_inline
def _enter(grads: Any, i: Integer, scale: Any, clipvalue: Any, worker: Integer, entered: Any) -> Any:
    """Write a row's gradient, clipped and scaled, into ``entered[worker]``; return the mean of its squares.

    The order of the sum depends on nothing but the number of columns, so that a dense step has the bits of a sparse
    one: square ``j`` belongs to lane ``j % count``, and what is left over comes last. Each is divided before it is
    added, since the sum may be too large for a float where the mean is not.
    """
    columns, j = np.int64(grads.shape[1]), np.int64(0)
    line, count = lanes_of(LINE, grads)
    if not 0 < count <= columns:
        for k in range(columns):
            store_out(entered, worker, k, clip(load_grad(grads, i, k), clipvalue) * scale)
        return _mean_square(worker, entered)
    share = entered.dtype.type(1) / entered.dtype.type(columns)
    found = clip_lanes(load_grad_lanes(line, grads, i, j), clipvalue) * scale
    store_out_lanes(entered, worker, j, found)
    squares = found * found * share
    j += count
    while count <= columns - j:
        found = clip_lanes(load_grad_lanes(line, grads, i, j), clipvalue) * scale
        store_out_lanes(entered, worker, j, found)
        squares = squares + found * found * share
        j += count
    mean = across(squares)
    for k in range(j, columns):
        grad = clip(load_grad(grads, i, k), clipvalue) * scale
        store_out(entered, worker, k, grad)
        mean += grad * grad * share
    return mean


@compiled_inside
def _mean_square(worker: Integer, entered: Any) -> Any:
    """Return the mean of the squares of ``entered[worker]``, added up as in :func:`_enter`."""
    columns, j = np.int64(entered.shape[1]), np.int64(0)
    share, mean = entered.dtype.type(1) / entered.dtype.type(columns), entered.dtype.type(0)
    line, count = lanes_of(LINE, entered)
    if 0 < count <= columns:
        found = load_out_lanes(line, entered, worker, j)
        squares = found * found * share
        j += count
        while count <= columns - j:
            found = load_out_lanes(line, entered, worker, j)
            squares = squares + found * found * share
            j += count
        mean = across(squares)
    for k in range(j, columns):
        mean += load_out(entered, worker, k) * load_out(entered, worker, k) * share
    return mean


@compiled_inside
def _enter_with_values(row: Integer, state: Any, factors: Any, packed: Any, worker: Integer, entered: Any) -> Any:
    """Let the values of a row change what enters; return the mean of the squares."""
    numbers = unpack(packed)
    for j in range(entered.shape[1]):
        current = _caught_up(factors, *load_state(state, row, j))
        store_out(entered, worker, j, entering(load_out(entered, worker, j), numbers, *current))
    return _mean_square(worker, entered)


@compiled_inline
def step_elements(
    row: Integer,
    grads: Any,
    i: Integer,
    state: Any,
    factors: Any,
    scale: Any,
    packed: Any,
    worker: Integer,
    entered: Any,
) -> None:
    """Step one row with the gradient ``grads[i]`` times ``scale``, after the steps that plain ``factors`` stand for.

    ``factors`` is None where the row is current, and ``entered`` where no slot has one number for each row.
    """
    clipvalue, numbers, noise = packed[0], unpack(packed), noise_of(state, row)
    if entered is None:
        for j in range(grads.shape[1]):
            current = _caught_up(factors, *load_state(state, row, j))
            grad = clip(load_grad(grads, i, j), clipvalue) * scale
            store_state(state, row, j, update(grad, numbers, *current), noise)
    elif grads.shape[1] > 0:
        square = _enter(grads, i, scale, clipvalue, worker, entered)
        if values_enter(numbers):
            square = _enter_with_values(row, state, factors, packed, worker, entered)
        rate, own = update_row(square, numbers, *_caught_up(factors, *load_state(state, row, 0)))
        begin = np.int64(0)
        line, count = lanes_of_state(LINE, state)
        while 0 < count <= grads.shape[1] - begin:
            current = _caught_up(factors, *load_state_lanes(line, state, row, begin))
            found = load_out_lanes(line, entered, worker, begin)
            store_state_lanes(line, state, row, begin, update_in_row(found, rate, numbers, *current), noise)
            begin += count
        for k in range(begin, grads.shape[1]):
            current = _caught_up(factors, *load_state(state, row, k))
            store_state(state, row, k, update_in_row(load_out(entered, worker, k), rate, numbers, *current), noise)
        store_row_state(state, row, own, noise)


@compiled_inline
def step_row(
    row: Integer,
    grads: Any,
    i: Integer,
    state: Any,
    start: Integer,
    now: Integer,
    history: Any,
    packed: Any,
    worker: Integer,
    entered: Any,
) -> None:
    """Catch up one row from step ``start``, and step it with the gradient ``grads[i]``."""
    if start < now:
        factors = factors_of(start, now, history)
        if is_plain(factors, *slots_of(state)):
            step_elements(row, grads, i, state, factors, packed[1], packed, worker, entered)
            return
        _catch_up_elements(row, state, factors, noise_apart(noise_of(state, row)))
    step_elements(row, grads, i, state, None, packed[1], packed, worker, entered)


@inlined
def list_heads(worker: Integer, begin: Integer, end: Integer, following: Any, heads: Any) -> Integer:
    """Write the entries that are the first of their row into ``heads[worker]``; return how many there are."""
    count = np.int64(0)
    for i in range(begin, end):
        heads[unsigned(worker), unsigned(count)] = i
        count += following[unsigned(i)] >= 0
    return count


@inlined
def _step_chunk(
    worker: Integer,
    begin: Integer,
    end: Integer,
    entries: Any,
    state: Any,
    ages: Any,
    history: Any,
    packed: Any,
    links: Any,
    scratch: Any,
) -> None:
    indices, values, sources, weights = entries
    clocks, floor, now = ages
    _, following, chains = links
    heads, sums, _, entered = scratch
    count = list_heads(worker, begin, end, following, heads)
    for u in range(-ROWS_AHEAD, count):
        if u + ROWS_AHEAD < count:
            ahead = indices[unsigned(heads[unsigned(worker), unsigned(u + ROWS_AHEAD)])]
            prefetch_item(clocks, ahead)
            prefetch_state(state, ahead)
        if u < 0:
            continue
        i = unsigned(heads[unsigned(worker), unsigned(u)])
        row = unsigned(indices[i])
        clock: Integer = np.int64(clocks[row])
        grads, source = values, source_of(sources, i)
        if clock < 0 or is_given(weights):
            second = np.int64(-1 - clock if clock < 0 else -1)
            add_duplicates(worker, np.int64(i), second, entries, following, sums)
            grads, source = sums, np.int64(worker)
            if second >= 0:
                clock = np.int64(chains[unsigned(second), 1])
        start = clock if clock > floor else floor
        step_row(np.int64(row), grads, source, state, start, now, history, packed, worker, entered)
        clocks[row] = now + 1


@inlined
def chunk_of(n: Integer, workers: Integer) -> Integer:
    """Return how many entries to take at a time."""
    wanted = n // (CHUNKS_EACH * workers)
    if wanted > CHUNK:
        return CHUNK
    return wanted if wanted > SMALL_CHUNK else SMALL_CHUNK


@compiled_inside
def _step_share(
    worker: Integer,
    workers: Integer,
    entries: Any,
    state: Any,
    ages: Any,
    history: Any,
    packed: Any,
    links: Any,
    scratch: Any,
) -> None:
    """Step the chunks that one worker takes."""
    n = entries[0].size
    size = chunk_of(n, workers)
    chunks = -(-n // size)
    chunk = next_share(worker, workers, chunks, scratch[2])
    while chunk >= 0:
        begin = chunk * size
        end = begin + size if begin + size < n else n
        _step_chunk(worker, begin, end, entries, state, ages, history, packed, links, scratch)
        chunk = next_share(worker, workers, chunks, scratch[2])


@compiled
def step_rows(
    team: Any, entries: Any, state: Any, ages: Any, history: Any, packed: Any, links: Any, scratch: Any
) -> None:
    """Step the touched rows."""
    mark_duplicates(entries[0], ages[0], links[0], links[1], links[2])
    give_none_away(scratch[2])
    run_shares(_step_share, team, (entries, state, ages, history, packed, links, scratch))
