"""Ctrl-C held off while arrays and the numbers that belong to them are written together."""

from __future__ import annotations

# The public module turns numbers into enums and back: 10 us for two calls, and without it 0.5 us.
import _signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias, cast

Handler: TypeAlias = Callable[[int, FrameType | None], Any]

SIGINT: int = _signal.SIGINT


_came: list[int] = []


def _note(number: int, frame: FrameType | None) -> None:
    _came.append(number)


def hold_interrupts() -> Handler | None:
    """Let SIGINT raise nothing from now on; return what :func:`release_interrupts` takes.

    Python runs signal handlers in the main thread, between any two of its instructions; in another thread this does
    nothing.
    """
    handler = _signal.getsignal(SIGINT)
    if not callable(handler):  # SIGINT ends the process, or is ignored, or is handled by other than Python
        return None
    try:
        _signal.signal(SIGINT, _note)
    except ValueError:  # not the main thread
        return None
    return cast(Handler, handler)


def release_interrupts(handler: Handler | None) -> None:
    """Let SIGINT do again what it did, and do it now if it came meanwhile."""
    if handler is not None:
        _signal.signal(SIGINT, handler)
        if _came:
            _came.clear()
            handler(SIGINT, None)


class Uninterrupted:
    """A context in which interrupts are held; contexts may be nested. For what is called often, it takes too long."""

    def __enter__(self) -> None:
        self._handler = hold_interrupts()

    def __exit__(self, *_: object) -> None:
        release_interrupts(self._handler)
