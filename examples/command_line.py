"""What the examples' options have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def number_from(least: float, kind: type[int] | type[float], most: float = 1e9) -> Callable[[str], float]:
    """Return what reads a number and refuses those out of bounds."""

    def number(text: str) -> float:
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text}")
        return kind(text)

    return number
