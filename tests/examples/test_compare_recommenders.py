"""Example compare_recommenders.py: implicit's methods, by the same measures."""

import json
import sys

import numpy as np
import pytest
from example_programs import EXAMPLES

pytest.importorskip("implicit", reason="needs implicit, of the extra bench")


def test_methods_of_implicit_are_searched_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    import compare_recommenders

    rng = np.random.default_rng(0)
    for part, places in (("train", range(10)), ("test", range(10, 14))):
        lines = [
            " ".join(map(str, [user, *((user + rng.permutation(16)[place]) % 90 for place in places)]))
            for user in range(90)
        ]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", ["program.py", str(tmp_path), "--rank", "8"])
    monkeypatch.setattr(compare_recommenders, "STARTS", {
        "ALS": {"regularization": 0.1, "alpha": 4.0, "iterations": 2},
        "BPR": {"learning_rate": 0.05, "regularization": 0.01, "iterations": 20},
    })  # fmt: skip
    compare_recommenders.main()
    shown = capsys.readouterr().out
    told = json.loads(shown.splitlines()[-1])
    assert list(told) == ["ALS", "BPR"]
    for found in told.values():
        assert found["recall@20"] > 0.5  # by chance, 0.25
        assert found["tried"] >= 7
    assert shown.count("| ALS | regularization") == 1
