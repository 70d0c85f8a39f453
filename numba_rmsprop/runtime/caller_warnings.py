"""Warnings that point to the user's own line."""

from __future__ import annotations

import sys
import warnings

LIBRARIES = frozenset({__name__.partition(".")[0], "contextlib", "scipy", "torch"})
"""Packages whose frames may lie between the user's line and the one that warns."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the user's line, which is the nearest caller outside of the ``LIBRARIES``."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
