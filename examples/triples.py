"""Knowledge graphs: triples of head, relation and tail, read from a folder of text files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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


class Answers:
    """All entities that are known to answer "head, relation, what?": from any part, in both directions.

    Parameters
    ----------
    graph : Graph
        The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._relations = 2 * len(graph.relations)
        known = np.concatenate([graph.both_ways(getattr(graph, part)) for part in PARTS])
        pairs = np.unique(np.stack([self._questions(known), known[:, 2]], axis=1), axis=0)
        self._asked, first = np.unique(pairs[:, 0], return_index=True)
        self._bounds = np.append(first, len(pairs))
        self._tails = pairs[:, 1]

    def _questions(self, triples: NDArray[np.int64]) -> NDArray[np.int64]:
        return triples[:, 0] * self._relations + triples[:, 1]

    def of(self, triples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return all answers to the questions of known triples, and for each the place of its question."""
        places = np.searchsorted(self._asked, self._questions(triples))
        starts, counts = self._bounds[places], self._bounds[places + 1] - self._bounds[places]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._tails[np.repeat(starts, counts) + within], np.repeat(np.arange(len(triples)), counts)


def read_graph(folder: Path) -> Graph:
    """Return the graph of a folder with train.txt, valid.txt and test.txt.

    Parameters
    ----------
    folder : Path
        Each line of its files holds a head, a relation and a tail, separated by tabs, in UTF-8. Empty lines are
        passed over.

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
    names = {part: _read_lines(folder / f"{part}.txt") for part in PARTS}
    entities = sorted({name for lines in names.values() for _, head, _, tail in lines for name in (head, tail)})
    relations = sorted({relation for _, _, relation, _ in names["train"]})
    entity_numbers = {name: number for number, name in enumerate(entities)}
    relation_numbers = {name: number for number, name in enumerate(relations)}
    for part in ("valid", "test"):
        for line, _, relation, _ in names[part]:
            if relation not in relation_numbers:
                raise GraphError(
                    f"{folder / part}.txt, line {line}: expected a relation that occurs in train.txt, got {relation!r}"
                )
    numbers = {
        part: [(entity_numbers[h], relation_numbers[r], entity_numbers[t]) for _, h, r, t in lines]
        for part, lines in names.items()
    }
    return Graph(entities, relations, **{part: np.array(triples, np.int64) for part, triples in numbers.items()})


def _read_lines(path: Path) -> list[tuple[int, str, str, str]]:
    """Return the number of each line, and its head, relation and tail."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise GraphError(
            f"{path}, line {line}: expected text in UTF-8, got the byte {error.object[error.start]:#x}"
        ) from None
    found = []
    for number, text in enumerate(lines, 1):
        line = text.rstrip("\r")
        fields = line.split("\t")
        if len(fields) == 3 and all(field.strip() for field in fields):
            found.append((number, *fields))
        elif line.strip():
            shown = line if len(line) <= 60 else line[:57] + "..."
            raise GraphError(
                f"{path}, line {number}: expected head, relation and tail, separated by tabs, got {len(fields)} "
                f"field{'s' * (len(fields) != 1)}{', one of them empty' * (len(fields) == 3)}: {shown!r}"
            )
    if not found:
        raise GraphError(f"{path}: expected triples, got an empty file")
    return found
