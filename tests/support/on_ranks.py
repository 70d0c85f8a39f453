"""Functions of tests/programs that run on several ranks, started with mpiexec."""

import atexit
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from importlib.util import find_spec

import pytest

SUPPORT = pathlib.Path(__file__).parent
PROGRAMS = SUPPORT.parent / "programs"
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ["PATH"]]))
LIMIT = 200
"""Seconds after which a program counts as hanging; one that compiles takes far less."""

needs_mpi = pytest.mark.skipif(
    not find_spec("mpi4py") or MPIEXEC is None, reason="needs mpi4py and mpiexec: pip install '.[mpi]'"
)

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",  # as in a container
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more ranks than cores
    "OMPI_MCA_mpi_yield_when_idle": "1",  # and let the others work meanwhile
    "NUMBA_NUM_THREADS": "1",  # there are more ranks than cores as it is
    "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH", "")])),
}


_serving = {}
"""Processes of mpiexec whose ranks wait for the next function, by the number of ranks."""


def _mpiexec(ranks, *command, options=("--bind-to", "none"), environment=None, **pipes):
    return subprocess.Popen(
        [MPIEXEC, *options, "-n", str(ranks), sys.executable, *command],
        env=os.environ | ENVIRONMENT | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **pipes,
    )


def start(program, ranks, *arguments, **settings):
    """Start a function of a program, such as "replicas.minimizing", on some ranks; return the process of mpiexec."""
    module, function = program.split(".")
    command = str(PROGRAMS / f"{module}.py"), function, *map(str, arguments)
    return _mpiexec(ranks, *command, stderr=subprocess.PIPE, **settings)


def kill(process):
    """Kill all ranks of a program."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def finish(process):
    """Return the exit status of a program and what it wrote; fail if it hangs."""
    try:
        printed, errors = process.communicate(timeout=LIMIT)
    finally:
        kill(process)
    return process.returncode, printed, errors


def reports(program, ranks, *arguments, alone=False, **settings):
    """Run a program that must end well; return what each rank has reported, call after call.

    With ``alone``, or settings of its own, it runs in processes of its own; else in some that others have used.
    """
    if alone or settings:
        status, printed, errors = finish(start(program, ranks, *arguments, **settings))
        assert status == 0, errors
        lines = printed.splitlines()
    else:
        lines = _ask(ranks, [program, *map(str, arguments)])
    said = [json.loads(line.removeprefix("REPORT ")) for line in lines if line.startswith("REPORT ")]
    return [said[k : k + ranks] for k in range(0, len(said), ranks)]


def _ask(ranks, request):
    """Have ranks that are there, or are started now, call a function; return the lines that they print."""
    if ranks not in _serving:
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        command = "-m", "mpi4py", str(PROGRAMS / "serve_ranks.py")
        _serving[ranks] = _mpiexec(ranks, *command, stdin=subprocess.PIPE, stderr=errors), errors
        atexit.register(kill, _serving[ranks][0])
    process, errors = _serving[ranks]
    limit = threading.Timer(LIMIT, kill, [process])
    limit.start()
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        lines = []
        for line in process.stdout:
            if line == "DONE\n":
                return lines
            lines.append(line)
        errors.seek(0)
        raise AssertionError(f"{request[0]} on {ranks} ranks ended with status {process.wait()}: {errors.read()}")
    except BaseException:
        del _serving[ranks]
        kill(process)
        raise
    finally:
        limit.cancel()
