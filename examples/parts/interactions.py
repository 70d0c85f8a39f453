"""Who liked what: interactions of users with items, read from files of several forms and split for testing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .triples import spans

SEPARATORS = ("::", "\t", ",", ";", "|")
"""What may stand between fields; or else white space."""

COLUMNS = {
    "user": re.compile(r"user|uid|visitor|customer|reviewer", re.IGNORECASE),
    "item": re.compile(
        r"item|iid|movie|book|isbn|artist|track|song|product|article|business|venue|asin", re.IGNORECASE
    ),
    "rating": re.compile(r"rating|score|stars|weight|plays|count", re.IGNORECASE),
    "time": re.compile(r"time|date", re.IGNORECASE),
}
"""What columns may be called in a header; the first that matches is taken."""

EARLIEST_TIME = 1e8
"""A third number that is larger is a time, in seconds since 1970, and no rating."""


class InteractionsError(ValueError):
    """The files do not hold interactions to learn from."""


@dataclass(frozen=True)
class Interactions:
    """Pairs of a user and an item, each once, sorted by user.

    Attributes
    ----------
    bounds : ndarray of int64, shape (users + 1,)
        User ``u`` has the items ``items[bounds[u] : bounds[u + 1]]``.
    items : ndarray of int64
        Numbers of items.
    """

    bounds: NDArray[np.int64]
    items: NDArray[np.int64]

    @classmethod
    def of_pairs(cls, users: NDArray[np.int64], items: NDArray[np.int64], count: int) -> Interactions:
        """Return the interactions of ``count`` users; pairs that come twice are taken once."""
        order = np.lexsort((items, users))
        users, items = users[order], items[order]
        new = np.append(True, (np.diff(users) != 0) | (np.diff(items) != 0))[: len(users)]
        return cls(np.searchsorted(users[new], np.arange(count + 1)), items[new])

    def __len__(self) -> int:
        return len(self.items)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many items each user has."""
        return np.diff(self.bounds)

    @property
    def users(self) -> NDArray[np.int64]:
        """The user of each item."""
        return np.repeat(np.arange(len(self.bounds) - 1), self.counts)

    def of(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the items of some users, one user after the other, and for each the place of its user among them."""
        places, owners = spans(self.bounds, users)
        return self.items[places], owners

    def parted(self, held: NDArray[np.bool]) -> tuple[Interactions, Interactions]:
        """Return the interactions that are not held out, and those that are."""
        users, count = self.users, len(self.bounds) - 1
        return Interactions.of_pairs(users[~held], self.items[~held], count), Interactions.of_pairs(
            users[held], self.items[held], count
        )

    def parted_by_user(self, share: float, seed: int) -> tuple[Interactions, Interactions]:
        """Return interactions without a share of each user's, and that share, drawn at random.

        A user keeps at least one.
        """
        drawn = np.random.default_rng(seed).random(len(self))
        order = np.lexsort((drawn, self.users))  # each user's in random order
        within = np.empty(len(self), np.int64)
        within[order] = np.arange(len(self)) - np.repeat(self.bounds[:-1], self.counts)
        exact = share * self.counts
        # Rounded up or down at random, so that those with few items also have some held out now and then.
        wanted = np.floor(exact + np.random.default_rng([seed, 1]).random(len(exact)))
        return self.parted(within < np.minimum(wanted, self.counts - 1)[self.users])


@dataclass(frozen=True)
class Data:
    """What a recommender learns, and what it is asked.

    Attributes
    ----------
    users, items : list of str
        Their names, as in the files.
    train, test : Interactions
        What is learnt, and what is asked.
    """

    users: list[str]
    items: list[str]
    train: Interactions
    test: Interactions


def read_data(path: Path, split: str, share: float, least_rating: float, seed: int) -> Data:
    """Return the interactions in a file, split, or those in the files train and test of a folder.

    Parameters
    ----------
    path : Path
        A folder with train.txt and test.txt (or any other ending), or a file. A line has a user, an item and, if
        there are any, a rating and a time, with ``::``, tabs, commas, ``;``, ``|`` or white space between them, and
        maybe a header; or, as in the papers' files, a user and all its items, with spaces between them.
    split : {"user", "time"}
        How to split a file: a share of each user's items, drawn at random, or the latest interactions of all.
    share : float
        The share of the interactions to hold out.
    least_rating : float
        Interactions with smaller ratings are left out.
    seed : int
        Chooses what is held out.

    Raises
    ------
    InteractionsError
        If there is nothing to learn or to ask, or a line is malformed. The message names file and line.
    """
    names = _Names()
    if path.is_dir():
        files = [_file_in(path, part) for part in ("train", "test")]
        lists = any(map(_holds_lists, files))  # a short one of two may look like something else
        pairs = [_read(file, names, least_rating, lists=lists) for file in files]
        train, test = (Interactions.of_pairs(found.users, found.items, len(names.users)) for found in pairs)
        test = _without(test, train)
    elif path.is_file():
        found = _read(path, names, least_rating, lists=_holds_lists(path))
        train, test = _split(found, len(names.users), split, share, seed, path)
    else:
        raise InteractionsError(f"expected a file of interactions, or a folder with train.txt and test.txt, got {path}")
    if not len(train) or not len(test):
        raise InteractionsError(f"{path}: expected interactions to learn and to ask, got {len(train)} and {len(test)}")
    return Data(list(names.users), list(names.items), train, test)


@dataclass
class _Pairs:
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.float64]


class _Names:
    """The numbers of users and items, by name, in the order in which they first come."""

    def __init__(self) -> None:
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}


def _file_in(folder: Path, part: str) -> Path:
    found = sorted(folder.glob(f"{part}*.*"))
    if len(found) != 1:
        raise InteractionsError(
            f"{folder}: expected one file train.txt and one test.txt, got {[file.name for file in found]} for {part}"
        )
    return found[0]


def _without(part: Interactions, other: Interactions) -> Interactions:
    """Return interactions that are not among others."""
    items = 1 + max(part.items.max(initial=0), other.items.max(initial=0))
    known = np.isin(part.users * items + part.items, other.users * items + other.items)
    return part.parted(known)[0]


def _split(
    found: _Pairs, users: int, split: str, share: float, seed: int, path: Path
) -> tuple[Interactions, Interactions]:
    if split == "user":
        return Interactions.of_pairs(found.users, found.items, users).parted_by_user(share, seed)
    if np.isnan(found.times).any():
        raise InteractionsError(f"{path}: expected a time in each line for --split time; take --split user")
    latest = found.times > np.quantile(found.times, 1 - share)
    test = Interactions.of_pairs(found.users[latest], found.items[latest], users)
    train = Interactions.of_pairs(found.users[~latest], found.items[~latest], users)
    test = _without(test, train)
    # Nothing can be said of users and items that come later.
    known = (train.counts[test.users] > 0) & np.isin(test.items, train.items)
    return train, test.parted(known)[1]


def _read(path: Path, names: _Names, least_rating: float, *, lists: bool) -> _Pairs:
    """Return the interactions in a file, and give numbers to names that are new."""
    users, items, times = [], [], []
    for user, item, rating, time in _list_entries(path) if lists else _entries(path):
        if rating is None or rating >= least_rating:
            users.append(names.users.setdefault(user, len(names.users)))
            items.append(names.items.setdefault(item, len(names.items)))
            times.append(math.nan if time is None else time)
    return _Pairs(np.array(users, np.int64), np.array(items, np.int64), np.array(times))


Entry = tuple[str, str, float | None, float | None]


def _holds_lists(path: Path) -> bool:
    """Return whether lines hold a user and all its items: fields with white space between, more or fewer of them."""
    counts = set()
    for text in _lines(path):
        if any(mark in text for mark in SEPARATORS):
            return False
        counts.add(len(text.split()))
    return len(counts - {0}) > 1 or max(counts, default=0) > 4


def _list_entries(path: Path) -> Iterator[Entry]:
    for text in _lines(path):
        user, *items = text.split() or [""]
        yield from ((user, item, None, None) for item in items)


def _entries(path: Path) -> Iterator[Entry]:
    """Yield user, item, rating and time of each interaction in a file."""
    lines = [(number, text) for number, text in enumerate(_lines(path), 1) if text.strip()]
    if not lines:
        raise InteractionsError(f"{path}: expected interactions, got an empty file")
    separator = next((mark for mark in SEPARATORS if mark in lines[0][1]), None)
    fields = [[field.strip().strip('"') for field in text.split(separator)] for _, text in lines]
    places = _header(fields[0])
    if places is None:
        places = _places_by_number(fields[0])
    else:
        lines, fields = lines[1:], fields[1:]
    least = 1 + max(places.values())
    for (number, text), each in zip(lines, fields, strict=True):
        if len(each) < least or not each[places["user"]] or not each[places["item"]]:
            raise InteractionsError(
                f"{path}, line {number}: expected a user, an item and {least} fields in all, got {text.strip()!r:.80}"
            )
        try:
            rating = float(each[places["rating"]]) if "rating" in places else None
            time = _time(each[places["time"]]) if "time" in places else None
        except ValueError:
            raise InteractionsError(
                f"{path}, line {number}: expected a number as rating and a number or a date as time, got "
                f"{text.strip()!r:.80}"
            ) from None
        yield each[places["user"]], each[places["item"]], rating, time


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(tqdm(file, desc=path.name, unit=" lines", delay=1, leave=False), 1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise InteractionsError(f"{path}, line {number}: expected text in UTF-8, got {byte:#x}") from None


def _header(fields: Sequence[str]) -> dict[str, int] | None:
    """Return which column is which, where the first line is a header."""
    places: dict[str, int] = {}
    for place, name in enumerate(fields):
        kind = next((kind for kind, words in COLUMNS.items() if words.search(name) and kind not in places), None)
        if kind is not None and not name.isdigit():
            places[kind] = place
    return places if {"user", "item"} <= set(places) else None


def _places_by_number(fields: Sequence[str]) -> dict[str, int]:
    """Return which column is which, where there is no header."""
    places = {"user": 0, "item": 1}
    if len(fields) > 3:
        return places | {"rating": 2, "time": 3}
    if len(fields) == 3:
        try:
            is_time = float(fields[2]) > EARLIEST_TIME
        except ValueError:
            is_time = True  # a date, perhaps
        places["time" if is_time else "rating"] = 2
    return places


def _time(text: str) -> float:
    """Return a time as a number."""
    try:
        return float(text)
    except ValueError:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
