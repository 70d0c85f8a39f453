"""The form in which the state of a variable is kept."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rounding: TypeAlias = tuple[int, int, int, NDArray[np.int64] | None]
"""What kernels take to round at random: see :func:`numba_rmsprop.kernels.hashing.noise_of_row`."""


class Form(NamedTuple):
    """The form in which the state of a variable is kept.

    Attributes
    ----------
    by_row : bool
        Whether slots that may have one number for each row do, where a row has several elements.
    dtype : numpy dtype or None
        That of the slots; None for the one that steps are computed in.
    seed : int or None
        Where random bits come from, to round numbers of 16 bits at random; None rounds them to the nearest.
    ranks, rank : int
        The ranks among which the rows are shared out, and which of them this is.
    starts : tuple of (str, float)
        Slots that start from another number than 0, each with that number.
    """

    by_row: bool = False
    dtype: np.dtype[Any] | None = None
    seed: int | None = None
    ranks: int = 1
    rank: int = 0
    starts: tuple[tuple[str, float], ...] = ()

    def rounding(self, name: str, number: int, rows: NDArray[np.int64] | None) -> Rounding | None:
        """Return what kernels round by in launch ``number`` on a variable; another number or name, other random bits.

        ``rows`` are the rows that a launch on copies works on.
        """
        if self.seed is None:
            return None
        digest = blake2b(f"{self.seed} {number} {name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1, self.ranks, self.rank, rows


USUAL = Form()
"""Elementwise state of the dtype that steps are computed in."""
