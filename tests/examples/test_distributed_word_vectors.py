"""Example distributed_word_vectors.py: several ranks give the bits of one process, also after one is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.numpy
from example_programs import EXAMPLES, run_example, word_vectors_arguments, write_text
from on_ranks import ENVIRONMENT, MPIEXEC, finish, needs_mpi

pytestmark = [pytest.mark.mpi, needs_mpi]


def start(text, out, ranks):
    program = [EXAMPLES / "distributed_word_vectors.py", *word_vectors_arguments(text, out)]
    return subprocess.Popen(
        [MPIEXEC, "--bind-to", "none", "-n", str(ranks), sys.executable, *program],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells which processes the ranks are")
def test_the_bits_of_one_process_after_a_kill_and_on_another_number_of_ranks(tmp_path):
    text = tmp_path / "text.txt"
    write_text(text)
    alone = run_example("word_vectors.py", *word_vectors_arguments(text, tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr

    process = start(text, tmp_path / "ranks", 2)
    saves = tmp_path / "ranks" / "distributed"
    while process.poll() is None and not list(saves.glob("*/manifest.json")):
        time.sleep(0.001)
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    status, _, errors = finish(process)
    assert status != 0
    assert "signal 9" in errors
    assert list(saves.glob("*/manifest.json")), "the training ended before it could be killed"

    status, printed, errors = finish(start(text, tmp_path / "ranks", 3))
    assert status == 0, errors
    assert printed.count("going on from step") == 1
    assert " words/s" in errors  # the progress bar
    vectors = [
        safetensors.numpy.load_file(tmp_path / name / "vectors.safetensors")["vectors"] for name in ("alone", "ranks")
    ]
    assert vectors[0].tobytes() == vectors[1].tobytes()
    assert (tmp_path / "ranks" / "map.png").stat().st_size > 10_000
    assert not saves.exists()
