"""Progress bars, by tqdm where it is installed."""

from __future__ import annotations

from typing import Any


def need_tqdm() -> Any:
    """Return the class of progress bars.

    Raises
    ------
    ImportError
        If tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm  # here, since it is an extra
    except ImportError as error:
        raise ImportError("progress=True: expected tqdm to be installed, as with pip install tqdm") from error
    return tqdm


def bar(total: int, unit: str, name: str | None = None) -> Any:
    """Return a progress bar; raises as :func:`need_tqdm` does."""
    return need_tqdm()(total=total, desc=name, unit=unit)
