"""Example knowledge_graph.py: it learns, the same seed gives the same bits, a kill or Ctrl-C loses nothing."""

import json
import math
import pkgutil
import shutil
import sys
import time

import numba
import numpy as np
import pytest
import safetensors.numpy
from example_programs import EXAMPLES, interrupted_at, start_example
from processes import finish

ENTITIES = 40
STEPS = {"next": 1, "third": 3, "seventh": 7, "opposite": 20, "eleventh": 11, "before": 39}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Make a graph of seats around a table, each related to seats further on; a third is held back for testing."""
    folder = tmp_path_factory.mktemp("graph")
    triples = [
        f"seat {i}\t{name}\tseat {(i + step) % ENTITIES}" for name, step in STEPS.items() for i in range(ENTITIES)
    ]
    triples = np.random.default_rng(1).permutation(triples)
    for part, lines in zip(("train", "valid", "test"), np.split(triples, [160, 200]), strict=True):
        (folder / f"{part}.txt").write_text("\n".join(lines), encoding="utf8")
    return folder


@pytest.fixture(scope="module")
def example():
    """Import the program, and let it share even small work among threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import knowledge_graph

        patch.setattr("parts.bilinear.CHUNK", 4)
        patch.setattr("parts.ranking.ASKED_BYTES", 1000)
        patch.setattr("numba_rmsprop.runtime.launching.SERIAL_ITEMS", 0)
        yield knowledge_graph


def arguments(graph, out, *options):
    return [
        *(str(graph), "--out", str(out), "--rank", "16", "--negatives", "8", "--batch", "32", "--epochs", "20"),
        *("--n3", "0.01", "--dropout", "0", "--learning-rate", "0.03", "--every", "5", "--checkpoint-every", "3"),
        *options,
    ]


def run(example, graph, out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["knowledge_graph.py", *arguments(graph, out, *options)])
        example.main()


def results(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def tables(out):
    return (out / "embeddings.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(example, graph, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(example, graph, out)
    return out


def test_it_learns_and_shows_it(example, graph, whole, tmp_path, capsys):
    run(example, graph, tmp_path)
    told = results(capsys)
    assert told["epochs_trained"] == 20
    assert told["test_mrr"] > 0.6  # by chance, 0.11
    assert 1 >= told["test_hits@10"] >= told["test_hits@3"] >= told["test_hits@1"] > 0.4
    assert told["valid_mrr"] > 0.6
    assert told["seconds"] > 0
    assert told["optimizer_seconds_per_epoch"] > 0
    assert (tmp_path / "valid_mrr.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.safetensors", "names.json", "valid_mrr.png"]
    names = json.loads((tmp_path / "names.json").read_text(encoding="utf8"))
    found = safetensors.numpy.load_file(tmp_path / "embeddings.safetensors")
    assert found["entities"].shape == (len(names["entities"]), 32) == (ENTITIES, 32)
    assert found["relations"].shape == (2 * len(names["relations"]), 32) == (2 * len(STEPS), 32)
    assert tables(tmp_path) == tables(whole), "the same seed gives the same bits"


def test_the_bits_do_not_depend_on_the_threads(example, graph, whole, tmp_path):
    numba.set_num_threads(1)
    run(example, graph, tmp_path)
    assert tables(tmp_path) == tables(whole)
    run(example, graph, tmp_path / "other", "--seed", "2")
    assert tables(tmp_path / "other") != tables(whole)


def test_real_numbers_learn_too(example, graph, tmp_path, capsys):
    run(example, graph, tmp_path, "--model", "distmult")
    told = results(capsys)
    assert told["model"] == "distmult"
    assert told["test_mrr"] > 0.2
    assert safetensors.numpy.load_file(tmp_path / "embeddings.safetensors")["entities"].shape == (ENTITIES, 16)


def test_the_dense_gradient_gives_the_same_and_lazy_does_not(example, graph, tmp_path, monkeypatch):
    from parts import embedding_optimizers

    zero_filled, found, made = embedding_optimizers.zero_filled, {}, []
    monkeypatch.setattr("parts.embedding_optimizers.zero_filled", lambda *args: made.append(args) or zero_filled(*args))
    for mode in ("exact", "lazy", "dense"):
        assert not made
        run(example, graph, tmp_path / mode, "--optimizer", mode, "--rho", "0.99", "--epochs", "8")
        found[mode] = safetensors.numpy.load_file(tmp_path / mode / "embeddings.safetensors")["entities"]
    assert made
    assert np.abs(found["dense"] - found["exact"]).max() < 1e-4
    assert np.abs(found["lazy"] - found["exact"]).max() > 5e-3


def test_the_tables_that_answer_best_are_kept(example, graph, tmp_path, monkeypatch, capsys):
    found, tables_then = [2.0, 1.25, 4.0, 1.25], []

    def ranks(model, *_):
        tables_then.append(model.entities.copy())
        return np.array([found[len(tables_then) - 1]])

    monkeypatch.setattr("parts.link_training.ranks", ranks)
    run(example, graph, tmp_path)
    told = results(capsys)
    assert (told["epochs_trained"], told["best_epoch"], told["valid_mrr"]) == (20, 10, 0.8)
    kept = safetensors.numpy.load_file(tmp_path / "embeddings.safetensors")["entities"]
    np.testing.assert_array_equal(kept, tables_then[1])


def test_it_ends_when_it_gets_no_better(example, graph, tmp_path, capsys):
    run(example, graph, tmp_path, "--learning-rate", "1e-9", "--every", "1", "--patience", "2")
    told = results(capsys)
    assert (told["epochs_trained"], told["best_epoch"]) == (3, 1)


def test_a_killed_training_comes_to_the_same_bits(example, graph, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("parts.bilinear.CHUNK", 64)  # the value in the program that is killed below
    run(example, graph, tmp_path / "whole")
    killed = start_example("knowledge_graph.py", *arguments(graph, tmp_path / "killed"))
    folder = tmp_path / "killed" / "checkpoint"
    while killed.poll() is None and not list(folder.glob("checkpoint-*.safetensors")):
        time.sleep(0.001)
    killed.kill()
    finish(killed)
    assert list(folder.glob("checkpoint-*.safetensors")), "the training ended before it could be killed"
    for other in (["--seed", "2"], ["--rank", "17"]):
        with pytest.raises(SystemExit, match="other settings or data"):
            run(example, graph, tmp_path / "killed", *other)
    run(example, graph, tmp_path / "killed")
    assert "going on from step" in capsys.readouterr().out
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")


@pytest.mark.parametrize(
    ("where", "call", "every"),
    [
        ("parts.link_training.Trainer.train_batch", 65, "3"),  # within an epoch
        ("parts.link_training.Epoch.__init__", 8, "1000"),  # between two epochs; the first call is made to compile
        ("parts.link_training.ranks", 2, "1000"),  # while the validation triples are ranked
        ("knowledge_graph.ranks", 1, "1000"),  # while the test triples are ranked
        (
            "parts.resumable_training.shutil.rmtree",
            2,
            "1000",
        ),  # while old checkpoints are removed
    ],
)
def test_an_interrupted_training_comes_to_the_same_bits(
    example, graph, whole, tmp_path, monkeypatch, capsys, where, call, every
):
    options = ["--checkpoint-every", every]
    module, name = where.rsplit(".", 1)
    with monkeypatch.context() as patch:
        target = pkgutil.resolve_name(module)
        patch.setattr(target, name, interrupted_at(call, getattr(target, name)))
        with pytest.raises(SystemExit, match="interrupted; the same command goes on from the last checkpoint"):
            run(example, graph, tmp_path, *options)
    run(example, graph, tmp_path, *options)
    assert ("going on from step" in capsys.readouterr().out) == ("rmtree" not in where)
    assert tables(tmp_path) == tables(whole)
    assert not list(tmp_path.glob("checkpoint*"))


def test_what_was_best_before_an_interrupt_still_is(example, graph, tmp_path, monkeypatch, capsys):
    found, tables_then = iter([2.0, 1.25, 4.0, 5.0, 1.0]), []

    def ranks(model, *_):
        tables_then.append(model.entities.copy())
        return np.array([next(found)])

    monkeypatch.setattr("parts.link_training.ranks", ranks)
    with monkeypatch.context() as patch:
        patch.setattr("parts.link_training.Epoch", interrupted_at(18, example.Training.__init__.__globals__["Epoch"]))
        with pytest.raises(SystemExit, match="interrupted"):
            run(example, graph, tmp_path)
    assert len(tables_then) == 3
    run(example, graph, tmp_path)
    told = results(capsys)
    assert (told["epochs_trained"], told["best_epoch"], told["valid_mrr"]) == (20, 10, 0.8)
    kept = safetensors.numpy.load_file(tmp_path / "embeddings.safetensors")["entities"]
    np.testing.assert_array_equal(kept, tables_then[1])


def test_other_data_is_not_gone_on_with(example, graph, tmp_path, monkeypatch):
    copy = shutil.copytree(graph, tmp_path / "graph")
    with monkeypatch.context() as patch:
        patch.setattr("parts.link_training.Epoch", interrupted_at(8, example.Training.__init__.__globals__["Epoch"]))
        with pytest.raises(SystemExit, match="interrupted"):
            run(example, copy, tmp_path / "out")
    lines = (copy / "valid.txt").read_text(encoding="utf8").split("\n")
    (copy / "valid.txt").write_text("\n".join([*lines[1:], lines[0]]), encoding="utf8")
    with pytest.raises(SystemExit, match="other settings or data"):
        run(example, copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "argument --batch: expected a number from 1 to 1e+09, got 0"),
        (["--rho", "nan"], "argument --rho: expected a number from 0 to 0.99999, got nan"),
        (["--rank", "1.5"], "argument --rank: expected a whole number from 1 to 1e+09, got '1.5'"),
        (["--n3", "much"], "argument --n3: expected a number from 0 to 1e+09, got 'much'"),
        (["--optim", "lazy"], "unrecognized arguments: --optim lazy"),
        (["--model", "transe"], "argument --model: invalid choice: 'transe'"),
    ],
)
def test_wrong_options_are_refused(example, graph, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(example, graph, tmp_path, *options)
    assert message in capsys.readouterr().err


def test_what_cannot_be_trained_is_refused(example, graph, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"the training needs .* GiB, and .* GiB are free; take a smaller --rank"):
        run(example, graph, tmp_path, "--rank", "1000000000")
    with pytest.raises(SystemExit, match="expected a folder with train"):
        run(example, tmp_path / "nowhere", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("parts.link_training.Trainer.train_batch", lambda *_: math.inf)
        with pytest.raises(SystemExit, match="the loss became inf in epoch 1; try a smaller --learning-rate"):
            run(example, graph, tmp_path / "out")
    run(example, graph, tmp_path / "out", "--learning-rate", "0.01", "--epochs", "1")  # the smaller rate works
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"--out: expected a folder to write to, got .*file: File exists"):
        run(example, graph, tmp_path / "file")


def test_options_follow_the_graph(example, graph):
    graph = example.read_graph(graph)
    found = example.default_options(graph, 32)
    assert found == {"negatives": 40, "epochs": 550, "n3": pytest.approx(0.4 * 40 / 320)}
    assert example.default_options(graph, 2)["epochs"] == 35
    assert example.default_options(graph, 1)["epochs"] == 22
