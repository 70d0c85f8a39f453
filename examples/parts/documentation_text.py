"""The text of the examples: the documentation in the docstrings of the installed NumPy and SciPy.

Their "See Also" sections name related functions. They are left out of the text; in the word-vector example they tell
afterwards how well the vectors know which functions belong together.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

WORD = re.compile(r"[a-z_][a-z0-9_]+")
SEE_ALSO = re.compile(r"^See Also\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", re.DOTALL | re.MULTILINE)
NAMES_BEFORE_DESCRIPTION = re.compile(r"^([\w.`,: ]+?)(?: :|$)")


@dataclass
class Text:
    """Sentences as word numbers, one after the other, and which functions are said to be related.

    Attributes
    ----------
    vocabulary : list of str
        The words, most frequent first.
    counts : ndarray of int64, shape (words,)
        How often each occurs.
    words : ndarray of int32, shape (length,)
        The text, as numbers of words.
    ends : ndarray of int64, shape (length,)
        For each position, where its sentence ends.
    starts : ndarray of int64, shape (length,)
        For each position, where its sentence starts.
    related : list of (int, list of int)
        A function, and the functions that its "See Also" section names; empty for other texts.
    """

    vocabulary: list[str]
    counts: NDArray[np.int64]
    words: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    related: list[tuple[int, list[int]]]

    def sentences(self) -> list[list[str]]:
        """Return the text as lists of words."""
        first = np.unique(self.starts)
        return [[self.vocabulary[w] for w in part] for part in np.split(self.words, first[1:])]


def read_documentation(minimum_count: int = 5) -> Text:
    """Read NumPy's and SciPy's docstrings."""
    sentences, related = [], {}
    for package in (np, scipy):
        for _, name, docstring in package_docstrings(Path(package.__file__).parent):
            sentences.append(split_words(f"{name} {SEE_ALSO.sub('', docstring)}"))
            related.setdefault(name.lower(), set()).update(see_also(docstring))
    return number(sentences, related, minimum_count)


def read_file(path: Path, minimum_count: int = 5) -> Text:
    """Read a text file, a sentence to a line."""
    return number([split_words(line) for line in path.read_text(encoding="utf8").splitlines()], {}, minimum_count)


def package_docstrings(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (source file, name, docstring) of everything in a package's folder, its tests left out."""
    for path in sorted(folder.rglob("*.py")):
        if "tests" not in path.parts:
            for name, docstring in docstrings(path):
                yield path, name, docstring


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the (name, docstring) pairs of a source file; ``add_newdoc`` gives those of what is written in C."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # an old escape sequence in somebody's docstring
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", path.stem), text
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").startswith("add_newdoc"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if len(texts) > 1:
                yield texts[-2], ast.get_docstring(ast.parse(repr(texts[-1]))) or ""


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case; names of Python are words."""
    return WORD.findall(text.lower())


def see_also(docstring: str) -> set[str]:
    """Return the last parts of the names that a docstring's "See Also" section lists."""
    names: set[str] = set()
    for section in SEE_ALSO.findall(docstring):
        for line in section.splitlines():
            match = NAMES_BEFORE_DESCRIPTION.match(line)
            if match:
                names.update(name.strip(" `").split(".")[-1].lower() for name in match[1].split(","))
    return {name for name in names if WORD.fullmatch(name)}


def number(sentences: list[list[str]], related: dict[str, set[str]], minimum_count: int) -> Text:
    """Give every word that occurs often enough a number, by falling frequency."""
    counts = Counter(word for sentence in sentences for word in sentence)
    vocabulary = [w for w, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= minimum_count]
    numbers = {word: i for i, word in enumerate(vocabulary)}
    kept = [[numbers[word] for word in sentence if word in numbers] for sentence in sentences]
    lengths = np.array([len(sentence) for sentence in kept], np.int64)
    ends = np.cumsum(lengths)
    pairs = [
        (numbers[name], sorted(numbers[other] for other in others if other in numbers and other != name))
        for name, others in sorted(related.items())
        if name in numbers
    ]
    return Text(
        vocabulary=vocabulary,
        counts=np.array([counts[word] for word in vocabulary], np.int64),
        words=np.fromiter(chain.from_iterable(kept), np.int32),
        starts=np.repeat(ends - lengths, lengths),
        ends=np.repeat(ends, lengths),
        related=[(name, others) for name, others in pairs if others],
    )


def related_words_auc(vectors: NDArray[np.float32], related: list[tuple[int, list[int]]]) -> float:
    """Return how often a listed relative of a function is nearer to it, by cosine, than a random word.

    The area under the ROC curve, averaged over functions: 0.5 for vectors that know nothing, 1 for perfect ones.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    areas = []
    for word, relatives in related:
        similarity = unit @ unit[word]
        others = np.ones(len(unit), bool)
        others[[word, *relatives]] = False
        ranked = np.sort(similarity[others])
        below = np.searchsorted(ranked, similarity[relatives], "left")
        ties = np.searchsorted(ranked, similarity[relatives], "right") - below
        areas.append(np.mean((below + 0.5 * ties) / len(ranked)))
    return float(np.mean(areas))
