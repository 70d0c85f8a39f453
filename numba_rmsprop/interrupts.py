"""Ctrl-C held off while arrays and the numbers that belong to them are written together."""

from __future__ import annotations

# The public module turns numbers into enums and back: 10 us for two calls, and without it 0.5 us.
import _signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any]

SIGINT: int = _signal.SIGINT


class Uninterrupted:
    """A context in which SIGINT raises nothing: its handler is called once the context is left.

    Python runs signal handlers in the main thread, between any two of its instructions; in another thread this does
    nothing. Contexts may be nested.
    """

    __slots__ = ("_came", "_handler")

    def __enter__(self) -> None:
        self._came = False
        self._handler: Handler | None = None
        handler = _signal.getsignal(SIGINT)
        if callable(handler):  # or else SIGINT ends the process, or is ignored
            try:
                _signal.signal(SIGINT, self._note)
            except ValueError:  # not the main thread
                return
            self._handler = handler

    def __exit__(self, *_: object) -> None:
        handler = self._handler
        if handler is not None:
            _signal.signal(SIGINT, handler)
            if self._came:
                handler(SIGINT, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
