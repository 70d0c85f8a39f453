"""Example compare_embedding_optimizers.py: the knowledge graph trained with each of several optimizers."""

import json
import signal
import sys

import numba
import pytest

torch = pytest.importorskip("torch")
if numba.config.DISABLE_JIT:
    pytest.skip("plain Python would take minutes; how it computes is tested both ways", allow_module_level=True)

from example_programs import EXAMPLES

MEASURED = ("valid_mrr", "test_mrr", "optimizer_seconds_per_epoch")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Make a graph of seats around a table, each related to seats further on."""
    folder = tmp_path_factory.mktemp("graph")
    triples = [f"seat {i}\t{step} further\tseat {(i + step) % 20}" for step in (1, 2, 3, 10) for i in range(20)]
    for part, lines in (("train", triples), ("valid", triples[::4]), ("test", triples[1::4])):
        (folder / f"{part}.txt").write_text("\n".join(lines), encoding="utf8")
    return folder


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import compare_embedding_optimizers

        yield compare_embedding_optimizers


def run(program, graph, out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [
            *("program.py", str(graph), "--out", str(out), "--rank", "8", "--negatives", "4", "--batch", "16"),
            *("--epochs", "6", "--n3", "0.01", "--every", "3", "--checkpoint-every", "2", *options),
        ])  # fmt: skip
        program.main()


def results(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("optimizer", ["adagrad", "sparse-adam"])
def test_an_interrupted_training_comes_to_the_same_bits(example, graph, tmp_path, monkeypatch, capsys, optimizer):
    from parts import link_training

    program, options = example.knowledge_graph, ["--optimizer", optimizer, "--learning-rate", "0.05"]
    run(program, graph, tmp_path / "whole", *options)
    assert results(capsys)["test_mrr"] > 0.5  # by chance, 0.18
    train_batch, losses = link_training.Trainer.train_batch, []

    def interrupted(self, opt, batch):
        losses.append(train_batch(self, opt, batch))
        if len(losses) == 25:
            signal.raise_signal(signal.SIGINT)
        return losses[-1]

    with monkeypatch.context() as patch:
        patch.setattr(link_training.Trainer, "train_batch", interrupted)
        with pytest.raises(SystemExit, match="interrupted; the same command goes on"):
            run(program, graph, tmp_path / "cut", *options)
    run(program, graph, tmp_path / "cut", *options)
    assert "going on from step" in capsys.readouterr().out
    whole, cut = ((tmp_path / name / "embeddings.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_each_optimizer_takes_the_best_rate(example, graph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "RATES", dict.fromkeys(example.RATES, (1e-09, 0.05)))
    seeds = ["--seeds", "1", "2", "--checkpoint-every", "100"]
    run(example, graph, tmp_path, *seeds)
    told = results(capsys)
    assert list(told) == list(example.NAMES)
    for trials in told.values():
        assert [trial["learning_rate"] for trial in trials] == [0.05, 0.05]
        assert [trial["seed"] for trial in trials] == [1, 2]
    for exact, dense in zip(told["exact"], told["dense"], strict=True):
        assert exact["valid_mrr"] == pytest.approx(dense["valid_mrr"], abs=0.01)
    assert (tmp_path / "optimizers.png").stat().st_size > 10_000

    monkeypatch.setattr(example.knowledge_graph, "run", lambda _: pytest.fail("trains again"))
    run(example, graph, tmp_path, *seeds)
    assert results(capsys) == told
    with pytest.raises(SystemExit, match="other settings"):
        run(example, graph, tmp_path, *seeds, "--init", "0.1")


def test_options_that_are_compared_cannot_be_given(example, graph, tmp_path, capsys):
    for option in ("--learning-rate", "--optimizer", "--seed"):
        with pytest.raises(SystemExit):
            run(example, graph, tmp_path, f"{option}=1")
        assert f"expected no {option}: that is what is compared" in capsys.readouterr().err


def test_a_rate_that_diverges_is_not_taken(example, graph, tmp_path, monkeypatch, capsys):
    def train(arguments):
        arguments.out.mkdir(parents=True)
        if arguments.learning_rate == 0.5:
            raise example.DivergedError("the loss became inf")
        return {"learning_rate": arguments.learning_rate} | dict.fromkeys(MEASURED, 0.5)

    monkeypatch.setattr(example, "RATES", dict.fromkeys(example.RATES, (0.5, 0.1)))
    monkeypatch.setattr(example.knowledge_graph, "run", train)
    run(example, graph, tmp_path)
    assert {trial["learning_rate"] for trials in results(capsys).values() for trial in trials} == {0.1}


def test_the_results_of_other_data_are_not_taken(example, graph, tmp_path, monkeypatch):
    def train(arguments):
        arguments.out.mkdir(parents=True)
        return {"learning_rate": 0.1} | dict.fromkeys(MEASURED, 0.5)

    monkeypatch.setattr(example.knowledge_graph, "run", train)
    run(example, graph, tmp_path / "out")
    with pytest.raises(SystemExit, match="other settings"):
        run(example, tmp_path, tmp_path / "out")


def test_optimizers_of_the_recommender(example, tmp_path, monkeypatch, capsys):
    """Each is chosen by what is held out of the training part, and told by the test part."""
    (tmp_path / "data").mkdir()
    for part, places in (("train", (0, 1, 2, 5, 6)), ("test", (3, 4))):
        lines = [" ".join(map(str, [user, *((user + place) % 90 for place in places)])) for user in range(90)]
        (tmp_path / "data" / f"{part}.txt").write_text("\n".join(lines))
    monkeypatch.setattr(example, "RATES", dict.fromkeys(example.RATES, (1e-09, 0.05)))
    monkeypatch.setattr(sys, "argv", [
        *("program.py", str(tmp_path / "data"), "--recommender", "--out", str(tmp_path / "out"), "--rank", "8"),
        *("--negatives", "8", "--batch", "8", "--epochs", "20", "--every", "10", "--seeds", "1"),
    ])  # fmt: skip
    example.main()
    shown = capsys.readouterr().out
    assert shown.count("| RMSprop") == 4
    told = json.loads(shown.splitlines()[-1])
    assert list(told) == list(example.NAMES)
    for (trial,) in told.values():
        assert (trial["learning_rate"], trial["asked"]) == (0.05, "test")
    assert told["exact"][0]["recall@20"] == pytest.approx(told["dense"][0]["recall@20"], abs=0.05)
    assert told["rowwise"][0]["form"] == "rowwise"
