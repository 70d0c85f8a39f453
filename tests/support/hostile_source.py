"""Random choices for hostile calls, and checks that a refused call has changed nothing."""

from __future__ import annotations

import contextlib
import os
import traceback
import tracemalloc
import warnings

import numba
import numpy as np
from optimizer_internals import all_slots, has_marked_rows

from numba_rmsprop import schedules

REFUSALS = (TypeError, ValueError, IndexError, FloatingPointError, UserWarning, RuntimeWarning)
NUMBERS = (0.0, -0.0, 1.0, -1.5, 0.1, 1e-3, 1e-30, 5e-324, 1e30, 1e300, -1e300, np.inf, -np.inf, np.nan)
INTEGERS = (0, 1, -1, 2, 3, 7, 63, 64, 127, 1024, -(2**31), 2**31 - 1, 2**31, 2**32, 2**53, -(2**63), 2**63 - 1)
DTYPES = ("f4", "f8", "i4", "i8", "u1", "u8", "f2", "g", "c8", "?", ">f4", "O", "S3", "M8[s]")
WORDS = (
    "",
    "rms",
    "momentum",
    "nan",
    "exact",
    "lazy",
    "RMSprop",
    "function",
    "__doc__",
    "np",
    "math",
    "abc",
    *dir(schedules),
)
MEMORY_LIMIT = 100_000_000
"""Bytes; no call on the few elements here needs so many."""


class Source:
    """Choices, each made by calling ``integer(low, high)``."""

    def __init__(self, integer):
        self.integer = integer

    def flag(self):
        return bool(self.integer(0, 1))

    def rarely(self, one_in=8):
        # a fuzzer without bytes left, and Hypothesis when it shrinks, choose 0
        return self.integer(0, one_in - 1) == one_in - 1

    def choose(self, options):
        options = tuple(options)
        return options[self.integer(0, len(options) - 1)]

    def number(self):
        return self.choose(NUMBERS) if self.rarely(4) else self.integer(-16, 16) / 8

    def any_integer(self):
        return self.choose(INTEGERS) if self.rarely(4) else self.integer(-2, 8)

    def length(self, most):
        return self.integer(0, most)

    def shape(self):
        return tuple(self.length(5) for _ in range(self.integer(0, 3)))

    def dtype(self):
        return np.dtype(self.choose(DTYPES)) if self.rarely() else np.dtype(self.choose(DTYPES[:2]))

    def array(self, shape, dtype):
        """Return an array of a few different values, in some memory layout."""
        numbers = [self.number() for _ in range(4)]
        try:
            array = np.resize(np.array(numbers, dtype), shape)
        except (OverflowError, TypeError, ValueError):  # infinity is no integer, and a number no date
            array = np.zeros(shape, dtype)
        return self.arranged(array)

    def arranged(self, array):
        how = self.integer(0, 4)
        if how == 1:
            return np.asfortranarray(array)
        if how == 2 and array.ndim:
            return np.repeat(array, 2, axis=-1)[..., ::2]
        if how == 3 and array.ndim:
            return np.flip(np.flip(array).copy())
        if how == 4 and not array.dtype.hasobject:
            raw = np.zeros(array.nbytes + 1, np.uint8)
            shifted = np.ndarray(array.shape, array.dtype, raw[1:])
            shifted[...] = array
            return shifted
        return array


def is_one_of_ours(error):
    """Return whether a check has raised an error, and not an access out of bounds in a kernel."""
    inside = any(f"{os.sep}kernels{os.sep}" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return not inside and (not isinstance(error, IndexError) or "indices[" in str(error))


def is_refused(call, memory, errors):
    """Make a call; return whether it was refused, which must leave the result of ``memory()`` as it was."""
    before, refusal = memory(), None
    try:
        call()
    except errors as error:
        refusal = error
    if refusal is None:
        return False
    if not is_one_of_ours(refusal):
        raise AssertionError("raised by no check") from refusal
    if memory() != before:
        raise AssertionError("a refused call has written") from refusal
    return True


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT, f"{peak} bytes allocated"


@contextlib.contextmanager
def numerics(source):
    """Turn warnings and floating-point errors into exceptions at times, as programs may."""
    # as plain Python, kernels would raise them too
    strict = source.rarely(4) and not numba.config.DISABLE_JIT
    with warnings.catch_warnings(), np.errstate(all="raise" if strict else "ignore"):
        warnings.simplefilter("error" if strict else "ignore")
        yield


def check_marks(opt):
    """Each call must remove the marks by which kernels look for duplicates."""
    assert not any(has_marked_rows(opt, i) for i in range(len(all_slots(opt))))
