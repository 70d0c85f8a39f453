"""By how much clipping scales each gradient.

Clipping by value happens inside the kernels, element by element. Clipping by norm needs the whole gradient first:
its norm, after duplicates are summed and values clipped, gives one factor for the kernel to multiply by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .batches import Batch, Part
from .gradients import CSR, Dense, Gradient, Rows
from .kernels.csr import BLOCK_ROWS
from .kernels.norms import (
    BLOCK_LINES,
    TERMS,
    block_squares,
    csr_blocks_squares,
    csr_squares,
    dense_squares,
    line_squares,
    rows_squares,
    rows_squares_share,
)
from .kernels.rows import CHUNK
from .rates import StepRates
from .slots import Slots
from .threads import row_links, row_scratch, workers_for, worth_a_launch
from .variables import FloatArray


def norm_scales(
    parts: Sequence[Part],
    rates: StepRates,
    *,
    clipnorm: float | None,
    global_clipnorm: float | None,
) -> list[float]:
    """Return the factor for each gradient that leaves its norm, or that of all together, at most the limit.

    The factor is ``limit / max(norm, limit)``, as in tf.clip_by_norm and tf.clip_by_global_norm. A norm of NaN makes
    a factor of NaN.
    """
    squares = [squared_norm(gradient, own, rates) for gradient, own in parts]
    if clipnorm is not None:
        return [_scale(clipnorm, math.sqrt(square)) for square in squares]
    assert global_clipnorm is not None
    return [_scale(global_clipnorm, math.sqrt(sum(squares)))] * len(parts)


def _scale(limit: float, norm: float) -> float:
    # Written so that a NaN is not below the limit, and goes through.
    return 1.0 if norm <= limit else limit / norm


def squared_norm(gradient: Gradient, own: Slots | Batch, rates: StepRates) -> float:
    """Return the sum of squares of a gradient, duplicates summed and values clipped; the order of sums is fixed."""
    packed = rates.packed(gradient.values.dtype)
    if isinstance(gradient, Dense):
        return _dense(gradient.values, packed)
    assert isinstance(own, Slots), "a batch has dense gradients only"
    if isinstance(gradient, CSR):
        return _csr(gradient, math.prod(own.shape[1:]), packed)
    return _rows(gradient, own, packed)


def _rows(gradient: Rows, slots: Slots, rates: FloatArray) -> float:
    values, indices = gradient.values, gradient.indices
    workers = workers_for(values.size)
    partial = np.empty(-(-len(indices) // CHUNK))
    links = slots.seen(), *row_links(len(indices))
    scratch = row_scratch(workers, values)
    entries, clocks = (indices, values), slots.row_clocks()
    if workers == 1:
        rows_squares_share(0, 1, entries, clocks, rates, links, scratch, partial)
    else:
        rows_squares(workers, entries, clocks, rates, links, scratch, partial)
    return float(np.sum(partial))


def _dense(values: FloatArray, rates: FloatArray) -> float:
    flat = values.reshape(-1, order="A")
    lines = flat.size // TERMS
    partial = np.empty(-(-lines // BLOCK_LINES))
    table = flat[: lines * TERMS].reshape(lines, TERMS)
    if worth_a_launch(table.size):
        dense_squares(table, rates, partial)
    elif lines:
        block_squares(0, len(partial), table, rates, partial)
    return float(np.sum(partial)) + line_squares(flat[np.newaxis, lines * TERMS :], rates)


def _csr(gradient: CSR, columns: int, rates: FloatArray) -> float:
    workers = workers_for(gradient.values.size)
    sums = np.zeros((workers, columns), gradient.values.dtype)
    partial = np.empty(-(-(gradient.indptr.size - 1) // BLOCK_ROWS))
    matrix = gradient.indptr, gradient.indices, gradient.values
    if workers == 1:
        csr_blocks_squares(0, 1, matrix, rates, sums, partial)
    else:
        csr_squares(workers, matrix, rates, sums, partial)
    return float(np.sum(partial))
