"""The moving averages of parameters in the place of the parameters, for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

SWAPPED_ROWS = 65_536
"""So many rows are exchanged at a time, so that no table has to fit into memory twice."""


@contextmanager
def exchanged(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let parameters hold their averages, and averages the parameters, until the context is left.

    An average of another dtype stays as it is, and the parameter, which has 16 bits, is copied meanwhile.
    """
    pairs = list(pairs)
    kept = [(parameter, parameter.detach().clone()) for parameter, average in pairs if not _alike(parameter, average)]
    for parameter, average in pairs:
        _exchange(parameter, average)
    try:
        yield
    finally:
        for parameter, average in pairs:
            if _alike(parameter, average):
                _exchange(parameter, average)
        for parameter, values in kept:
            parameter.detach().copy_(values)


def _alike(parameter: Tensor, average: Tensor) -> bool:
    return parameter.dtype is average.dtype


def _exchange(parameter: Tensor, average: Tensor) -> None:
    values = parameter.detach()
    if not _alike(parameter, average):
        values.copy_(average)
        return
    ours, theirs = (tensor.unsqueeze(0) if tensor.ndim == 0 else tensor for tensor in (values, average))
    for begin in range(0, len(ours), SWAPPED_ROWS):
        rows = slice(begin, begin + SWAPPED_ROWS)
        before = ours[rows].clone()
        ours[rows].copy_(theirs[rows])
        theirs[rows].copy_(before)
