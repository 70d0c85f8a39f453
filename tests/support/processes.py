"""Programs in processes of their own, which may die."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


TIME_LIMIT = 150
"""Seconds until a program counts as hanging: well beyond the first one, which compiles."""


can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def finish(program, layer="default", options=(), folder=HERE, **environment):
    """Run a program in a folder; return its exit status and what it wrote, or fail if it hangs."""
    libraries = [os.path.join(sys.prefix, "lib"), os.environ.get("LD_LIBRARY_PATH", "")]  # where pip puts tbb's
    set_here = {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)), "NUMBA_THREADING_LAYER": layer}
    process = subprocess.Popen(
        [sys.executable, *options, "-c", program],
        cwd=folder,
        env=os.environ | set_here | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=TIME_LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that hang, too
    return process.returncode, printed, errors


def results(program, layer="default", **environment):
    """Run a program that must end well, and return what it printed last, which is JSON."""
    status, printed, errors = finish(program, layer, **environment)
    if "No threading layer could be loaded" in errors:
        pytest.skip(f"Numba cannot load the threading layer {layer} here")
    assert status == 0, errors
    return json.loads(printed.splitlines()[-1])  # Numba's tbb layer prints lines of its own at a fork
