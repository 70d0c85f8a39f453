"""What a call comes to that has the same variables as the one before, which is to say nearly every call."""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from .batches import Batch
from .kernels.arrays import (
    ALIGNED,
    AXES,
    CONTIGUOUS,
    DATA,
    DTYPE,
    FLAGS,
    KIND,
    KIND_MASK,
    LENGTHS,
    SHAPE,
    WRITEABLE,
    collect_addresses,
)
from .notices import warn
from .slots import Slots
from .variables import Occupied

HEADER = object.__basicsize__


@cache
def layout_is_known() -> bool:
    """Return whether array objects are laid out as :mod:`numba_rmsprop.kernels.arrays` expects.

    >>> layout_is_known()
    True
    """
    probe = np.zeros((2, 3), np.float32)
    fields = id(probe) + HEADER

    def number(address: int, kind: Any = ctypes.c_int64) -> int:
        return int(kind.from_address(address).value)

    flags = CONTIGUOUS | ALIGNED | WRITEABLE
    known = (
        number(fields - 8) == id(np.ndarray)
        and number(fields + DATA) == probe.ctypes.data
        and number(fields + AXES, ctypes.c_int32) == probe.ndim
        and (ctypes.c_int64 * 2).from_address(number(fields + SHAPE))[:] == [2, 3]
        and number(fields + DTYPE) == id(probe.dtype)
        and number(fields + FLAGS, ctypes.c_int32) & flags == flags
        and _kind(probe.dtype).to_bytes(8, "little")[:3] == b"ff="
    )
    if not known:
        warn(
            f"NumPy {np.__version__} lays out its arrays otherwise than expected, so each call takes the longer way "
            "through Python, some microseconds for each variable; please report the version",
            RuntimeWarning,
        )
    return known


def _kind(dtype: np.dtype[Any]) -> int:
    return ctypes.c_int64.from_address(id(dtype) + HEADER + KIND).value & KIND_MASK


class Plan:
    """The variables of a call, and what takes their steps.

    Parameters
    ----------
    found : list of Slots
        The variables of the call, all registered, in its order.
    occupied : Occupied
        The memory of all variables and slots.
    """

    def __init__(self, found: list[Slots], occupied: Occupied) -> None:
        dtype = next((own.dtype for own in found if own.small), np.dtype(np.float32))
        members = [own for own in found if own.small and own.dtype == dtype]
        self.found = found
        self.batch = Batch(members) if members else None
        numbers = {own: number for number, own in enumerate(members)}
        self.rest = [(k, own) for k, own in enumerate(found) if own not in numbers]
        known = np.zeros((len(found), LENGTHS + max(own.var.ndim for own in found)), np.int64)
        for k, own in enumerate(found):
            var = own.var
            known[k, : LENGTHS + var.ndim] = (
                *(id(var), var.ctypes.data, var.nbytes, numbers.get(own, -1), var.ndim),
                *var.shape,
            )
        addresses = np.empty((0, 5), np.int64) if self.batch is None else self.batch.addresses
        self._expected = known, occupied.array, HEADER, id(np.ndarray), _kind(dtype), addresses

    def fits(self, pairs: list[Any]) -> bool:
        """Return whether a call has these variables, unchanged, and for small ones gradients that a batch can read.

        The batch then knows where they are.
        """
        n = len(self.found)
        if len(pairs) != n:
            return False
        if n == 1 and self.batch is None:
            return self._fits_alone(pairs[0])
        try:
            if set(map(len, pairs)) != {2} or any(pairs[k][0] is None for k, _ in self.rest):
                return False
            objects = np.fromiter(map(id, chain.from_iterable(pairs)), np.int64, 2 * n)
        except (KeyError, TypeError):  # something is no pair
            return False
        return bool(collect_addresses(objects, *self._expected))

    def _fits_alone(self, pair: Any) -> bool:
        """Return the same for a call with one variable that is not small, such as a table."""
        own = self.found[0]
        return (
            type(pair) is tuple
            and len(pair) == 2
            and pair[1] is own.var
            and pair[0] is not None
            and own.var.flags.writeable
            and own.var.shape == own.shape
        )
