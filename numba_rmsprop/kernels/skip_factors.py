"""What the steps that a row has missed do to it: the factors of a gap.

A skipped step has gradient 0 and so is a linear map of ``(rms, momentum, var)``; a gap is the product of such maps
(:class:`~numba_rmsprop.kernels.rule.Factors`). They depend on the step's rho, momentum, shrink and outer rate alone,
which are kept as *runs*: row ``i`` of ``runs`` is ``(first step, rho, momentum, shrink, outer rate)``, and it holds
until the next run starts. With constant hyperparameters there is one run, whatever the number of steps.

Three arrays answer for any gap, and travel as the tuple ``history``:

``table``, shape (8, TABLE_GAPS), of the variable's dtype
    Column ``gap`` holds the factors of the latest ``gap`` steps: the common gaps are a look-up.
``runs``, shape (runs, 5), float64
    As above.
``tree``, shape (2 * capacity, 8), float64
    A segment tree over the factors of whole, finished runs, so that a gap over n runs takes 2·log2(n) products.

All products are in float64; the result is rounded once to the variable's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import Integer, compiled, compiled_inline, inlined
from .rule import Factors

TABLE_GAPS = 1024
"""Gaps below this are looked up. At 8 KB of float32 the two columns of the default variant stay in the L1 cache."""


@compiled_inline
def then(first: Any, second: Any) -> Factors:
    """Return the factors of ``first`` followed by ``second``."""
    # Either of two signs that are 0 or 1, or NaN; and a value that was infinite before is NaN after a turn.
    either = first.drift_sign + second.drift_sign - first.drift_sign * second.drift_sign
    return Factors(
        first.rms * second.rms,
        first.momentum * second.momentum,
        first.var * second.var,
        second.var * first.drift + second.drift * first.momentum,
        first.rms_sign * second.rms_sign,
        first.momentum_sign * second.momentum_sign,
        first.var_sign * second.var_sign,
        either if first.drift_sign == 0 or second.var_sign > 0 else np.nan,
    )


@compiled_inline
def nothing() -> Factors:
    """Return the factors of no step."""
    return Factors(1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0)


@compiled_inline
def _once(run: Integer, runs: Any) -> Factors:
    """Return the factors of one step of a run."""
    rho, momentum, shrink, outer_rate = runs[run, 1], runs[run, 2], runs[run, 3], runs[run, 4]
    drift_sign = 1.0 if momentum * outer_rate > 0 else np.nan
    if momentum == 1 and outer_rate == 0:  # a step that goes without the momentum
        drift_sign = 0.0
    return Factors(
        rho,
        momentum,
        shrink,
        momentum * outer_rate,
        np.sign(rho),
        np.sign(momentum),
        np.sign(shrink),
        drift_sign,
    )


@inlined
def repeated(run: Integer, steps: Integer, runs: Any) -> Factors:
    """Return the factors of ``steps`` steps of one run, by repeated squaring.

    A closed form of the drift divides by (shrink - momentum), which may be 0; squaring has no such case.
    """
    square = _once(run, runs)
    result = nothing()
    while steps > 0:
        if steps & 1:
            result = then(result, square)
        square = then(square, square)
        steps >>= 1
    return result


@inlined
def _node(tree: Any, i: Integer) -> Factors:
    node = tree[i]
    return Factors(node[0], node[1], node[2], node[3], node[4], node[5], node[6], node[7])


@inlined
def _set_node(tree: Any, i: Integer, factors: Any) -> None:
    for k, factor in enumerate(factors):
        tree[i, k] = factor


@compiled
def finish_run(run: Integer, end: Integer, runs: Any, tree: Any) -> None:
    """Enter run ``run``, which ended before step ``end``, into the tree."""
    i = tree.shape[0] // 2 + run
    _set_node(tree, i, repeated(run, end - np.int64(runs[run, 0]), runs))
    i //= 2
    while i > 0:
        _set_node(tree, i, then(_node(tree, 2 * i), _node(tree, 2 * i + 1)))
        i //= 2


@compiled
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
    factors = nothing()
    step = start
    while step < now:
        if run < last and step == runs[run, 0]:
            # As many whole runs as one node of the tree stands for.
            i = tree.shape[0] // 2 + run
            width = 1
            while i & 1 == 0 and run + 2 * width <= last:
                i //= 2
                width *= 2
            factors = then(factors, _node(tree, i))
            run += width
        else:
            stop = np.int64(runs[run + 1, 0]) if run < last else now
            factors = then(factors, repeated(run, stop - step, runs))
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
    factors = nothing()
    for gap in range(table.shape[1]):
        for k, factor in enumerate(factors):
            table[k, gap] = factor
        while run > 0 and now - gap - 1 < runs[run, 0]:
            run -= 1
        factors = then(_once(run, runs), factors)


@inlined
def factors_of(start: Integer, now: Integer, history: Any) -> Factors:
    """Return the factors of the steps ``start`` to ``now - 1`` in the variable's dtype."""
    table, runs, tree = history
    gap = now - start
    if gap < table.shape[1]:
        return Factors(
            *(
                table[0, gap],
                table[1, gap],
                table[2, gap],
                table[3, gap],
                table[4, gap],
                table[5, gap],
                table[6, gap],
                table[7, gap],
            )
        )
    long = factors_between(start, now, runs, tree)
    kind = table.dtype.type
    return Factors(
        kind(long.rms),
        kind(long.momentum),
        kind(long.var),
        kind(long.drift),
        kind(long.rms_sign),
        kind(long.momentum_sign),
        kind(long.var_sign),
        kind(long.drift_sign),
    )
