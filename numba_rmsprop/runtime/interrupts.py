"""Signal handlers that are deferred while arrays, and the numbers that belong to them, are written together."""

from __future__ import annotations

# The public module `signal` converts numbers to enums and back: two calls take 10 us, and 0.5 us here.
import _signal
import operator
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import starmap
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any]
Call: TypeAlias = tuple[Any, ...]
"""A function and its arguments."""

SIGINT: int = _signal.SIGINT
SIGNALS: tuple[int, ...] = tuple(map(int, sorted(_signal.valid_signals())))

_came: deque[tuple[int, FrameType | None]] = deque()
"""Signals that came while their handlers were deferred."""

_held: dict[int, Handler] = {}
"""The handlers that are deferred."""


def _note(number: int, frame: FrameType | None) -> None:
    _came.append((number, frame))


def call_in_one_go(calls: Iterable[Call]) -> None:
    """Call compiled functions and builtins one after the other, without any signal handler in between.

    Python runs handlers between instructions of Python code, and there are none here. This takes 0.5 us, where
    :class:`Uninterrupted` takes 6 us.
    """
    deque(starmap(operator.call, calls), 0)


class Uninterrupted:
    """A context that defers signal handlers written in Python: they are called when the context is left.

    Python runs such handlers in the main thread, between any two of its instructions. In other threads, and within
    another such context, this does nothing. Signals without a Python handler act as always.
    """

    __slots__ = ("_holds",)
    _anywhere = False

    def __init__(self) -> None:
        self._holds = False

    def __enter__(self) -> None:
        if Uninterrupted._anywhere or threading.get_ident() != threading.main_thread().ident:
            return
        try:
            self._holds = Uninterrupted._anywhere = True
            _hold()
        except BaseException:  # a handler has raised before it was deferred
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._holds:
            self._holds = Uninterrupted._anywhere = False
            _release()


def _hold() -> None:
    for number, handler in zip(SIGNALS, map(_signal.getsignal, SIGNALS), strict=True):
        if callable(handler) and handler is not _note:
            _held[number] = handler
            _signal.signal(number, _note)


def _release() -> None:
    """Put the handlers back, and call them for the signals that came meanwhile, even if one of them raises."""
    try:
        for number, handler in list(_held.items()):
            if _signal.getsignal(number) is _note:  # no other handler was set meanwhile
                _signal.signal(number, handler)
            _held.pop(number, None)  # a handler that ran just now may have deferred and put back handlers, too
        while _came:
            number, frame = _came.popleft()
            now = _signal.getsignal(number)
            if callable(now):
                now(number, frame)
    finally:
        if _held or _came:
            _release()


def waiting() -> list[int]:
    """Return the signals that wait for a context of :class:`Uninterrupted` to be left, in the order they came."""
    if not _came or threading.get_ident() != threading.main_thread().ident:  # no other thread runs handlers
        return []
    return [number for number, _ in _came]


def call_waiting() -> None:
    """Call the handlers of waiting signals now, at a point where nothing is half written; one of them may raise."""
    while waiting():
        number, frame = _came.popleft()
        if number in _held:
            _held[number](number, frame)


@contextmanager
def asked_to_stop(ask: Callable[[], None]) -> Iterator[None]:
    """Enter a context in which the first SIGINT calls ``ask``, and later ones act as before.

    It does nothing in threads other than the main one, since they run no signal handlers.
    """
    before = _signal.getsignal(SIGINT)

    def first(number: int, frame: FrameType | None) -> None:
        _signal.signal(SIGINT, before)
        ask()

    if not callable(before):  # SIGINT ends the process, or is ignored
        yield
        return
    try:
        _signal.signal(SIGINT, first)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        if _signal.getsignal(SIGINT) is first:
            _signal.signal(SIGINT, before)
