"""What several examples need: numbers among their options, and files that are whole or not there."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def number_from(least: float, kind: type[int] | type[float], most: float = 1e9) -> Callable[[str], float]:
    """Return what reads a number and refuses those out of bounds."""

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"expected a {what} from {least:g} to {most:g}, got {text!r}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text}")
        return value

    return number


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what ``path`` is to hold: a kill leaves the old file or the new one, whole."""
    new = path.with_name(f"{path.name}.new")
    yield new
    os.replace(new, path)
