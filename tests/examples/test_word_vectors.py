"""The word-vector example: the same seed gives the same bits, also after a kill."""

import json
import os
import subprocess
import time

import pytest
import safetensors.numpy
from word_vectors_program import WORDS, command


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 12)) for i in range(400)]
    path.write_text("\n".join(lines), encoding="utf8")
    return path


@pytest.fixture(scope="module")
def environment():
    # as plain Python it would take minutes; how it computes is the library's, which is tested both ways
    return os.environ | {"NUMBA_DISABLE_JIT": "0"}


def run(text, out, environment, *options):
    return subprocess.run(command(text, out, *options), env=environment, capture_output=True, text=True, check=False)


def test_a_killed_training_comes_to_the_same_bits(text, tmp_path, environment):
    done = run(text, tmp_path / "whole", environment)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["words_per_second"] > 0
    assert (tmp_path / "whole" / "map.png").stat().st_size > 10_000
    vocabulary = (tmp_path / "whole" / "vocabulary.txt").read_text(encoding="utf8").split()
    assert sorted(vocabulary) == sorted(set(WORDS) - {"a"})

    killed = subprocess.Popen(
        command(text, tmp_path / "killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "killed" / "checkpoint"
    while killed.poll() is None and not list(folder.glob("*.safetensors")):
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert list(folder.glob("*.safetensors")), "the training ended before it could be killed"
    assert "other settings" in run(text, tmp_path / "killed", environment, "--seed", "2").stderr
    resumed = run(text, tmp_path / "killed", environment)
    assert "going on from step" in resumed.stdout, resumed.stderr
    whole, again = (
        safetensors.numpy.load_file(tmp_path / name / "vectors.safetensors") for name in ("whole", "killed")
    )
    assert whole["vectors"].tobytes() == again["vectors"].tobytes()


def test_a_text_that_is_too_short_is_refused(tmp_path, environment):
    (tmp_path / "text").write_text("one two three", encoding="utf8")
    done = run(tmp_path / "text", tmp_path / "out", environment)
    assert done.returncode == 1
    assert "expected at least 2 words that occur 5 times, got 0" in done.stderr
