"""Example stream_ids.py: the table that evicts stays small, and the same seed gives the same numbers."""

import json

import numpy as np
import pytest
from example_programs import EXAMPLES, run_example


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import stream_ids

    return stream_ids


def results_of(out):
    done = run_example("stream_ids.py", "--steps", 100, "--batch", 256, "--rows", 500, "--arrivals", 40, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "stream_ids.png").stat().st_size > 10_000
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: {key: each[key] for key in ("auc_in_second_half", "rows")} for name, each in list(found.items())[2:]}


def test_a_short_stream(tmp_path):
    found = results_of(tmp_path / "first")
    assert found["keyed"]["rows"] <= 500 == found["hashed"]["rows"] < found["all"]["rows"]
    assert found["all"]["auc_in_second_half"] > 0.5
    assert found == results_of(tmp_path / "second")


def test_the_area_is_how_often_a_click_is_ranked_higher(example):
    rng = np.random.default_rng(0)
    logits, clicks = rng.permutation(np.arange(50.0)), rng.random(50) < 0.4  # no two are equal
    pairs = logits[clicks][:, np.newaxis] > logits[~clicks]
    assert example.area(logits, clicks) == pytest.approx(pairs.mean())


def test_the_newest_users_are_the_most_frequent(example):
    users, items, clicks = example.Stream(4000, 10).events(5)
    assert (users % 2 == 0).all()
    assert (items % 2 == 1).all()
    newest = 2 * example.scrambled(np.array([1050]))
    assert (users == newest).mean() > 0.05
    assert 0.3 < clicks.mean() < 0.7
