"""Keys of 64 bits: as callers hand them over, and of strings."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.variables import as_array

NO_KEYS = np.empty(0, np.int64)


def as_keys(keys: ArrayLike) -> NDArray[np.int64]:
    """Return keys as int64; raise TypeError if they are no integers, or too large."""
    found = as_array(keys, "keys")
    fits = found.dtype.kind in "iu" and np.can_cast(found.dtype, np.int64)
    if found.dtype.kind == "u" and not fits:
        fits = not found.size or bool(found.max() <= np.iinfo(np.int64).max)
    if found.size and not fits:
        raise TypeError(
            f"keys: expected integers from -2**63 to 2**63 - 1, got {found.dtype}; text_keys makes keys of strings"
        )
    return found.astype(np.int64, order="C", copy=False)


def check_finite(keys: NDArray[np.int64], values: NDArray[Any]) -> None:
    """Raise FloatingPointError if a gradient, shape (n, columns), holds NaN or infinity."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise FloatingPointError(f"values: expected finite numbers, got others for key {keys[~finite][0]}")


def text_keys(texts: Iterable[str]) -> NDArray[np.int64]:
    """Return keys for strings: the first 64 bits of BLAKE2b.

    Two of a million different strings get the same key with probability 3e-8, and two of a billion with 3 percent. To
    exclude it, number the strings yourself and keep the list, as pandas.factorize does.

    >>> text_keys(["user:ann", "user:bob"])
    array([-2915385949715916072,  -487504706748012910])
    """
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.dtype("<i8")).astype(np.int64)
