"""Example recommender.py: it learns, its slopes and measures are right, and a kill or Ctrl-C loses nothing."""

import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import safetensors.numpy
from example_programs import EXAMPLES, interrupted_at, start_example
from processes import finish

USERS, ITEMS = 60, 48


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make users around a table who like what lies near them; a third of that is held back for testing."""
    folder = tmp_path_factory.mktemp("data")
    rng, parts = np.random.default_rng(1), {"train": [], "test": []}
    for user in range(USERS):
        near = (user * ITEMS // USERS + np.arange(-4, 5)) % ITEMS
        liked = rng.permutation([f"item {item}".replace(" ", "") for item in near])
        parts["train"].append(f"{user} {' '.join(liked[:6])}")
        parts["test"].append(f"{user} {' '.join(liked[6:])}")
    for part, lines in parts.items():
        (folder / f"{part}.txt").write_text("\n".join(lines), encoding="utf8")
    return folder


@pytest.fixture(scope="module")
def example():
    """Import the program, and let it share even small work among threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import recommender

        patch.setattr("parts.matrix_factors.USERS_AT_ONCE", 3)
        patch.setattr("parts.matrix_factors.ITEMS_AT_ONCE", 5)
        patch.setattr("parts.top_items.SCORED_BYTES", 1000)
        patch.setattr("numba_rmsprop.runtime.launching.SERIAL_ITEMS", 0)
        yield recommender


def arguments(data, out, *options):
    return [
        *(str(data), "--out", str(out), "--rank", "8", "--batch", "10", "--negatives", "12", "--epochs", "30"),
        *("--every", "10", "--checkpoint-every", "5", "--learning-rate", "0.03", *options),
    ]


def run(example, data, out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recommender.py", *arguments(data, out, *options)])
        example.main()


def results(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def rows(out):
    return (out / "rows.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(example, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(example, data, out)
    return out


def test_it_learns_and_shows_it(example, data, whole, tmp_path, capsys):
    run(example, data, tmp_path)
    shown = capsys.readouterr().out
    told = json.loads(shown.splitlines()[-1])
    assert told["asked"] == "test"
    assert told["recall@20"] > 0.9  # by chance, 20/42
    assert told["ndcg@20"] > 0.5
    assert shown.count("\nuser ") == 3
    assert "*" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names.json", "recall.png", "rows.safetensors"]
    assert (tmp_path / "recall.png").stat().st_size > 10_000
    names = json.loads((tmp_path / "names.json").read_text(encoding="utf8"))
    found = safetensors.numpy.load_file(tmp_path / "rows.safetensors")
    assert found["users"].shape == (len(names["users"]), 8) == (USERS, 8)
    assert found["items"].shape == (len(names["items"]), 8) == (ITEMS, 8)
    assert rows(tmp_path) == rows(whole), "the same seed gives the same bits"


def test_the_bits_do_not_depend_on_the_threads(example, data, whole, tmp_path):
    numba.set_num_threads(1)
    run(example, data, tmp_path)
    assert rows(tmp_path) == rows(whole)
    run(example, data, tmp_path / "other", "--seed", "2")
    assert rows(tmp_path / "other") != rows(whole)


def test_the_dense_gradient_gives_the_same_and_lazy_does_not(example, data, tmp_path):
    found = {}
    for mode in ("exact", "lazy", "dense"):
        run(example, data, tmp_path / mode, "--optimizer", mode, "--rho", "0.9", "--epochs", "4")
        found[mode] = safetensors.numpy.load_file(tmp_path / mode / "rows.safetensors")["users"]
    assert np.abs(found["dense"] - found["exact"]).max() < 1e-3
    assert np.abs(found["lazy"] - found["exact"]).max() > 1e-2


@pytest.mark.parametrize("form", ["rowwise", "bfloat16"])
def test_lean_tables_learn_too(example, data, tmp_path, capsys, form):
    run(example, data, tmp_path, "--form", form)
    assert results(capsys)["recall@20"] > 0.9


def test_a_part_of_what_is_learnt_is_held_out(example, data, tmp_path, capsys):
    run(example, data, tmp_path, "--valid", "0.2", "--epochs", "3")
    assert results(capsys)["asked"] == "valid"


def test_a_file_is_split(example, data, tmp_path, capsys):
    times = iter(np.random.default_rng(0).permutation(10**9 + np.arange(6 * USERS)))
    lines = [f"{u},{i},{next(times)}" for u in range(USERS) for i in range(u % 9, u % 9 + 6)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    for split in ("user", "time"):
        run(example, tmp_path / "log.csv", tmp_path / split, "--split", split, "--epochs", "2")
        assert results(capsys)["recall@20"] > 0


def test_slopes_are_those_of_the_loss(example):
    from parts.row_kernels import softmax_slopes

    rng = np.random.default_rng(0)
    scores, rarity, biases = 5 * rng.standard_normal((4, 7)), rng.random(7), rng.standard_normal(7)
    bounds, right = np.array([0, 2, 3, 3, 6]), np.array([1, 4, 6, 0, 1, 2])

    def loss(scores):
        total = 0.0
        for user in range(4):
            mine = right[bounds[user] : bounds[user + 1]]
            others = np.setdiff1d(np.arange(7), mine)
            weights = np.exp(scores[user, others] + biases[others] + rarity[others]).sum()
            total += np.log1p(weights / np.exp(scores[user, mine] + biases[mine])).sum()
        return total

    slopes, shifts = scores.astype(np.float32), (biases + rarity).astype(np.float32)
    found = softmax_slopes(slopes, shifts, rarity.astype(np.float32), bounds, right)
    assert math.isclose(found, loss(scores), rel_tol=1e-6)
    for place in np.ndindex(4, 7):
        step = np.zeros((4, 7))
        step[place] = 1e-6
        expected = (loss(scores + step) - loss(scores - step)) / 2e-6
        assert math.isclose(slopes[place], expected, rel_tol=1e-4, abs_tol=1e-6)
    everything = np.zeros((1, 3), np.float32)
    assert softmax_slopes(everything, shifts[:3], shifts[:3], np.array([0, 3]), np.arange(3)) == 0
    assert (everything == 0).all()
    far = np.array([[1000, -1000, 0]], np.float32)  # no number overflows
    assert (
        softmax_slopes(far, np.zeros(3, np.float32), np.zeros(3, np.float32), np.array([0, 1]), np.array([1])) == 2000
    )
    np.testing.assert_allclose(far, [[1, -1, 0]], atol=1e-30)


def test_gradients_are_those_of_the_loss(example):
    """Beside a slow sum over all candidates, in float64 but for the gradients."""
    from parts.interactions import Interactions
    from parts.matrix_factors import Batch, Model, Options, Trainer

    rng = np.random.default_rng(0)
    train = Interactions.of_pairs(rng.integers(0, 12, 60), rng.integers(0, 20, 60), 12)
    options = Options(3, 5, 2000, 1, 0.1, 0.9, 0.3, 1, 0, "exact")
    model, users = Model(12, 20, options), np.array([3, 7, 1, 11])
    model.items[:, -1] = rng.standard_normal(20)

    class Noting:
        def gather(self, var, indices, out):
            out[...] = var[indices]
            return out

        def apply_gradients(self, grads_and_vars):
            self.grads = [grad for grad, _ in grads_and_vars]

    def loss(users_table, items_table):
        total = 0.0
        for user in users:
            row = users_table[user] / np.linalg.norm(users_table[user])
            cosines = items_table[:, :-1] @ row / np.linalg.norm(items_table[:, :-1], axis=1)
            scores = cosines / options.temperature + items_table[:, -1]
            own = train.of(np.array([user]))[0]
            others = np.exp(np.delete(scores, own)).sum()
            total += np.log1p(others / np.exp(scores[own])).sum()
        return total

    tables, opt = [model.users.astype(float), model.items.astype(float)], Noting()
    with ThreadPoolExecutor(2) as pool:
        found, count = Trainer(model, train, options, pool).train_batch(opt, Batch(users, [1]))
    assert count == train.counts[users].sum()
    assert math.isclose(found, loss(*tables), rel_tol=1e-5)
    for table, grad in zip(tables, opt.grads, strict=True):
        for k, row in enumerate(grad.indices):
            for column in range(table.shape[1]):
                before, table[row, column] = table[row, column], table[row, column] + 1e-5
                above = loss(*tables)
                table[row, column] = before - 1e-5
                expected = (above - loss(*tables)) / 2e-5
                table[row, column] = before
                assert math.isclose(grad.values[k, column], expected, rel_tol=1e-3, abs_tol=1e-3)


def test_measures_beside_slow_ones(example):
    from parts.interactions import Interactions
    from parts.top_items import Recommender, recall_and_ndcg

    rng = np.random.default_rng(0)
    users, items, biases = rng.standard_normal((30, 4)), rng.standard_normal((25, 4)), rng.standard_normal(25)
    pairs = rng.integers(0, 28, 300), rng.integers(0, 25, 300)
    known, asked = Interactions.of_pairs(*pairs, 30).parted(rng.random(len(Interactions.of_pairs(*pairs, 30))) < 0.3)
    recalls, ndcgs = [], []
    for user in range(30):
        held = asked.of(np.array([user]))[0]
        if len(held):
            order = np.argsort(-(items @ users[user] + biases))
            top = [item for item in order if item not in known.of(np.array([user]))[0]][:5]
            gains = [1 / np.log2(place + 2) for place, item in enumerate(top) if item in held]
            recalls.append(len(gains) / len(held))
            ndcgs.append(sum(gains) / sum(1 / np.log2(place + 2) for place in range(min(5, len(held)))))
    with ThreadPoolExecutor(2) as pool:
        found = recall_and_ndcg(Recommender(users, items, biases, known), asked, pool, 5)
    np.testing.assert_allclose(found, [np.mean(recalls), np.mean(ndcgs)])
    few = Recommender(users, items[:3], biases[:3], Interactions.of_pairs(np.array([1]), np.array([2]), 30))
    assert (few.top(np.array([1]), 5)[0] == -1).tolist() == [False, False, True, True, True]


def test_a_killed_training_comes_to_the_same_bits(example, data, tmp_path, capsys, monkeypatch):
    for name, value in (("USERS_AT_ONCE", 64), ("ITEMS_AT_ONCE", 512)):  # as in the program that is killed below
        monkeypatch.setattr(f"parts.matrix_factors.{name}", value)
    run(example, data, tmp_path / "whole")
    killed = start_example("recommender.py", *arguments(data, tmp_path / "killed"))
    folder = tmp_path / "killed" / "checkpoint"
    while killed.poll() is None and not list(folder.glob("checkpoint-*.safetensors")):
        time.sleep(0.001)
    killed.kill()
    finish(killed)
    assert list(folder.glob("checkpoint-*.safetensors")), "the training ended before it could be killed"
    with pytest.raises(SystemExit, match="other settings or data"):
        run(example, data, tmp_path / "killed", "--seed", "2")
    run(example, data, tmp_path / "killed")
    assert "going on from step" in capsys.readouterr().out
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize(("where", "call"), [("Trainer.train_batch", 65), ("recall_and_ndcg", 3)])
def test_an_interrupted_training_comes_to_the_same_bits(example, data, whole, tmp_path, monkeypatch, where, call):
    from parts import recommender_training

    owner, _, name = where.rpartition(".")
    owner = getattr(recommender_training, owner) if owner else recommender_training
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted_at(call, getattr(owner, name)))
        with pytest.raises(SystemExit, match="interrupted; the same command goes on from the last checkpoint"):
            run(example, data, tmp_path)
    run(example, data, tmp_path)
    assert rows(tmp_path) == rows(whole)
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "argument --batch: expected a number from 1 to 1e+09, got 0"),
        (["--temperature", "0"], "argument --temperature: expected a number from 1e-09 to 1e+09, got 0"),
        (["--valid", "1"], "argument --valid: expected a number from 0 to 0.99999, got 1"),
        (["--split", "item"], "argument --split: invalid choice: 'item'"),
        (["--optim", "lazy"], "unrecognized arguments: --optim lazy"),
    ],
)
def test_wrong_options_are_refused(example, data, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(example, data, tmp_path, *options)
    assert message in capsys.readouterr().err


def test_what_cannot_be_trained_is_refused(example, data, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"the training needs .* GiB, and .* GiB are free; take a smaller --rank"):
        run(example, data, tmp_path, "--rank", "100000000")
    with pytest.raises(SystemExit, match="expected a file of interactions, or a folder with train"):
        run(example, tmp_path / "nowhere", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("parts.recommender_training.Trainer.train_batch", lambda *_: (math.inf, 1))
        with pytest.raises(SystemExit, match="the loss became inf in epoch 1; try a smaller --learning-rate"):
            run(example, data, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"--out: expected a folder to write to, got .*file: File exists"):
        run(example, data, tmp_path / "file")
