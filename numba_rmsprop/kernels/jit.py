"""The sets of compiler options, in one place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
from numba import njit

Integer: TypeAlias = int | np.integer[Any]
"""Compiled functions take Python's integers and NumPy's alike."""

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a serial function."""
    return _compile(function, parallel=False)


def compiled_inline(function: Function) -> Function:
    """Compile a serial function that LLVM must inline: passing a state of arrays takes longer than a short row."""
    return _compile(function, parallel=False, forceinline=True)


def inlined(function: Function) -> Function:
    """Put a function's body where it is called, before types are known.

    It is then not compiled by itself, which would take 0.1 to 0.3 s each. But Numba drops no branch on ``argument is
    None`` in it, so a function with such a branch must be :func:`compiled_inline`.
    """
    return _compile(function, parallel=False, inline="always")


def compiled_parallel(function: Function) -> Function:
    """Compile a function whose ``prange`` loops run on all threads."""
    return _compile(function, parallel=True)


def compiled_sum(function: Function) -> Function:
    """Compile, to be inlined, a serial function whose sums LLVM may take in any order, and so vectorise.

    The order is then the compiler's, but it is the same at every call with as many terms.
    """
    return _compile(function, parallel=False, fastmath={"reassoc"}, forceinline=True)


def _compile(
    function: Function,
    *,
    parallel: bool,
    fastmath: bool | set[str] = False,
    forceinline: bool = False,
    inline: str = "never",
) -> Function:
    # error_model="numpy": a division that may raise keeps LLVM from vectorising the loop (15 times slower).
    # No fastmath by default: dense and sparse steps must round alike, and NaN must stay NaN.
    # _nrt=False, as for Numba's own functions that allocate nothing: counting references to the arrays, atomically,
    # at every call of a function that LLVM did not inline, took longer than the step on a row of 64.
    # Numba's cache key leaves the options out, so no function may be compiled twice with different ones.
    options: dict[str, Any] = {
        "error_model": "numpy",
        "nogil": True,
        "_nrt": False,
        "parallel": parallel,
        "fastmath": fastmath,
        "forceinline": forceinline,
        "inline": inline,
    }
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        warnings.warn(
            f"Numba finds no folder to cache compiled code in ({error}); every process will compile anew. "
            "Set NUMBA_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )
        return cast(Function, njit(cache=False, **options)(function))
