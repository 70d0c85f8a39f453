"""The first import and the first step of a process, with an empty cache."""

import json
import time
from pathlib import Path

import numba
import pytest
from processes import finish, run, start

from numba_rmsprop.kernels import numba_cache


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
@pytest.mark.parametrize("processes", [2, pytest.param(8, marks=pytest.mark.long)])
def test_processes_may_start_together_on_an_empty_cache(processes, tmp_path):
    started = [start("take_first_step.py", NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(processes)]
    finished = [finish(process) for process in started]
    assert [done.returncode for done in finished] == [0] * processes
    assert all("the first calls are compiled" in line for done in finished for line in done.stderr.splitlines())
    assert len({done.stdout for done in finished}) == 1


def test_importing_starts_no_threads_and_compiles_nothing(tmp_path):
    done = run("import_module.py", "numba_rmsprop", options=["-W", "error"], NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["threads"] == 1
    assert not {"scipy.optimize", "tqdm", "matplotlib", "torch"} & set(found["modules"])
    assert not list(tmp_path.rglob("*.nbi"))


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
@pytest.mark.parametrize("kind", ["rows", "small"])
def test_a_second_step_compiles_nothing(kind):
    first, second, third = map(int, run("take_second_step.py", kind).stdout.split())
    assert 0 < first == second == third


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
@pytest.mark.long
def test_kernels_compiled_ahead_are_not_compiled_at_the_first_step(tmp_path):
    ahead = run("compile_ahead.py", "--variants", "plain", NUMBA_CACHE_DIR=str(tmp_path))
    assert ahead.returncode == 0, ahead.stderr
    assert "10/10" in ahead.stderr
    folder = Path(ahead.stdout.split()[-1])
    assert tmp_path in folder.parents
    kept = sorted(folder.iterdir())
    done = run("take_first_step.py", NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(folder.iterdir()) == kept


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
def test_two_rules_have_code_of_their_own_on_the_disk(tmp_path):
    compiled = run("take_steps_of_two_rules.py", "0", "1", NUMBA_CACHE_DIR=str(tmp_path))
    kept = sorted(tmp_path.rglob("*.nbc"))
    assert any("step_rows_AVERAGED_RMSPROP" in path.name for path in kept)
    loaded = run("take_steps_of_two_rules.py", "1", "0", NUMBA_CACHE_DIR=str(tmp_path))
    assert sorted(tmp_path.rglob("*.nbc")) == kept
    assert compiled.stdout == loaded.stdout != ""


def test_a_slow_compilation_is_told_of_once(monkeypatch, caplog):
    monkeypatch.setattr(numba_cache, "_told", False)
    began = time.monotonic() - numba_cache.SLOW
    numba_cache.tell_if_slow(time.monotonic() + 60, "...")
    assert not caplog.records
    for _ in range(2):
        numba_cache.tell_if_slow(began, "It is kept in a folder.")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("numba_rmsprop", "WARNING")
    assert "It is kept in a folder. This line goes with" in record.getMessage()
