"""Files of interactions in all their forms, and what is held out of them."""

import sys

import numpy as np
import pytest
from example_programs import EXAMPLES

sys.path.insert(0, str(EXAMPLES))
from parts.interactions import Interactions, InteractionsError, read_data

FORMS = {
    "MovieLens 1M": "a::1::5::978300760\na::2::1::978302109\nb::1::4::978301968\n",
    "MovieLens 100K": "a\t1\t5\t881250949\na\t2\t1\t881250950\nb\t1\t4\t881250951\n",
    "MovieLens 25M": "userId,movieId,rating,timestamp\na,1,5.0,1147880044\na,2,1.0,1147868817\nb,1,4.0,1147868828\n",
    "header in another order": 'rating;"book_id";"user_id"\r\n5;1;a\r\n1;2;a\r\n4;1;b\r\n',
    "ratings alone": "a 1 5\na 2 1\nb 1 4\n",
    "dates": "user|item|date|stars\na|1|2020-02-03|5\na|2|2020-02-04T05:06:07|1\nb|1|2021-01-01|4\n",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_forms_of_files(tmp_path, text):
    path = tmp_path / "file.txt"
    path.write_bytes(b"\xef\xbb\xbf" * text.startswith("userId") + text.encode() + b"\n")
    found = read_data(path, "user", 0.5, -np.inf, 0)
    assert (found.users, found.items) == (["a", "b"], ["1", "2"])
    assert sorted([*found.train.users, *found.test.users]) == [0, 0, 1]
    with pytest.raises(InteractionsError, match="expected interactions to learn and to ask, got 2 and 0"):
        read_data(path, "user", 0.001, 4.0, 0)


def test_the_files_of_papers(tmp_path):
    (tmp_path / "train.txt").write_text("0 5 6 7\n1 5\n2 \n")
    (tmp_path / "test.txt").write_text("0 8 5\n1 6\n")
    found = read_data(tmp_path, "user", 0.2, -np.inf, 0)
    assert found.users == ["0", "1"]
    assert found.items == ["5", "6", "7", "8"]
    assert found.train.bounds.tolist() == [0, 3, 4]
    assert found.test.items.tolist() == [3, 1]  # what is learnt is not asked
    assert found.train.of(np.array([1, 0]))[0].tolist() == [0, 0, 1, 2]


def test_the_latest_are_held_out(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{rng.integers(9)},{rng.integers(9)},{time}" for time in range(10**9, 10**9 + 200)]
    (tmp_path / "log.csv").write_text("\n".join(rng.permutation(lines)))
    found = read_data(tmp_path / "log.csv", "time", 0.2, -np.inf, 0)
    pairs = {tuple(line.split(",")[:2]) for line in lines[:160]}
    names = {(found.users[u], found.items[i]) for u, i in zip(found.train.users, found.train.items, strict=True)}
    assert names == pairs
    assert len(found.test) > 0
    (tmp_path / "no times").write_text("a,b\nc,d\n")
    with pytest.raises(InteractionsError, match="expected a time in each line for --split time"):
        read_data(tmp_path / "no times", "time", 0.5, -np.inf, 0)


def test_each_user_keeps_an_item():
    users = np.repeat(np.arange(200), np.arange(200) % 7)
    found = Interactions.of_pairs(users, np.arange(len(users)), 200)
    train, held = found.parted_by_user(0.5, seed=1)
    assert len(train) + len(held) == len(found)
    assert ((train.counts > 0) == (found.counts > 0)).all()
    assert 0.35 * len(found) < len(held) < 0.5 * len(found)
    again, other = found.parted_by_user(0.5, seed=1), found.parted_by_user(0.5, seed=2)
    assert (again[1].items == held.items).all()
    assert other[1].items.tolist() != held.items.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected interactions, got an empty file"),
        (b"\n \n", "expected interactions, got an empty file"),
        (b"a,b,1\nc,d\n", "line 2: expected a user, an item and 3 fields in all, got 'c,d'"),
        (b"a,b,1\n,d,3\n", "line 2: expected a user, an item and 3 fields in all, got ',d,3'"),
        (b"a,b,1\nc,d,much\n", "line 2: expected a number as rating and a number or a date as time, got 'c,d,much'"),
        (b"a,b\nc,\xff\n", "line 2: expected text in UTF-8, got 0xff"),
        (b"a,b\na,b\n", "expected interactions to learn and to ask, got 1 and 0"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(InteractionsError, match=message):
        read_data(tmp_path / "file", "user", 0.5, -np.inf, 0)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(InteractionsError, match="expected a file of interactions, or a folder with"):
        read_data(tmp_path / "nothing", "user", 0.5, -np.inf, 0)
    with pytest.raises(InteractionsError, match=r"expected one file train.txt and one test.txt, got \[\] for train"):
        read_data(tmp_path, "user", 0.5, -np.inf, 0)
