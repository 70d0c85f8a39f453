"""One call at a time, and each whole or not begun, whatever else runs amid it.

Other threads wait for the lock. On the thread of a call, too, other code may run: signal handlers (between any two of
Python's instructions), callbacks of the garbage collector and of weak references, profilers. So a call *looks* first:
it checks its arguments, and lists the kernels and assignments that it comes to. Then it *commits* them: between two of
Python's instructions, or with signal handlers held off. A commit makes all looks before it worthless, and a call whose
look is worthless looks again. What runs amid a commit all the same is refused.

What is the user's (hyperparameters that are callables, ``__array__`` of gradients) is called before the lock is taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from .interrupts import Call, Uninterrupted, call_in_one_go

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

launch_lock = threading.RLock()
"""Held during every launch, too: Numba's workqueue layer aborts the process when two threads launch at once."""

# Bound once, so that between `try` and the call there is nothing at which a signal handler could run.
_take, _give = launch_lock.acquire, launch_lock.release
_ONCE = (True,)

_looks: set[object] = set()
"""Calls that have looked, and since when nothing was committed."""

_writing: list[bool] = []
"""Not empty during a commit."""


def in_turn(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function while no other thread is in its turn.

    A ``with`` statement could leave the lock held: a signal handler may raise after ``__enter__`` and before the body
    (Python 3.14). Here the lock is taken, and that noted, within one instruction, of which ``finally`` knows.

    Raises
    ------
    RuntimeError
        If this thread is amid a commit.
    """
    taken: list[bool] = []
    try:
        taken.extend(map(_take, _ONCE))
        if _writing:
            raise RuntimeError(
                "expected no call amid a step: a callback of the garbage collector or of a weak reference, or a "
                "profiler, has called in while arrays were being written; let it set a flag, and call after the step"
            )
        return function(*args, **kwargs)
    finally:
        if taken:
            _give()


def look() -> object:
    """Return what :func:`commit` takes as a sign that nothing was committed since. For a call in its turn."""
    mark = object()
    _looks.add(mark)
    return mark


def whole(read: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Return what a function reads, amid which nothing was committed. For a call in its turn."""
    mark = look()
    result = read(*args, **kwargs)
    if mark in _looks:
        _looks.remove(mark)
        return result
    with Uninterrupted():
        return read(*args, **kwargs)


def commit(mark: object, calls: Sequence[Call], held: bool = False) -> bool:
    """Make some calls amid which nothing else runs; return False, and make none, if something was committed since.

    Parameters
    ----------
    mark : object
        From :func:`look`.
    calls : sequence of tuples
        Functions with their arguments. They must not fail, since nothing puts back what the first ones have done.
    held : bool, default False
        Hold signal handlers off, which takes some microseconds. Needed where a call runs Python, as a kernel does that
        is yet to be compiled.
    """
    if held:
        with Uninterrupted():
            return commit(mark, calls)
    try:
        call_in_one_go([(_looks.remove, mark), (_looks.clear,), (_writing.append, True), *calls, (_writing.clear,)])
    except KeyError as error:
        if error.args != (mark,):
            raise
        return False
    finally:
        _writing.clear()
    return True
