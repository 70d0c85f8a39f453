"""Example word_vectors.py: the same seed gives the same bits, also after a kill."""

import json
import time

import pytest
import safetensors.numpy
from example_programs import WORDS, run_example, start_example, word_vectors_arguments, write_text
from processes import finish


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    write_text(path)
    return path


def run(*options):
    return run_example("word_vectors.py", *word_vectors_arguments(*options))


def test_a_killed_training_comes_to_the_same_bits(text, tmp_path):
    done = run(text, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["words_per_second"] > 0
    assert (tmp_path / "whole" / "map.png").stat().st_size > 10_000
    vocabulary = (tmp_path / "whole" / "vocabulary.txt").read_text(encoding="utf8").split()
    assert sorted(vocabulary) == sorted(set(WORDS) - {"a"})

    killed = start_example("word_vectors.py", *word_vectors_arguments(text, tmp_path / "killed"))
    folder = tmp_path / "killed" / "checkpoint"
    while killed.poll() is None and not list(folder.glob("*.safetensors")):
        time.sleep(0.001)
    killed.kill()
    finish(killed)
    assert list(folder.glob("*.safetensors")), "the training ended before it could be killed"
    assert "other settings" in run(text, tmp_path / "killed", "--seed", "2").stderr
    resumed = run(text, tmp_path / "killed")
    assert "going on from step" in resumed.stdout, resumed.stderr
    whole, again = (
        safetensors.numpy.load_file(tmp_path / name / "vectors.safetensors") for name in ("whole", "killed")
    )
    assert whole["vectors"].tobytes() == again["vectors"].tobytes()


def test_a_text_that_is_too_short_is_refused(tmp_path):
    (tmp_path / "text").write_text("one two three", encoding="utf8")
    done = run(tmp_path / "text", tmp_path / "out")
    assert done.returncode == 1
    assert "expected at least 2 words that occur 5 times, got 0" in done.stderr
