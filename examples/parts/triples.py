"""Knowledge graphs: triples of head, relation and tail, read from a folder of text files."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

PARTS = ("train", "valid", "test")


class GraphError(ValueError):
    """The folder does not hold a graph to learn from."""


@dataclass(frozen=True)
class Graph:
    """A graph whose edges have names, parted into what is learnt and what is asked.

    Attributes
    ----------
    entities, relations : list of str
        The names, sorted.
    train, valid, test : ndarray of int64, shape (triples, 3)
        Numbers of head, relation and tail.
    """

    entities: list[str]
    relations: list[str]
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]

    def unseen(self) -> NDArray[np.int64]:
        """Return the entities that no triple to learn from has."""
        return np.setdiff1d(np.arange(len(self.entities)), self.train[:, [0, 2]])

    def both_ways(self, triples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the triples, then each the other way round, its relation's number raised by that of all relations.

        To ask for a head is then to ask for the tail of an inverse relation.
        """
        head, relation, tail = triples.T
        return np.concatenate([triples, np.stack([tail, relation + len(self.relations), head], axis=1)])


def distinct(triples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the triples sorted by head, relation and tail, each once."""
    triples = triples[np.lexsort(triples.T[::-1])]
    return triples[np.append(True, (triples[1:] != triples[:-1]).any(axis=1))]


class Answers:
    """All entities that are known to answer "head, relation, what?": from any part, in both directions.

    Parameters
    ----------
    graph : Graph
        The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._relations = 2 * len(graph.relations)
        known = distinct(np.concatenate([graph.both_ways(getattr(graph, part)) for part in PARTS]))
        self._asked, first = np.unique(self._questions(known), return_index=True)
        self._bounds = np.append(first, len(known))
        self._tails = known[:, 2]

    def _questions(self, triples: NDArray[np.int64]) -> NDArray[np.int64]:
        return triples[:, 0] * self._relations + triples[:, 1]

    def of(self, triples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return all answers to the questions of known triples, and for each the place of its question."""
        found, owners = spans(self._bounds, np.searchsorted(self._asked, self._questions(triples)))
        return self._tails[found], owners


def spans(bounds: NDArray[np.int64], numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places ``bounds[i]`` to ``bounds[i + 1] - 1`` for each of ``numbers``, and which of them it is for."""
    counts = bounds[numbers + 1] - bounds[numbers]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(bounds[numbers], counts) + within, np.repeat(np.arange(len(numbers)), counts)


def read_graph(folder: Path) -> Graph:
    """Return the graph of a folder with train.txt, valid.txt and test.txt.

    Parameters
    ----------
    folder : Path
        Each line of its files holds a head, a relation and a tail, separated by tabs, in UTF-8. Spaces around a name
        are no part of it. Empty lines are passed over.

    Raises
    ------
    GraphError
        If a file is missing, empty or malformed, or a relation is asked for that nothing teaches. The message names
        file and line.
    """
    if not folder.is_dir():
        raise GraphError(f"expected a folder with train.txt, valid.txt and test.txt, got {folder}, which is none")
    missing = [f"{part}.txt" for part in PARTS if not (folder / f"{part}.txt").is_file()]
    if missing:
        raise GraphError(f"{folder}: expected train.txt, valid.txt and test.txt; not there: {', '.join(missing)}")
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    numbered = {}
    for part in PARTS:
        known = None if part == "train" else frozenset(relations)
        numbered[part] = _read_triples(folder / f"{part}.txt", entities, relations, known)
    # By name and not by place, so that only the names say which row is whose.
    ranks = [np.argsort(sorted(range(len(names)), key=list(names).__getitem__)) for names in (entities, relations)]
    for triples in numbered.values():
        triples[:, [0, 2]] = ranks[0][triples[:, [0, 2]]]
        triples[:, 1] = ranks[1][triples[:, 1]]
    return Graph(sorted(entities), sorted(relations), **numbered)


def _read_triples(
    path: Path, entities: dict[str, int], relations: dict[str, int], known: frozenset[str] | None
) -> NDArray[np.int64]:
    """Return the triples of a file, and give numbers to names that are new; ``known`` are the relations that may be."""
    numbers = array("q")
    with path.open("rb") as file:
        for line, raw in enumerate(tqdm(file, desc=path.name, unit=" lines", delay=1, leave=False), 1):
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise GraphError(f"{path}, line {line}: expected text in UTF-8, got the byte {byte:#x}") from None
            fields = [field.strip() for field in text.split("\t")]  # a space at an end would make another entity
            if len(fields) == 3 and all(fields):
                head, relation, tail = fields
                if known is not None and relation not in known:
                    raise GraphError(
                        f"{path}, line {line}: expected a relation that occurs in train.txt, got {relation!r}"
                    )
                numbers.append(entities.setdefault(head, len(entities)))
                numbers.append(relations.setdefault(relation, len(relations)))
                numbers.append(entities.setdefault(tail, len(entities)))
            elif text.strip():
                shown = text if len(text) <= 60 else text[:57] + "..."
                raise GraphError(
                    f"{path}, line {line}: expected head, relation and tail, separated by tabs, got {len(fields)} "
                    f"field{'s' * (len(fields) != 1)}{', one of them empty' * (len(fields) == 3)}: {shown!r}"
                )
    if not numbers:
        raise GraphError(f"{path}: expected triples, got an empty file")
    return np.array(numbers, np.int64).reshape(-1, 3)
