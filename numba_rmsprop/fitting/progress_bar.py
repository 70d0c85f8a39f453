"""Progress bars by tqdm, which is an optional dependency."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


def load_tqdm() -> Any:
    """Return tqdm's class; raise ImportError if tqdm is not installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True: expected tqdm to be installed, as with pip install tqdm") from error
    return tqdm


def progress_bar(shown: bool, **options: Any) -> Any:
    """Return a context that gives tqdm's progress bar, or None where it is not to be shown."""
    return load_tqdm()(**options) if shown else nullcontext()
