"""Threads, forks and worker processes, with helpers and with Numba's threads, and Numba's cache on disk."""

import importlib.util
import os
import pathlib
import shutil
import sys

import numba
import pytest
from processes import can_fork, results, run

from numba_rmsprop.kernels import jit, numba_cache
from numba_rmsprop.runtime import helpers

# omp kills a forked process that launches; workqueue and tbb are tried with the long searches.
LAYERS = ["helpers", "omp", *(pytest.param(layer, marks=pytest.mark.long) for layer in ("workqueue", "tbb"))]
if not helpers.AVAILABLE:
    del LAYERS[0]


@pytest.fixture(scope="module")
def expected():
    """Return the digests of training on one thread, one for each seed."""
    return results("train.py", "--serial", 0, 1, 2, 3)


@pytest.mark.parametrize("layer", LAYERS)
def test_threads_with_optimizers_of_their_own_and_a_shared_one(layer, expected):
    own, shared, used = results("train_in_threads.py", layer=layer)
    assert used == layer or layer == "helpers"  # it sets Numba's number of threads, for which Numba starts its own
    assert own == expected
    assert shared == expected


def test_one_thread(expected):
    assert results("train.py", 0, NUMBA_NUM_THREADS="1") == expected[:1]


@can_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_forks_before_and_after_a_launch_and_forks_of_forks(layer, expected):
    early, parent, child, grandchild, used = results("train_in_forks.py", layer=layer)
    assert used == layer
    assert early == [0, [expected[0], layer]]
    assert parent == [expected[0], expected[1], numba.config.NUMBA_NUM_THREADS]
    threads = numba.config.NUMBA_NUM_THREADS if layer == "helpers" else 1
    assert child == [0, [expected[0], expected[1], threads]]
    assert grandchild == [0, [expected[2], child]]


@can_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_forks_while_another_thread_steps(layer, expected):
    statuses, digest = results("fork_while_stepping.py", layer=layer)
    assert statuses == [0] * 16
    assert digest == expected[0]


@can_fork
def test_a_fork_waits_for_the_compiler():
    assert results("fork_while_compiling.py") == 0


@can_fork
def test_a_step_may_fork():
    assert results("fork_within_a_step.py") == [0, 0]


def test_spawned_processes(expected):
    assert results("train_in_workers.py", "spawn") == expected


def test_joblib(expected):
    assert results("train_in_workers.py", "joblib") == expected


@can_fork
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_torch_data_loader_with_workers(expected):
    assert results("train_in_workers.py", "data_loader", layer="omp") == expected


def warnings_of_one_step(*spoil, **environment):
    done = run("step_without_cache.py", *spoil, options=["-W", "always"], **environment)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "Warning" in line]


def test_no_cache_folder_can_be_written(tmp_path):
    package = tmp_path / "numba_rmsprop"
    shutil.copytree(pathlib.Path(jit.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (package, package / "kernels"):
        (folder / "__pycache__").write_text("a file, where a folder would be")
    environment = {"NUMBA_CACHE_DIR": "", "HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    (warning,) = warnings_of_one_step(**environment)
    assert "Set NUMBA_CACHE_DIR to a writable folder" in warning


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit, and keeps folders in use")
@pytest.mark.parametrize("spoil", ["full_disk", "no_folder"])
def test_a_cache_that_fails_after_the_import(spoil, tmp_path):
    (warning,) = warnings_of_one_step(spoil, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert str(tmp_path / "cache") in warning


def write_module(folder):
    path = folder / "module.py"
    path.write_text("from numba_rmsprop.kernels.jit import compiled\n@compiled\ndef twice(x):\n    return 2 * x\n")
    return path


@can_fork
def test_processes_that_compile_one_function_for_different_types_at_once(tmp_path):
    """On an empty cache each process writes its index, then its code; here all do so at the same time."""
    write_module(tmp_path)
    statuses, doubled = results("compile_in_forks.py", tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert statuses == [0, 0, 0]
    assert doubled == [42, 43.0, 2]


def import_anew(folder):
    """Import a module with a compiled function as a new process would."""
    spec = importlib.util.spec_from_file_location("module", write_module(folder))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_anew(folder):
    """Import the module anew and call the function; return the number of hits in Numba's cache."""
    module = import_anew(folder)
    assert module.twice(21) == 42
    return sum(module.twice.stats.cache_hits.values())


def test_code_for_other_types_counts_as_not_found(tmp_path, monkeypatch):
    """An older version may have left an index that names one file for two signatures."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    assert [import_anew(tmp_path).twice(number) for number in (21, 21.5)] == [42, 43.0]
    first, second = (tmp_path / "cache").rglob("*.nbc")
    shutil.copy(first, second)
    hits = []
    for _ in range(3):  # the first import finds out, and all is compiled anew into separate files
        module = import_anew(tmp_path)
        assert [module.twice(number) for number in (21, 21.5)] == [42, 43.0]
        hits.append(sum(module.twice.stats.cache_hits.values()))
    assert hits[0] < hits[-1] == 2


def test_the_cache_is_used_and_may_be_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba_cache, "_warned", False)
    assert [call_anew(tmp_path) for _ in range(2)] == [0, 1]
    (index,) = (tmp_path / "cache").rglob("*.nbi")
    index.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="cannot keep compiled code") as caught:
        assert [call_anew(tmp_path) for _ in range(2)] == [0, 0]
    assert len(caught) == 1


def test_another_cache_of_numba_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba_cache, "IS_AS_EXPECTED", False)
    assert [call_anew(tmp_path) for _ in range(2)] == [0, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps folders in use")
def test_a_cache_that_fails_raises_nothing_where_warnings_are_errors(tmp_path):
    """A warning that raised would end a step of several variables in the middle."""
    cache = str(tmp_path / "cache")
    done = run("step_without_cache.py", "no_folder", options=["-W", "error"], NUMBA_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr
    assert cache in done.stderr
