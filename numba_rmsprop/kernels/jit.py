"""The sets of compiler options, in one place."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numba.extending
import numpy as np

from .numba_cache import keep_on_disk

ONE_THREAD = bool(numba.config.DISABLE_JIT or numba.config.BOUNDSCHECK)  # type: ignore[attr-defined]
"""With NUMBA_BOUNDSCHECK=1, too, all runs on the calling thread: what a loop raises on another one is lost."""

Integer: TypeAlias = int | np.integer[Any]
"""Compiled functions take Python's integers and NumPy's alike."""

intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.extending.intrinsic
"""Without the types of arguments, since Numba adds the first one at each call."""

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a serial function."""
    return _compile(function)


def compiled_inside(function: Function) -> Function:
    """Compile a function that only compiled code calls: what translates arguments from Python takes a while, too.

    Numba does not notice that it is missing: a call from Python would crash.
    """
    return _compile(function, no_cpython_wrapper=True)


def compiled_inline(function: Function) -> Function:
    """Compile the same for LLVM to inline: passing a state of arrays takes longer than a short row."""
    return _compile(function, no_cpython_wrapper=True, forceinline=True)


def inlined(function: Function) -> Function:
    """Put a function's body where it is called, before types are known.

    It is then not compiled by itself, which would take 0.1 to 0.3 s each. But Numba drops no branch on ``argument is
    None`` in it, so a function with such a branch must be :func:`compiled_inline`.
    """
    return _compile(function, inline="always")


def compiled_parallel(function: Function) -> Function:
    """Compile a function whose ``prange`` loops run on all threads."""
    return _compile(function, parallel=True)


def compiled_for_functions(function: Function) -> Function:
    """Compile a serial function that is handed functions, for each of which it is compiled anew.

    Nothing is kept on disk: Numba's cache would take the functions of another process for new ones, and grow. Only
    compiled code can call it: what translates long lists of arguments from Python and from C took a quarter of the
    time to compile.
    """
    return _compile(function, cached=False, no_cpython_wrapper=True)


def compiled_loop_for_functions(function: Function) -> Function:
    """Compile the same to be called from Python."""
    return _compile(function, cached=False)


def python_function(kernel: Any) -> FunctionType | None:
    """Return the function of which one of the decorators here has made a kernel; None for anything else."""
    found = getattr(kernel, "py_func", kernel)
    return found if isinstance(found, FunctionType) else None


def compiled_as(kernel: Any, function: FunctionType, *, on_disk: bool) -> Any:
    """Compile a function with the options of a kernel, and keep it on the disk, or not."""
    if not hasattr(kernel, "targetoptions"):
        return function
    dispatcher = numba.jit(**kernel.targetoptions)(function)
    if on_disk:
        keep_on_disk(dispatcher, function)
    return dispatcher


def _compile(
    function: Function,
    *,
    parallel: bool = False,
    forceinline: bool = False,
    inline: str = "never",
    cached: bool = True,
    **others: bool,
) -> Function:
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return function
    # error_model="numpy": a division that may raise keeps LLVM from vectorising the loop (15 times slower).
    # No fastmath: dense and sparse steps must round alike, and NaN must stay NaN.
    # _nrt=False, as for Numba's own functions that allocate nothing: counting references to the arrays, atomically,
    # at every call of a function that LLVM did not inline, took longer than the step on a row of 64.
    # Numba's cache key leaves the options out, so no function may be compiled twice with different ones.
    options: dict[str, Any] = {
        "error_model": "numpy",
        "nogil": True,
        "_nrt": False,
        "parallel": parallel,
        "forceinline": forceinline,
        "inline": inline,
        "no_cfunc_wrapper": True,
        **others,
    }
    dispatcher: Any = numba.njit(**options)(function)
    if not cached:
        return cast(Function, dispatcher)
    keep_on_disk(dispatcher, function)
    return cast(Function, dispatcher)
