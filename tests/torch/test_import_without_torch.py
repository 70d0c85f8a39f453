"""Only numba_rmsprop.torch imports PyTorch."""

import importlib.util
import json

import pytest
from processes import run


def imported(*arguments):
    return run("import_module.py", *arguments, options=["-W", "error"])


def test_the_package_does_not_import_pytorch():
    done = imported("numba_rmsprop")
    assert done.stderr == ""
    assert "torch" not in json.loads(done.stdout)["modules"]


def test_without_pytorch():
    assert imported("numba_rmsprop", "torch").returncode == 0
    done = imported("numba_rmsprop.torch", "torch")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError", "ModuleNotFoundError"))
    assert "torch" in last


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="numba_rmsprop.torch needs PyTorch")
def test_public_names():
    done = imported("numba_rmsprop.torch")
    assert done.stderr == ""
    assert json.loads(done.stdout)["names"] == ["Embedding", "EmbeddingBag", "EmbeddingBagCollection", "RMSprop"]
