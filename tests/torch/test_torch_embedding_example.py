"""Example torch_embedding.py: it learns, the same seed gives the same bits, and Ctrl-C loses no checkpoint."""

import json
import signal
import sys

import numba
import pytest

torch = pytest.importorskip("torch")
if numba.config.DISABLE_JIT:
    pytest.skip("plain Python would take minutes; how it computes is tested both ways", allow_module_level=True)

from example_programs import EXAMPLES

WORDS = [f"{first}{second}" for first in ("ca", "do", "hi", "ra", "so") for second in ("ll", "n", "t", "w")]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    # Words follow their neighbours in the list, so there is something to learn.
    lines = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(1, 12)) for i in range(200)]
    path.write_text("\n".join(lines), encoding="utf8")
    return path


@pytest.fixture(scope="module")
def example():
    """Import the program in this process, since each new one would take seconds to import torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import torch_embedding

        yield torch_embedding


def run(example, text, out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [
            *("torch_embedding.py", "--text", str(text), "--out", str(out), "--dim", "8", "--batch", "16"),
            *("--window", "2", "--sample", "1", "--epochs", "2", "--checkpoint-every", "1", "--momentum", "0.9"),
            *("--lr", "0.01", "--adam-lr", "0.03", *options),
        ])  # fmt: skip
        example.main()


def load(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def flat(value, name=""):
    """Yield the (name, value) pairs of nested dicts and lists, without the seconds, which differ from run to run."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            if key == "curve":
                yield f"{name}/losses", [loss for _, loss in each]
            elif key not in ("passes", "stepping"):
                yield from flat(each, f"{name}/{key}")
    else:
        yield name, value


@pytest.fixture(scope="module")
def whole(example, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(example, text, out)
    return out


def test_it_learns_and_shows_it(example, text, whole, capsys):
    run(example, text, whole)  # a second run in a folder whose trials are complete
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (whole / "torch_embedding.png").stat().st_size > 10_000
    found = load(whole)["trials"]
    assert set(found) == set(results) == {"RMSprop", "SparseAdam"}
    for name, trial in found.items():
        losses = [loss for _, loss in trial["curve"]]
        assert losses[-1] < 0.8 * losses[0], name
        assert results[name]["held_out_loss"] == round(losses[-1], 4)
        assert results[name]["ms_step"] > 0
        assert results[name]["ms_forward_backward"] > 0
    first, second = (trial["curve"][0][1] for trial in found.values())
    assert first == second, "both start from the same tables"


def test_an_interrupted_training_comes_to_the_same_bits(example, text, whole, tmp_path, monkeypatch, capsys):
    save = example.save

    def save_and_interrupt(trials, settings, out, place):
        save(trials, settings, out, place)
        if place == (0, 2):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(example, "save", save_and_interrupt)
        with pytest.raises(SystemExit, match="interrupted; the same command goes on"):
            run(example, text, tmp_path)
    assert 0 < load(tmp_path)["trials"]["RMSprop"]["steps"] < load(whole)["trials"]["RMSprop"]["steps"]

    with pytest.raises(SystemExit, match="other settings"):
        run(example, text, tmp_path, "--seed", "2")
    run(example, text, tmp_path)
    assert "going on from block 3 of epoch 1" in capsys.readouterr().out
    expected, found = (dict(flat(load(out))) for out in (whole, tmp_path))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name]
        assert same, name


def test_each_optimizer_chooses_its_learning_rate(example, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "RATES", (1e-6, 0.02))
    run(example, text, tmp_path, "--tune", "--epochs", "1")
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [told["learning_rate"] for told in results.values()] == [0.02, 0.02]


def test_a_text_that_is_too_short_is_refused(example, tmp_path):
    (tmp_path / "text").write_text("one two three", encoding="utf8")
    with pytest.raises(SystemExit, match="too short"):
        run(example, tmp_path / "text", tmp_path / "out")
