"""Numba's cache of compiled functions on the disk, which is not documented: the one file that reaches into it.

The gain: processes that compile the same function for different types at the same time cannot get each other's code,
and a cache that cannot be read or written costs a warning and not the step. Where Numba's cache is not as expected,
its own is taken as it is.
"""

from __future__ import annotations

import logging
import pickle
import secrets
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numba.core.caching as caching
from numba.core import sigutils

FunctionCache: Any = getattr(caching, "FunctionCache", object)
IS_AS_EXPECTED = hasattr(FunctionCache, "load_overload") and hasattr(FunctionCache, "save_overload")

UNUSABLE = (OSError, EOFError, pickle.UnpicklingError)
"""Errors of a cache that has vanished or become read-only, of a full disk, and of a file that was cut short."""

SLOW = 1.0
"""Seconds after which a compilation is told of."""

_told = _warned = False


def keep_on_disk(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Let a dispatcher of Numba's keep what it compiles for later processes."""
    try:
        dispatcher.enable_caching()
        if IS_AS_EXPECTED and hasattr(dispatcher, "_cache"):
            dispatcher._cache = _Cache(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        _warn_once(str(error))


class _Cache(FunctionCache):  # type: ignore[misc] # its type is not known
    """Numba's cache of a function, without which a call goes on.

    Numba reads and writes its files when a function is first called, which may be amid a step. It numbers them, so that
    processes which compile one function for different types at the same time take the same name, and the index can then
    lead to code for other types, which crashes or computes nonsense.
    """

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        self._began = time.monotonic()
        try:
            found = super().load_overload(signature, target_context)
            if found is None or found.signature.args == tuple(sigutils.normalize_signature(signature)[0]):
                return found
            self.flush()  # an index of before the names below: two signatures would go on to share a file
        except UNUSABLE as error:
            _warn_once(f"{self.cache_path}: {error!r}")
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        tell_if_slow(self._began, f"It is kept in {self.cache_path}; python -m numba_rmsprop.compile does it ahead.")
        # Anew each time, since forked processes would share it.
        self._cache_file._data_name_pattern = f"{self._impl.filename_base}.{{number:d}}.{secrets.token_hex(8)}.nbc"
        try:
            super().save_overload(signature, compiled)
        except UNUSABLE as error:
            _warn_once(f"{self.cache_path}: {error!r}")


def tell_if_slow(began: float, kept: str) -> None:
    """Say once why a process takes so long, if a compilation that began at a time took more than a second."""
    global _told
    if not _told and time.monotonic() - began > SLOW:
        _told = True
        logging.getLogger("numba_rmsprop").warning(
            "numba_rmsprop: the first calls are compiled, which takes some seconds. %s This line goes with "
            'logging.getLogger("numba_rmsprop").setLevel("ERROR").',
            kept,
        )


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
