"""Saving in the middle of gaps changes no later bit; a file that does not fit is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from strategies import gradient_of, runs

from numba_rmsprop import IndexedSlices, RMSprop, schedules


@given(run=runs())
def test_a_loaded_run_goes_on_bit_for_bit(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "opt.safetensors"
    now, middle = [None], len(run.steps) // 2
    opt, var = run.optimizer(now), run.variable()
    restored = restored_var = None
    for t, step in enumerate(run.steps):
        now[0] = step
        if t == middle:
            opt.build([var])
            opt.save(path)
            restored_var = var.copy()
            restored = RMSprop.load(path, [restored_var], custom_objects={"<lambda>": lambda: 0.5})
            restored._values = dict(opt._values)  # several lambdas share one name
        for o, v in ((opt, var), (restored, restored_var)):
            if o is not None:
                o.apply_gradients([(gradient_of(step, run.shape, run.dtype)[0], v)])
    assert restored_var.tobytes() == var.tobytes()
    assert [w.tobytes() for w in restored.weights] == [w.tobytes() for w in opt.weights]
    assert restored_var.tobytes() == var.tobytes()


def trained():
    opt = RMSprop(schedules.CosineDecay(0.1, 100), momentum=0.9, centered=True, weight_decay=0.01, clipnorm=3.0)
    table, scale = np.ones((5, 2), np.float32), np.array(2.0)
    fortran = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    for t in range(7):
        grad = IndexedSlices(np.ones((1, 2), np.float32), [t % 5])
        opt.apply_gradients([(grad, table), (1.0, scale), (np.arange(12.0).reshape(4, 3), fortran)])
    return opt, [table, scale, fortran]


def test_round_trip(tmp_path):
    opt, variables = trained()
    opt.add_slot(variables[0], "average", "ones")
    opt.add_slot(variables[0], "clocks", 3.0)  # as one of ours is called in the file
    opt.add_weight("total", (2,), initializer=5.0)
    before = [var.tobytes() for var in variables]
    opt.save(tmp_path / "opt.safetensors")
    assert before == [var.tobytes() for var in variables]
    copies = [var.copy(order="K") for var in variables]
    loaded = RMSprop.load(tmp_path / "opt.safetensors", copies)
    assert loaded.get_config() == opt.get_config()
    assert loaded.iterations == 7
    assert loaded.get_slot_names() == opt.get_slot_names()
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in opt.get_weights()]
    assert [v.tobytes() for v in copies] == [v.tobytes() for v in variables]
    assert [path.name for path in tmp_path.iterdir()] == ["opt.safetensors"]


def test_other_tools_can_read_it(tmp_path):
    opt, variables = trained()
    opt.save(tmp_path / "opt.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "opt.safetensors")
    assert (tensors["variables.2.rms"] == opt.get_slot(variables[2], "rms")).all()
    with safetensors.safe_open(tmp_path / "opt.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["config"])["momentum"] == 0.9


def test_files_that_do_not_fit(tmp_path):
    opt, variables = trained()
    path = tmp_path / "opt.safetensors"
    opt.save(path)
    table, scale, fortran = variables
    cases = [
        ([table, scale], "expected 3 variables, got 2"),
        (
            [table, scale, fortran.T],
            r"expected variables\[2\] \(float64, shape \(4, 3\)\), got variables\[2\] \(float64",
        ),
        ([table.astype(float), scale, fortran], r"expected variables\[0\] \(float32, shape \(5, 2\)\), got .*float64"),
        ([table, scale, 3.0], r"expected variables\[2\]"),
    ]
    for given_variables, message in cases:
        with pytest.raises(ValueError, match=message):
            RMSprop.load(path, given_variables)
    square = RMSprop()
    square.build([np.ones(2), np.ones(2)])
    square.save(tmp_path / "two")
    same = np.ones(2)
    with pytest.raises(ValueError, match="expected 2 different variables, got one of them twice"):
        RMSprop.load(tmp_path / "two", [same, same])


def test_files_of_others(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"expected a safetensors file that RMSprop\.save wrote"):
        RMSprop.load(path, [])
    safetensors.numpy.save_file({"a": np.ones(3)}, path)
    with pytest.raises(ValueError, match="expected format numba_rmsprop version 1, got None version None"):
        RMSprop.load(path, [])
    safetensors.numpy.save_file({"a": np.ones(3)}, path, {"format": "numba_rmsprop", "format_version": "1"})
    with pytest.raises(
        ValueError, match=r"expected \['config', 'iterations', 'variables', 'weights'\] in the metadata"
    ):
        RMSprop.load(path, [])
    with pytest.raises(FileNotFoundError):
        RMSprop.load(tmp_path / "nowhere", [])


def test_files_with_missing_or_wrong_tensors(tmp_path):
    opt, variables = trained()
    path = tmp_path / "opt.safetensors"
    opt.save(path)
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    without = {name: tensor for name, tensor in tensors.items() if name != "variables.1.rms"}
    safetensors.numpy.save_file(without, path, metadata)
    with pytest.raises(ValueError, match=r"expected a tensor 'variables\.1\.rms'"):
        RMSprop.load(path, variables)
    safetensors.numpy.save_file(tensors | {"variables.0.mg": np.ones((2, 5), np.float32)}, path, metadata)
    with pytest.raises(ValueError, match=r"expected 'variables.0.mg' of shape \(5, 2\), got \(2, 5\)"):
        RMSprop.load(path, variables)


def test_a_failed_save_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    opt, _ = trained()
    path = tmp_path / "opt.safetensors"
    opt.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        opt.save(path)
    assert path.read_bytes() == before


def test_config_is_the_inverse():
    opt, _ = trained()
    config = json.loads(json.dumps(opt.get_config()))
    assert RMSprop.from_config(config).get_config() == config
    assert RMSprop.from_config({"lr": 0.5}).learning_rate == 0.5
    with pytest.raises(TypeError, match="momentun"):
        RMSprop.from_config({"momentun": 0.5})
