"""Signal handlers held off while arrays and the numbers that belong to them are written together."""

from __future__ import annotations

# The public module turns numbers into enums and back: 10 us for two calls, and without it 0.5 us.
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
"""Signals that came while their handlers were held off."""

_held: dict[int, Handler] = {}
"""The handlers that are held off."""


def _note(number: int, frame: FrameType | None) -> None:
    _came.append((number, frame))


def call_in_one_go(calls: Iterable[Call]) -> None:
    """Make some calls of compiled functions and builtins between which no signal handler runs.

    Python runs handlers between its own instructions, of which there are none here. It takes 0.5 us, where to hold
    handlers off takes 6 us.
    """
    deque(starmap(operator.call, calls), 0)


class Uninterrupted:
    """A context in which no signal handler runs that is written in Python: each is called once the context is left.

    Python runs such handlers in the main thread, between any two of its instructions; in another thread this does
    nothing, and within another such context neither. Signals without such a handler do what they always do.
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
        except BaseException:  # a handler has raised before it was held off
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
    """Let signals do again what they did, and do it for each that came meanwhile, also where one of them raises."""
    try:
        for number, handler in list(_held.items()):
            if _signal.getsignal(number) is _note:  # and not one that was set meanwhile
                _signal.signal(number, handler)
            _held.pop(number, None)  # a handler that has run since may have held off and let go, too
        while _came:
            number, frame = _came.popleft()
            now = _signal.getsignal(number)
            if callable(now):
                now(number, frame)
    finally:
        if _held or _came:
            _release()


def waiting() -> list[int]:
    """Return the signals that have come and wait for a context of :class:`Uninterrupted` to be left, in order."""
    if not _came or threading.get_ident() != threading.main_thread().ident:  # which alone runs handlers
        return []
    return [number for number, _ in _came]


def call_waiting() -> None:
    """Call their handlers now, within the context, where all is whole: one may raise."""
    while waiting():
        number, frame = _came.popleft()
        if number in _held:
            _held[number](number, frame)


@contextmanager
def asked_to_stop(ask: Callable[[], None]) -> Iterator[None]:
    """Enter a context in which the first SIGINT calls ``ask``; from the second on, it does what it did before.

    In another thread than the main one, which alone runs signal handlers, this does nothing.
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
