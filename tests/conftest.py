"""Settings that must come before Numba is imported, profiles of Hypothesis, and fixtures of all tests."""

import atexit
import itertools
import os
import random
import shutil
import signal
import tempfile

os.environ.setdefault("NUMBA_NUM_THREADS", "4")  # thread counts beyond the machine's are tested too
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # more threads than cores must not spin while they wait
if "NUMBA_CACHE_DIR" not in os.environ:
    # A cached caller does not notice that a function in another file has changed; pytest-xdist's workers share this.
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="numba-cache-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

import hypothesis
import numba
import pytest

# What tests import and start; and files that mean nothing without checks of bounds.
collect_ignore = ["programs", "support", *([] if numba.config.BOUNDSCHECK else ["kernels/test_bounds.py"])]
if numba.config.DISABLE_JIT:
    # Tests that make no sense without compiled kernels.
    collect_ignore += ["runtime/test_interrupts.py", "runtime/test_whole_calls.py", "runtime/test_processes.py"]
    collect_ignore += ["runtime/test_signal_handlers.py"]
    # Programs that would take minutes each as plain Python; the run with compiled kernels starts them.
    collect_ignore += ["mpi", "distributed/test_sharded_table.py", "distributed/test_table_checkpoints.py"]
    collect_ignore += ["examples/test_decay_maps.py", "examples/test_distributed_word_vectors.py"]
    collect_ignore += ["examples/test_knowledge_graph.py", "examples/test_nist.py"]
    collect_ignore += ["examples/test_sparse_classifier.py", "examples/test_word_vectors.py"]
    collect_ignore += ["examples/test_stream_ids.py"]

hypothesis.settings.register_profile("default", deadline=None, max_examples=80, derandomize=True)
hypothesis.settings.register_profile("short", deadline=None, max_examples=10, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
# For mutants.py: the first failure will do, and need not be the simplest.
first = {"phases": [hypothesis.Phase.explicit, hypothesis.Phase.generate]}
hypothesis.settings.register_profile("first", hypothesis.settings.get_profile("default"), **first)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


SEED = int(os.environ.get("TEST_SEED", "0"))
"""Chooses what the short forms of long searches try, and which of the long ones CI runs."""

PART = int(os.environ.get("LONG_PART", "1"))
"""Of how many long tests one is run."""


def pytest_report_header():
    return f"TEST_SEED={SEED}" + (f" LONG_PART={PART}" if PART > 1 else "")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(config, items):
    """Keep one in ``LONG_PART`` tests, chosen by ``TEST_SEED``.

    Each file is left to one worker, since its tests compile the same; and all that share ranks.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            group = "ranks" if item.get_closest_marker("mpi") else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))
    if PART > 1:
        long = [k for k, item in enumerate(items) if item.get_closest_marker("long")]
        chosen = set(random.Random(SEED).sample(long, -(-len(long) // PART)))
        config.hook.pytest_deselected(items=[item for k, item in enumerate(items) if k not in chosen])
        items[:] = [item for k, item in enumerate(items) if k in chosen]


@pytest.fixture
def seed():
    return SEED


@pytest.fixture(params=[pytest.param(7, id="every 7th moment"), pytest.param(1, id="each", marks=pytest.mark.long)])
def moments(request):
    """Moments at which to interrupt a call: each of them, or every seventh, from one that the seed chooses."""
    return lambda: itertools.count(1 + SEED % request.param, request.param)


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _an_interrupt_raises():
    """Let Ctrl-C raise also where SIGINT was ignored from the start, as under nohup; started programs inherit it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def _a_short_table_as_plain_python():
    """Make the table of skip factors short: each change of a rate fills it anew, which is slow as plain Python."""
    with pytest.MonkeyPatch.context() as patch:
        if numba.config.DISABLE_JIT:
            patch.setattr("numba_rmsprop.kernels.skip_factors.TABLE_GAPS", 64)
            patch.setattr("numba_rmsprop.state.skipped_steps.TABLE_GAPS", 64)
        yield


@pytest.fixture(params=[1] if numba.config.DISABLE_JIT else [1, 2, 4])
def threads(request):
    numba.set_num_threads(request.param)
    return request.param


@pytest.fixture
def no_fit_may_start(monkeypatch):
    """Fail if a fit starts; for calls that must be refused before."""

    def run(*_):
        raise AssertionError("a fit has started")

    monkeypatch.setattr("numba_rmsprop.fitting.many_fits.run_workers", run)


@pytest.fixture
def launches(monkeypatch):
    """Make every step a parallel launch, however small."""
    monkeypatch.setattr("numba_rmsprop.runtime.launching.SERIAL_ITEMS", 0)
