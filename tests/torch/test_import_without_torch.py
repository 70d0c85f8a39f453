"""Who imports PyTorch, and who must not."""

import importlib.util
import subprocess
import sys

import pytest


def run(program):
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)


def test_the_package_does_not_import_pytorch():
    done = run("import sys, numba_rmsprop; print([name for name in sys.modules if name.split('.')[0] == 'torch'])")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_without_pytorch():
    done = run("import sys; sys.modules['torch'] = None; import numba_rmsprop; import numba_rmsprop.torch")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError", "ModuleNotFoundError"))
    assert "torch" in last


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="numba_rmsprop.torch needs PyTorch")
def test_public_names():
    done = run("import numba_rmsprop.torch as ours; print(sorted(ours.__all__))")
    assert (done.stdout.strip(), done.stderr) == ("['Embedding', 'EmbeddingBag', 'RMSprop']", "")
