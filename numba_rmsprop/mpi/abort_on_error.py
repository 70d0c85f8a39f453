"""An exception that ends one rank ends all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

_installed = False


def end_all_on_error(rank: int, size: int, end_all: Callable[[], Any]) -> None:
    """End all ranks, from now on, when an exception ends the program of this one.

    Otherwise the others would wait for this rank until somebody kills the job: MPI itself notices only processes that
    die. The exception is printed first, as usual.
    """
    global _installed
    if _installed:
        return
    _installed = True
    before = sys.excepthook

    def print_and_end_all(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        before(kind, error, where)
        message = f"rank {rank} of {size} ended with {kind.__name__}"
        print(f"{message}; the others cannot go on without it, and are ended, too", file=sys.stderr, flush=True)
        sys.stdout.flush()
        end_all()

    sys.excepthook = print_and_end_all
