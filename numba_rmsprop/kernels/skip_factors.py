"""Factors of a gap: the effect on a row of the steps that it has missed.

A skipped step has gradient 0 and so is a linear map of an element's value and slots; a gap is the product of such maps,
as factors (for RMSprop, :class:`~numba_rmsprop.kernels.rmsprop.Factors`). They depend on those numbers of a step alone
that the rule calls ``skipped``, which are kept as *runs*: row ``i`` of ``runs`` is ``(first step, *numbers)``, and it
holds until the next run starts. With constant hyperparameters there is one run, whatever the number of steps.

Three arrays answer for any gap, and travel as the tuple ``history``:

``table``, shape (factors, TABLE_GAPS), of the variable's dtype
    Column ``gap`` holds the factors of the latest ``gap`` steps: the common gaps are a look-up.
``runs``, shape (runs, 1 + numbers), float64
    As above.
``tree``, shape (2 * capacity, factors), float64
    A segment tree over the factors of whole, finished runs, so that a gap over n runs takes 2·log2(n) products.

All products are in float64; the result is rounded once to the variable's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import Integer, compiled, compiled_inside, inlined
from .rmsprop import Factors, skip_both, skip_none, skip_once
from .tuple_intrinsics import as_tuple, rounded_as, spread

TABLE_GAPS = 1024
"""Gaps below this are looked up. At 8 KB of float32 the two columns of the default variant stay in the L1 cache."""


@inlined
def repeated(run: Integer, steps: Integer, runs: Any) -> Factors:
    """Return the factors of ``steps`` steps of one run, by repeated squaring.

    A closed form of the drift divides by (shrink - momentum), which may be 0; squaring has no such case.
    """
    square = skip_once(run, runs)
    result = skip_none()
    while steps > 0:
        if steps & 1:
            result = skip_both(result, square)
        square = skip_both(square, square)
        steps >>= 1
    return result


@inlined
def _node(tree: Any, i: Integer) -> Factors:
    return Factors(*as_tuple(tree[i], skip_none()))


@compiled
def finish_run(run: Integer, end: Integer, runs: Any, tree: Any) -> None:
    """Enter run ``run``, which ended before step ``end``, into the tree."""
    i = tree.shape[0] // 2 + run
    spread(repeated(run, end - np.int64(runs[run, 0]), runs), tree[i])
    i //= 2
    while i > 0:
        spread(skip_both(_node(tree, 2 * i), _node(tree, 2 * i + 1)), tree[i])
        i //= 2


@compiled_inside
def factors_between(start: Integer, now: Integer, runs: Any, tree: Any) -> Factors:
    """Return the factors of the steps ``start`` to ``now - 1``, of which the last run is still going on."""
    last = runs.shape[0] - 1
    run, end = np.int64(0), last + 1
    while end - run > 1:
        middle = (run + end) // 2
        if runs[middle, 0] <= start:
            run = middle
        else:
            end = middle
    factors = skip_none()
    step = start
    while step < now:
        if run < last and step == runs[run, 0]:
            # As many whole runs as one node of the tree stands for.
            i = tree.shape[0] // 2 + run
            width = 1
            while i & 1 == 0 and run + 2 * width <= last:
                i //= 2
                width *= 2
            factors = skip_both(factors, _node(tree, i))
            run += width
        else:
            stop = np.int64(runs[run + 1, 0]) if run < last else now
            factors = skip_both(factors, repeated(run, stop - step, runs))
            run += 1
        step = np.int64(runs[run, 0]) if run <= last else now
    return factors


@compiled
def fill_table(now: Integer, table: Any, runs: Any) -> None:
    """Fill the table for gaps that end before step ``now``, walking back through the runs.

    Past the first run, where no gap can reach, the walk goes on with that run's numbers: with a single run the table
    is then the same at any ``now`` and need not be filled again.
    """
    run = runs.shape[0] - 1
    factors = skip_none()
    for gap in range(table.shape[1]):
        spread(factors, table[:, gap])
        while run > 0 and now - gap - 1 < runs[run, 0]:
            run -= 1
        factors = skip_both(skip_once(run, runs), factors)


@inlined
def factors_of(start: Integer, now: Integer, history: Any) -> Factors:
    """Return the factors of the steps ``start`` to ``now - 1`` in the variable's dtype."""
    table, runs, tree = history
    gap = now - start
    if gap < table.shape[1]:
        return Factors(*as_tuple(table[:, gap], skip_none()))
    return Factors(*rounded_as(factors_between(start, now, runs, tree), table))
