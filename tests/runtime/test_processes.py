"""Threads and processes, under each of Numba's threading layers; each test is a process of its own, which may die."""

import importlib.util
import os
import pathlib
import shutil
import sys

import numba
import pytest
from processes import can_fork, finish, results

from numba_rmsprop.kernels import jit

LAYERS = ("workqueue", "omp", "tbb")


@pytest.fixture(scope="module")
def expected():
    """Return the digests of training without any launch, one for each seed."""
    return results("""
import json, every_step
every_step.threads.SERIAL_ITEMS = 10**9
print(json.dumps([every_step.trained(seed) for seed in range(4)]))
every_step.threads.numba.get_num_threads()
""")


@pytest.mark.parametrize("layer", LAYERS)
def test_threads_with_optimizers_of_their_own_and_a_shared_one(layer, expected):
    own, shared, used = results(
        """
import json, numba
from every_step import digest, in_threads, make_optimizer, train, trained

def on_some_threads(seed):
    numba.set_num_threads(1 + seed % numba.config.NUMBA_NUM_THREADS)
    return trained(seed)

opt = make_optimizer()
own = in_threads(on_some_threads, range(4))
shared = [digest(opt, arrays) for arrays in in_threads(lambda seed: train(opt, seed), range(4))]
print(json.dumps([own, shared, numba.threading_layer()]))
""",
        layer,
    )
    assert used == layer
    assert own == expected
    assert shared == expected


def test_one_thread(expected):
    program = "import json, every_step; print(json.dumps(every_step.trained(0)))"
    assert results(program, NUMBA_NUM_THREADS="1") == expected[0]


@can_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_forks_before_and_after_a_launch_and_forks_of_forks(layer, expected):
    early, parent, child, grandchild, used = results(
        """
import json, multiprocessing, numba
from every_step import digest, make_optimizer, threads, train, trained

fork = multiprocessing.get_context("fork")

def forked(function):
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(function()))
    child.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    child.join()
    return [child.exitcode, result]

def go_on():
    return [digest(opt, arrays), trained(1), threads.workers_for(10**9)]

early = forked(lambda: [trained(0), numba.threading_layer()])
opt = make_optimizer()
arrays = train(opt, 0)
child = forked(go_on)
grandchild = forked(lambda: [trained(2), forked(go_on)])
print(json.dumps([early, go_on(), child, grandchild, numba.threading_layer()]))
""",
        layer,
    )
    assert used == layer
    assert early == [0, [expected[0], layer]]
    assert parent == [expected[0], expected[1], numba.config.NUMBA_NUM_THREADS]
    assert child == [0, [expected[0], expected[1], 1]]
    assert grandchild == [0, [expected[2], child]]


@can_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_forks_while_another_thread_steps(layer, expected):
    statuses, digest = results(
        """
import json, os, sys, threading
import numpy as np
from every_step import RMSprop, in_threads, trained

opt, var, grad = RMSprop(0.01, momentum=0.9), np.ones(1_000_000, np.float32), np.ones(1_000_000, np.float32)
stop = threading.Event()

def keep_stepping():
    while not stop.is_set():
        opt.apply_gradients([(grad, var)])

def work():
    opt.apply_gradients([(grad, var)])
    rms = opt.get_slot(var, "rms")
    return (var == var[0]).all() and (rms == rms[0]).all()  # nothing was left half done

digest = trained(0)
thread = threading.Thread(target=keep_stepping)
thread.start()
statuses = []
for _ in range(15):
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    statuses.append(os.waitpid(child, 0)[1])
child = os.fork()
if child == 0:
    os._exit(0 if in_threads(trained, [0]) == [digest] else 1)
statuses.append(os.waitpid(child, 0)[1])
stop.set()
thread.join()
print(json.dumps([statuses, digest]))
""",
        layer,
    )
    assert statuses == [0] * 16
    assert digest == expected[0]


@can_fork
def test_a_fork_waits_for_the_compiler():
    status = results("""
import json, os, threading, time
import numba
import numba_rmsprop

holds, forks = threading.Event(), threading.Event()

def compile_something():
    with numba.core.compiler_lock.global_compiler_lock:
        holds.set()
        forks.wait()
        time.sleep(0.2)  # for as long as it takes to get from forks.set() to the fork

thread = threading.Thread(target=compile_something)
thread.start()
holds.wait()
forks.set()
child = os.fork()
if child == 0:
    os._exit(numba.njit(lambda x: x - 1)(1))
print(json.dumps(os.waitpid(child, 0)[1]))
thread.join()
""")
    assert status == 0


@can_fork
def test_a_step_may_fork():
    statuses = results("""
import json, os
import numpy as np
from numba_rmsprop import RMSprop

statuses = []

def rate():
    child = os.fork()
    if child == 0:
        RMSprop(momentum=0.9).apply_gradients([(np.ones(3, np.float32), np.ones(3, np.float32))])
        os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
    return 0.1

opt = RMSprop(rate, momentum=0.9)
for _ in range(2):
    opt.apply_gradients([(np.ones(3, np.float32), np.ones(3, np.float32))])
print(json.dumps(statuses))
""")
    assert statuses == [0, 0]


def test_spawned_processes(expected):
    assert (
        results("""
import json, multiprocessing, every_step
mine = every_step.trained(0)
with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(json.dumps([mine, *pool.map(every_step.trained, (1, 2, 3))]))
""")
        == expected
    )


def test_joblib(expected):
    assert (
        results("""
import json, joblib, every_step
mine = every_step.trained(0)
others = joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(every_step.trained)(seed) for seed in (1, 2, 3))
print(json.dumps([mine, *others]))
""")
        == expected
    )


@can_fork
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_torch_data_loader_with_workers(expected):
    assert (
        results(
            """
import json, torch, every_step

class Trained(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, k):
        return every_step.trained(k + 1)

mine = every_step.trained(0)
loader = torch.utils.data.DataLoader(Trained(), batch_size=None, num_workers=2, multiprocessing_context="fork")
print(json.dumps([mine, *loader]))
""",
            "omp",  # the layer that kills a forked process
        )
        == expected
    )


ONE_STEP = """
import numpy as np
var = np.ones(3)
assert RMSprop(0.1, rho=0.75).apply_gradients([(np.ones(3), var)]) == 1
assert abs(var - 0.8).max() < 1e-6, var
"""


def warnings_of_one_step(spoil="", **settings):
    program = "from numba_rmsprop import RMSprop\n" + spoil + ONE_STEP
    status, _, errors = finish(program, options=["-W", "always"], **settings)
    assert status == 0, errors
    return [line for line in errors.splitlines() if "Warning" in line]


def test_no_cache_folder_can_be_written(tmp_path):
    package = tmp_path / "numba_rmsprop"
    shutil.copytree(pathlib.Path(jit.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (package, package / "kernels"):
        (folder / "__pycache__").write_text("a file, where a folder would be")
    (warning,) = warnings_of_one_step(folder=tmp_path, NUMBA_CACHE_DIR="", HOME=os.devnull, XDG_CACHE_HOME=os.devnull)
    assert "Set NUMBA_CACHE_DIR to a writable folder" in warning


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
"""

VANISHED_FOLDER = """
import os, shutil
folder = os.environ["NUMBA_CACHE_DIR"]
shutil.rmtree(folder)
open(folder, "x").close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit, and keeps folders in use")
@pytest.mark.parametrize("spoil", [FULL_DISK, VANISHED_FOLDER], ids=["full", "vanished"])
def test_a_cache_that_fails_after_the_import(spoil, tmp_path):
    (warning,) = warnings_of_one_step(spoil, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert str(tmp_path / "cache") in warning


TYPES_AT_ONCE = """
import importlib, json, multiprocessing, os, sys
from numba.core.caching import IndexDataCacheFile

sys.path.insert(0, os.environ["FOLDER"])
numbers = [21, 21.5, True]
barrier = multiprocessing.get_context("fork").Barrier(len(numbers))

def in_turn(name, turn):
    "Let the processes write one after the other, when all of them are about to write."
    write = getattr(IndexDataCacheFile, name)
    def written(*arguments):
        for k in range(len(numbers)):
            barrier.wait()
            if k == turn:
                write(*arguments)
        barrier.wait()
    setattr(IndexDataCacheFile, name, written)

module = importlib.import_module("module")  # forked processes share what it has made
children = []
for k, number in enumerate(numbers):
    children.append(os.fork())
    if not children[-1]:
        in_turn("_save_index", k)
        in_turn("_save_data", len(numbers) - 1 - k)
        os._exit(module.twice(number) != 2 * number)
print(json.dumps([[os.waitpid(child, 0)[1] for child in children], [module.twice(number) for number in numbers]]))
"""


def write_module(folder):
    path = folder / "module.py"
    path.write_text("from numba_rmsprop.kernels.jit import compiled\n@compiled\ndef twice(x):\n    return 2 * x\n")
    return path


@can_fork
def test_processes_that_compile_one_function_for_different_types_at_once(tmp_path):
    """As they do on an empty cache: each writes its index, then its code."""
    write_module(tmp_path)
    statuses, doubled = results(TYPES_AT_ONCE, NUMBA_CACHE_DIR=str(tmp_path / "cache"), FOLDER=str(tmp_path))
    assert statuses == [0, 0, 0]
    assert doubled == [42, 43.0, 2]


def import_anew(folder):
    """Import a module with compiled functions as another process would."""
    spec = importlib.util.spec_from_file_location("module", write_module(folder))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_anew(folder):
    """Import a module with a compiled function anew, and call it; return how often Numba found it in its cache."""
    module = import_anew(folder)
    assert module.twice(21) == 42
    return sum(module.twice.stats.cache_hits.values())


def test_code_for_other_types_counts_as_not_found(tmp_path, monkeypatch):
    """An older version may have left an index that gives two signatures one file."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    assert [import_anew(tmp_path).twice(number) for number in (21, 21.5)] == [42, 43.0]
    first, second = (tmp_path / "cache").rglob("*.nbc")
    shutil.copy(first, second)
    hits = []
    for _ in range(3):  # once it is found out, all are compiled anew, into files of their own
        module = import_anew(tmp_path)
        assert [module.twice(number) for number in (21, 21.5)] == [42, 43.0]
        hits.append(sum(module.twice.stats.cache_hits.values()))
    assert hits[0] < hits[-1] == 2


def test_the_cache_is_used_and_may_be_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_warned", False)
    assert [call_anew(tmp_path) for _ in range(2)] == [0, 1]
    (index,) = (tmp_path / "cache").rglob("*.nbi")
    index.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="cannot keep compiled code") as caught:
        assert [call_anew(tmp_path) for _ in range(2)] == [0, 0]
    assert len(caught) == 1


def test_a_cache_that_fails_raises_nothing_where_warnings_are_errors(monkeypatch, capsys):
    """As they are in these tests: a step of several variables must not end in the middle."""
    monkeypatch.setattr(jit, "_warned", False)
    jit._warn_once("the disk is full")
    assert "the disk is full" in capsys.readouterr().err
