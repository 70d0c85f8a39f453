"""The sets of compiler options, in one place."""

from __future__ import annotations

import pickle
import secrets
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.sigutils import normalize_signature

Integer: TypeAlias = int | np.integer[Any]
"""Compiled functions take Python's integers and NumPy's alike."""

Function = TypeVar("Function", bound=Callable[..., Any])

UNUSABLE = (OSError, EOFError, pickle.UnpicklingError)
"""What comes of a cache that vanished or became read-only, of a full disk, or of a file that was cut short."""

_warned = False


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


def compiled_for_functions(function: Function) -> Function:
    """Compile a serial function that is handed functions, for each of which it is compiled anew.

    Nothing is kept on disk: Numba's cache would take the functions of another process for new ones, and grow. Only
    compiled code can call it: what translates long lists of arguments from Python and from C took a quarter of the
    time to compile.
    """
    return _compile(function, parallel=False, cached=False, no_cfunc_wrapper=True, no_cpython_wrapper=True)


def compiled_loop_for_functions(function: Function) -> Function:
    """Compile the same to be called from Python."""
    return _compile(function, parallel=False, cached=False, no_cfunc_wrapper=True)


def _compile(
    function: Function,
    *,
    parallel: bool,
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
    # With NUMBA_BOUNDSCHECK=1 all runs on the calling thread: what a prange loop raises on another one is lost.
    options: dict[str, Any] = {
        "error_model": "numpy",
        "nogil": True,
        "_nrt": False,
        "parallel": parallel and not numba.config.BOUNDSCHECK,  # type: ignore[attr-defined]
        "forceinline": forceinline,
        "inline": inline,
        **others,
    }
    dispatcher: Any = numba.njit(**options)(function)
    if not cached:
        return cast(Function, dispatcher)
    try:
        dispatcher._cache = _Cache(function)  # in place of what cache=True would put there
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        _warn_once(str(error))
    return cast(Function, dispatcher)


class _Cache(FunctionCache):
    """Numba's cache of a function, without which a call goes on.

    Numba reads and writes its files when a function is first called, which may be amid a step. It numbers them, so that
    processes which compile one function for different types at the same time take the same name, and the index can then
    lead to code for other types, which crashes or computes nonsense.
    """

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(signature, target_context)
            if found is None or found.signature.args == tuple(normalize_signature(signature)[0]):
                return found
            self.flush()  # an index of before the names below: two signatures would go on to share a file
        except UNUSABLE as error:
            _warn_once(f"{self.cache_path}: {error!r}")
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        # Anew each time, since forked processes would share it.
        self._cache_file._data_name_pattern = f"{self._impl.filename_base}.{{number:d}}.{secrets.token_hex(8)}.nbc"
        try:
            super().save_overload(signature, compiled)
        except UNUSABLE as error:
            _warn_once(f"{self.cache_path}: {error!r}")


def _warn_once(reason: str) -> None:
    """Warn of a cache that does not work: once, and not for each of some fifty functions."""
    global _warned
    if not _warned:
        _warned = True
        message = (
            f"Numba cannot keep compiled code for later processes, which will compile anew ({reason}). "
            "Set NUMBA_CACHE_DIR to a writable folder."
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # where warnings are errors, this one must not cut a step in two
            print(message, file=sys.stderr)
