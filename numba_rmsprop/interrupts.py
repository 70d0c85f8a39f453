"""Ctrl-C held off while arrays and the numbers that belong to them are written together."""

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
from typing import Any, TypeAlias, cast

Handler: TypeAlias = Callable[[int, FrameType | None], Any]

SIGINT: int = _signal.SIGINT

_came: list[FrameType | None] = []


def _note(number: int, frame: FrameType | None) -> None:
    _came.append(frame)


Call: TypeAlias = tuple[Any, ...]
"""A function and its arguments."""


def call_in_one_go(calls: Iterable[Call]) -> None:
    """Make some calls of compiled functions and builtins between which no signal handler runs.

    Python runs handlers between its own instructions, of which there are none here. It takes 0.5 us, where to set
    another handler and the old one again takes 2 us.
    """
    deque(starmap(operator.call, calls), 0)


class Uninterrupted:
    """A context in which SIGINT raises nothing: its handler is called once the context is left.

    Python runs signal handlers in the main thread, between any two of its instructions; in another thread this does
    nothing, and within another such context neither.
    """

    __slots__ = ("_handler",)
    _latest: Handler | None = None

    def __init__(self) -> None:
        self._handler: Handler | None = None

    def hold(self) -> None:
        """Hold interrupts from now on; for a caller that is not within such a context, and releases them finally."""
        handler = _signal.getsignal(SIGINT)
        if handler is _note:  # another signal's handler has raised out of release, and left it so
            handler = Uninterrupted._latest
        if callable(handler):  # or else SIGINT ends the process, or is ignored
            Uninterrupted._latest = self._handler = cast(Handler, handler)
            try:
                _signal.signal(SIGINT, _note)
            except ValueError:  # not the main thread
                self._handler = None

    def release(self) -> None:
        """Let SIGINT do again what it did, and do it for each that came meanwhile."""
        handler = self._handler
        if handler is not None:
            if _signal.getsignal(SIGINT) is _note:  # and not one that was set meanwhile
                _signal.signal(SIGINT, handler)
            while _came:
                handler(SIGINT, _came.pop(0))

    def __enter__(self) -> None:
        if _signal.getsignal(SIGINT) is not _note:
            self.hold()

    def __exit__(self, *_: object) -> None:
        self.release()


def waiting() -> list[int]:
    """Return the signals that have come and wait for a context of :class:`Uninterrupted` to be left, in order."""
    if not _came or threading.current_thread() is not threading.main_thread():  # which alone runs handlers
        return []
    return [SIGINT] * len(_came)


def call_waiting() -> None:
    """Call their handlers now, within the context, where all is whole: one may raise."""
    while waiting():
        handler = Uninterrupted._latest
        assert handler is not None
        handler(SIGINT, _came.pop(0))


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
