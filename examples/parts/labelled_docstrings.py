"""The problem of the classifier example: to tell from the words of a docstring to which subpackage it belongs.

What gives the answer away is taken out of the text: "See Also" sections, whole dotted names that begin with a package
or subpackage (``scipy.optimize.minimize``, ``np.linalg.norm``, ``stats.norm``), and wherever else they stand the names
of packages and subpackages and the usual short ones, although some, such as "signal" and "sparse", are also ordinary
words. The name of the function itself is not part of the text. Of docstrings that have the same words after that, the
first is kept, so that none is both learnt from and asked for. Some that differ in a few words remain, as those of
``scipy.stats``'s distributions do, and docstrings of one file may be in both parts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import norm

from .documentation_text import SEE_ALSO, package_docstrings, split_words

MERGED = {"numpy._core": "numpy", "numpy.lib": "numpy"}
"""What users find in ``numpy`` itself."""
LEFT_OUT = {"numpy.distutils"}
"""NumPy has it under old versions of Python alone, and the problem should be the same under all."""
SHORT_NAMES = {"np", "sp"}
SHORTEST = 5
"""Docstrings of fewer words than this are left out."""


@dataclass
class Docstrings:
    """Docstrings as lists of words, each with the number of its class.

    Attributes
    ----------
    classes : list of str
        The subpackages, in the order of the alphabet.
    texts : list of tuple of str
        The words of each docstring, none like another.
    labels : ndarray of int64, shape (docstrings,)
        The class of each.
    too_few : list of str
        Subpackages that were left out because they have too few docstrings.
    """

    classes: list[str]
    texts: list[tuple[str, ...]]
    labels: NDArray[np.int64]
    too_few: list[str]


def read_labelled(folders: Sequence[Path], fewest: int) -> Docstrings:
    """Read the docstrings of packages; subpackages of fewer than ``fewest`` and private ones are left out."""
    found = [
        (path.relative_to(folder.parent).parts, docstring)
        for folder in folders
        for path, _, docstring in package_docstrings(folder)
    ]
    found = [(parts, docstring) for parts, docstring in found if len(parts) > 2]  # a package's own files have no class
    giveaways = SHORT_NAMES.union(*(parts[:2] for parts, _ in found))
    class_of: dict[tuple[str, ...], str] = {}
    for parts, docstring in found:
        name = MERGED.get(".".join(parts[:2]), ".".join(parts[:2]))
        words = words_without(docstring, giveaways)
        if len(words) >= SHORTEST and name not in LEFT_OUT and not name.split(".")[-1].startswith("_"):
            class_of.setdefault(words, name)
    sizes = Counter(class_of.values())
    classes = sorted(name for name, size in sizes.items() if size >= fewest)
    texts = [words for words, name in class_of.items() if name in classes]
    labels = np.array([classes.index(class_of[words]) for words in texts], np.int64)
    return Docstrings(classes, texts, labels, sorted(set(sizes) - set(classes)))


def words_without(docstring: str, giveaways: set[str]) -> tuple[str, ...]:
    """Return the words of a docstring without its "See Also" section and without the names that give it away."""
    dotted = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(giveaways)))})(?:\.\w+)+", re.IGNORECASE)
    text = dotted.sub(" ", SEE_ALSO.sub("", docstring))
    return tuple(word for word in split_words(text) if word not in giveaways)


def split(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers below ``count`` in two random parts; the second has about ``share`` of them."""
    order = np.random.default_rng(seed).permutation(count)
    second = max(1, round(count * share))
    return np.sort(order[second:]), np.sort(order[:second])


def tf_idf(
    learnt: Sequence[Sequence[str]], asked: Sequence[Sequence[str]], minimum_count: int = 2
) -> tuple[list[str], csr_array, csr_array]:
    """Weigh words by how often they occur in a text, and in how few texts.

    Returns
    -------
    words : list of str
        Those that ``minimum_count`` texts to learn from have.
    learnt, asked : csr_array of float32, shape (texts, words)
        ``(1 + log(count)) * (1 + log(texts / texts with the word))``, with rows of norm 1.
    """
    texts_with = Counter(chain.from_iterable(map(set, learnt)))
    words = sorted(word for word, count in texts_with.items() if count >= minimum_count)
    rarity = 1 + np.log(len(learnt) / np.array([texts_with[word] for word in words]))
    return words, _weighted(learnt, words, rarity), _weighted(asked, words, rarity)


def _weighted(texts: Sequence[Sequence[str]], words: list[str], rarity: NDArray[np.float64]) -> csr_array:
    numbers = {word: i for i, word in enumerate(words)}
    known = [[numbers[word] for word in text if word in numbers] for text in texts]
    ends = np.cumsum([0, *map(len, known)], dtype=np.int32)  # scikit-learn takes no other integers
    indices = np.fromiter(chain.from_iterable(known), np.int32)
    matrix = csr_array((np.ones(len(indices)), indices, ends), shape=(len(texts), len(words)))
    matrix.sum_duplicates()
    matrix.data = (1 + np.log(matrix.data)) * rarity[matrix.indices]
    norms = np.maximum(norm(matrix, axis=1), 1e-12)  # a text of unknown words alone has norm 0
    matrix.data /= np.repeat(norms, np.diff(matrix.indptr))
    return matrix.astype(np.float32)
