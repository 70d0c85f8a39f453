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
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from .interrupts import Call, Uninterrupted, call_in_one_go

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

launch_lock = threading.RLock()
"""Held during every launch, too: Numba's workqueue layer aborts the process when two threads launch at once."""

# Bound once, so that between `try` and the call there is nothing at which a signal handler could run.
_take, _give = launch_lock.acquire, launch_lock.release
_ONCE = (True,)

ATTEMPTS = 100

_looks: set[object] = set()
"""Marks of the calls that have looked, and since when nothing was committed."""

_writing: list[bool] = []
"""Not empty during a commit."""

_OTHERS_ARE_WORTHLESS: Call = (_looks.clear,)
_BEGIN: Call = (_writing.append, True)
_END: Call = (_writing.clear,)


def in_turn(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
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
        return function(*arguments)
    finally:
        if taken:
            _give()


def carry_out(look_at: Callable[[list[Call], *Arguments], bool | None], *arguments: *Arguments) -> bool:
    """Look and commit, and again where something was committed in between. For a call in its turn.

    Parameters
    ----------
    look_at : callable
        Adds to a list of calls, its first argument, what the call comes to; see :func:`commit`. Returns ``held`` of
        there, or None if nothing is to be done.
    arguments : objects
        Its further arguments.

    Returns
    -------
    bool
        Whether something was done.
    """
    calls = look()
    held = look_at(calls, *arguments)
    if held is None or commit(calls, held):
        return held is not None
    with Uninterrupted():  # or else a timer could come in each time
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
    """Begin the list of what a call in its turn comes to, for :func:`commit`."""
    sign = object()
    _looks.add(sign)
    return [(_looks.remove, sign), _OTHERS_ARE_WORTHLESS, _BEGIN]


def commit(calls: list[Call], held: bool = False) -> bool:
    """Make the calls amid which nothing else runs; return False, and make none, if there was a commit since the look.

    Parameters
    ----------
    calls : list of tuples
        What :func:`look` returned, and behind it functions with their arguments. They must not fail, since nothing puts
        back what the first ones have done.
    held : bool, default False
        Hold signal handlers off, which takes some microseconds. Needed where a call runs Python, as a kernel does that
        is yet to be compiled.
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
    """Something was committed on this thread while a call was reading, which is to begin anew."""


def mark() -> object:
    """Return a sign by which :func:`has_changed` knows the moment."""
    sign = object()
    _looks.add(sign)
    return sign


def has_changed(sign: object) -> bool:
    """Return whether anything was committed since :func:`mark` returned this."""
    return sign not in _looks


def undisturbed(call: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call a function that raises DisturbedError where it was disturbed: then again, with signal handlers held off."""
    try:
        return call(*arguments)
    except DisturbedError:
        with Uninterrupted():
            return call(*arguments)


def whole(read: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Return what a function reads, amid which nothing was committed. For a call in its turn."""
    return undisturbed(_whole, read, *arguments)


def _whole(read: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    sign = mark()
    result = read(*arguments)
    check_undisturbed(sign)
    _looks.remove(sign)
    return result


def check_undisturbed(sign: object) -> None:
    """Raise DisturbedError if something was committed since :func:`mark` returned this."""
    if has_changed(sign):
        raise DisturbedError("a callback or a signal handler has changed the optimizer while it was read; call again")
