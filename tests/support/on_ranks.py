"""Functions of tests/programs that run on several ranks, started with mpiexec."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
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


def start(program, ranks, *arguments, options=("--bind-to", "none"), environment=None):
    """Start a function of a program, such as "replicas.minimizing", on some ranks; return the process of mpiexec."""
    module, function = program.split(".")
    command = [sys.executable, str(PROGRAMS / f"{module}.py"), function, *map(str, arguments)]
    return subprocess.Popen(
        [MPIEXEC, *options, "-n", str(ranks), *command],
        env=os.environ | ENVIRONMENT | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Return the exit status of a program and what it wrote; fail if it hangs."""
    try:
        printed, errors = process.communicate(timeout=LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed, errors


def reports(program, ranks, *arguments, **options):
    """Run a program that must end well; return what each rank has reported, call after call."""
    status, printed, errors = finish(start(program, ranks, *arguments, **options))
    assert status == 0, errors
    said = [json.loads(line.removeprefix("REPORT ")) for line in printed.splitlines() if line.startswith("REPORT ")]
    return [said[k : k + ranks] for k in range(0, len(said), ranks)]
