"""Who looks on during a fit: a progress bar, and the history."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .progress_bar import bar


class Watchers:
    """A context that is called with each window of a fit: ``watchers(nit, mean, rate)``.

    Parameters
    ----------
    maxiter : int
        How far the bar reaches.
    progress : bool
        Whether to show a bar.
    history : bool
        Whether to keep what came.

    Raises
    ------
    ImportError
        If a bar is wanted and tqdm is not installed.

    Examples
    --------
    >>> with Watchers(10, progress=False, history=True) as watchers:
    ...     watchers(5, 0.25, 0.1)
    >>> watchers.history()["fun"]
    array([0.25])
    """

    def __init__(self, maxiter: int, progress: bool, history: bool) -> None:
        self._bar: Any = bar(maxiter, "step") if progress else None
        self._kept: list[tuple[int, float, float]] | None = [] if history else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, nit: int, mean: float, rate: float) -> None:
        """Take note of a window."""
        if self._kept is not None:
            self._kept.append((nit, mean, rate))
        if self._bar is not None:
            self._bar.set_postfix_str(f"fun={mean:.6g}, learning_rate={rate:.2g}", refresh=False)
            self._bar.update(nit - self._bar.n)

    def history(self) -> dict[str, NDArray[Any]]:
        """Return what was kept, as arrays."""
        kept = self._kept or []
        return {
            "nit": np.array([nit for nit, _, _ in kept], np.int64),
            "fun": np.array([mean for _, mean, _ in kept], np.float64),
            "learning_rate": np.array([rate for _, _, rate in kept], np.float64),
        }
