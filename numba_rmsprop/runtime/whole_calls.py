"""One call at a time, and each takes effect as a whole or not at all, whatever else runs at the same time.

Other threads wait for the lock. But other code may also run on the thread of the call itself: signal handlers between
any two instructions of Python, callbacks of the garbage collector and of weak references, profilers. So a call has two
parts. In its *look*, it checks its arguments, and lists the kernels and assignments to be run. Its *commit* runs them
without any instruction of Python in between, or with signal handlers deferred. Each commit invalidates all looks before
it, and a call whose look is invalid looks again. Code that still runs in the middle of a commit may make no calls.

User code (hyperparameters that are callables, ``__array__`` of gradients) is called before the lock is taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from .interrupts import Call, Uninterrupted, call_in_one_go

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

launch_lock = threading.RLock()
"""The lock of all calls and launches: threads share the work of one launch at a time, and Numba's workqueue layer would
abort the process at two."""

# Names for the methods, so that there is no instruction at which a signal handler could run before they are called.
_take, _give = launch_lock.acquire, launch_lock.release
_ONCE = (True,)

ATTEMPTS = 100

_looks: set[object] = set()
"""Marks of the looks that are valid, since nothing was committed after them."""

_writing: list[bool] = []
"""A list with one item during a commit, and empty otherwise."""

_INVALIDATE_LOOKS: Call = (_looks.clear,)
_BEGIN: Call = (_writing.append, True)
_END: Call = (_writing.clear,)


def in_turn(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call a function while this thread holds the lock.

    A ``with`` statement could leave the lock held: in Python 3.14, a signal handler may raise after ``__enter__`` and
    before the body. Here a single instruction takes the lock and notes it for ``finally``.

    Raises
    ------
    RuntimeError
        If this thread is in the middle of a commit.
    """
    taken: list[bool] = []
    try:
        taken.extend(map(_take, _ONCE))
        if _writing:
            raise RuntimeError(
                "expected no call amid a step: a callback of the garbage collector or of a weak reference, or a "
                "profiler, has called in while arrays were being written; let it set a flag, and call after the step"
            )
        return function(*arguments)
    finally:
        if taken:
            _give()


def carry_out(look_at: Callable[[list[Call], *Arguments], bool | None], *arguments: *Arguments) -> bool:
    """Look and commit, and do so again if something else was committed in between; the caller holds the lock.

    Parameters
    ----------
    look_at : callable
        Called with a list, to which it adds the functions to be called, see :func:`commit`. It returns the argument
        ``held`` of :func:`commit`, or None if there is nothing to do.
    arguments : objects
        Further arguments of ``look_at``.

    Returns
    -------
    bool
        Whether anything was done.
    """
    calls = look()
    held = look_at(calls, *arguments)
    if held is None or commit(calls, held):
        return held is not None
    with Uninterrupted():  # otherwise a timer could interrupt each attempt
        for _ in range(ATTEMPTS):
            calls = look()
            held = look_at(calls, *arguments)
            if held is None or commit(calls):
                return held is not None
    raise RuntimeError(
        f"something has called in {ATTEMPTS} times while a call was being prepared, as a callback of the garbage "
        "collector may; expected one that calls less often"
    )


def look() -> list[Call]:
    """Return the beginning of a list of calls for :func:`commit`; the caller holds the lock."""
    sign = object()
    _looks.add(sign)
    return [(_looks.remove, sign), _INVALIDATE_LOOKS, _BEGIN]


def commit(calls: list[Call], held: bool = False) -> bool:
    """Make all calls with nothing else in between, or make none and return False if the look is no longer valid.

    Parameters
    ----------
    calls : list of tuples
        The list from :func:`look`, to which functions with their arguments were added. They must not fail, since
        nothing undoes the first ones.
    held : bool, default False
        Defer signal handlers, which takes some microseconds. It is needed if a call runs Python code, as a kernel does
        that is not compiled yet.
    """
    if held:
        with Uninterrupted():
            return commit(calls)
    calls.append(_END)
    try:
        call_in_one_go(calls)
    except KeyError as error:
        if error.args != calls[0][1:]:
            raise
        return False
    finally:
        _writing.clear()
    return True


class DisturbedError(RuntimeError):
    """Something was committed on this thread while a call was reading, so the call must begin again."""


def mark() -> object:
    """Return a mark of this moment for :func:`has_changed`."""
    sign = object()
    _looks.add(sign)
    return sign


def has_changed(sign: object) -> bool:
    """Return whether anything was committed since :func:`mark` returned ``sign``."""
    return sign not in _looks


def undisturbed(call: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call a function, and if it raises DisturbedError, call it again with signal handlers deferred."""
    try:
        return call(*arguments)
    except DisturbedError:
        with Uninterrupted():
            return call(*arguments)


def whole(read: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Return the result of a function during which nothing was committed; the caller holds the lock."""
    return undisturbed(_whole, read, *arguments)


def _whole(read: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    sign = mark()
    result = read(*arguments)
    check_undisturbed(sign)
    _looks.remove(sign)
    return result


def check_undisturbed(sign: object) -> None:
    """Raise DisturbedError if something was committed since :func:`mark` returned ``sign``."""
    if has_changed(sign):
        raise DisturbedError("a callback or a signal handler has changed the optimizer while it was read; call again")
