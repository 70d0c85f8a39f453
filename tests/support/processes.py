"""Start the programs in tests/programs, each in a process of its own, which may be killed or hang."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[1] / "programs"

TIME_LIMIT = 300
"""Seconds after which a program counts as hanging: far more than the first one needs, which compiles."""

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def start(program, *arguments, options=(), **environment):
    """Start a program with Python's ``options`` and more environment variables; it imports what the tests can."""
    libraries = [os.path.join(sys.prefix, "lib"), os.environ.get("LD_LIBRARY_PATH", "")]  # where pip puts tbb's
    paths = {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *options, PROGRAMS / program, *map(str, arguments)],
        env=os.environ | paths | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Wait until a program ends, and return it with its output; kill it and its children if it hangs."""
    try:
        printed, errors = process.communicate(timeout=TIME_LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


def run(program, *arguments, **settings):
    """Run a program to its end, whatever that is."""
    return finish(start(program, *arguments, **settings))


def results(program, *arguments, layer="helpers", **settings):
    """Run a program that must succeed; return the JSON that it printed last.

    ``layer`` is one of Numba's threading layers, or "helpers" for threads of our own.
    """
    if layer != "helpers":
        settings |= {"NUMBA_RMSPROP_THREADS": "numba", "NUMBA_THREADING_LAYER": layer}
    done = run(program, *arguments, **settings)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"Numba cannot load the threading layer {layer} here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # Numba's tbb layer prints lines of its own at a fork
