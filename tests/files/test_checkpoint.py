"""Saving and loading: no later bit changes, and files that do not fit are refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import forge
from hypothesis import given
from strategies import gradient_of, runs
from trained_tables import trained

from numba_rmsprop import DamagedCheckpointError, IndexedSlices, RMSprop, schedules
from numba_rmsprop.files.safetensors_file import write_tensors


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
            opt.save(path, include_variables=False)
            restored_var = var.copy()
            restored = RMSprop.load(path, [restored_var], custom_objects=run.functions(now))
        for o, v in ((opt, var), (restored, restored_var)):
            if o is not None:
                o.apply_gradients([(gradient_of(step, run.shape, run.dtype)[0], v)])
    assert restored_var.tobytes() == var.tobytes()
    assert [w.tobytes() for w in restored.weights] == [w.tobytes() for w in opt.weights]
    assert restored_var.tobytes() == var.tobytes()


@pytest.mark.parametrize("include_variables", [False, True])
def test_round_trip(tmp_path, include_variables):
    opt, variables = trained()
    opt.add_slot(variables[0], "average", "ones")
    opt.add_slot(variables[0], "clocks", 3.0)  # the file has an array of this name already
    opt.add_weight("total", (2,), initializer=5.0)
    before = [var.tobytes() for var in variables]
    opt.save(tmp_path / "opt.safetensors", include_variables=include_variables)
    assert before == [var.tobytes() for var in variables]
    copies = [var.copy(order="K") for var in variables]
    if include_variables:
        for copy in copies:
            copy.fill(np.nan)
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


def test_files_of_other_formats(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(DamagedCheckpointError, match="expected a safetensors file; its 16 bytes are too few"):
        RMSprop.load(path, [])
    path.write_bytes(b"\2" + bytes(7) + b"{]")
    with pytest.raises(DamagedCheckpointError, match="expected a whole safetensors file"):
        RMSprop.load(path, [])
    safetensors.numpy.save_file({"a": np.ones(3)}, path)
    with pytest.raises(ValueError, match="expected format numba_rmsprop, got None"):
        RMSprop.load(path, [])
    safetensors.numpy.save_file({"a": np.ones(3)}, path, {"format": "numba_rmsprop", "format_version": "1"})
    with pytest.raises(DamagedCheckpointError, match="the header has no checksum"):
        RMSprop.load(path, [])
    write_tensors(path, {}, {"format": "numba_rmsprop", "format_version": "2"})
    with pytest.raises(ValueError, match="expected format version 1, got 2; a newer version of the library wrote it"):
        RMSprop.load(path, [])
    write_tensors(path, {}, {"format": "numba_rmsprop", "format_version": "1"})
    with pytest.raises(ValueError, match="expected 'variables' in the metadata"):
        RMSprop.load(path, [])
    with pytest.raises(FileNotFoundError):
        RMSprop.load(tmp_path / "nowhere", [])


def said(i, **changes):
    """Return a function that changes the metadata of a variable."""

    def change(_, metadata):
        metadata[f"variables.{i}"] = json.dumps(json.loads(metadata[f"variables.{i}"]) | changes)

    return change


def replaced(name, function):
    def change(tensors, _):
        tensors[name] = function(tensors[name])

    return change


def forged_slot(name):
    def change(tensors, metadata):
        tensors[f"variables.0.custom.{name}"] = np.ones(3)
        said(0, custom_slots=[name])(tensors, metadata)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: tensors.pop("variables.1.rms"), r"expected an array 'variables\.1\.rms'"),
        (replaced("variables.0.mg", lambda mg: mg.T), r"expected 'variables.0.mg' of shape \(5, 2\).*got \(2, 5\)"),
        (replaced("variables.0.rms", lambda rms: rms.astype(float)), r"expected 'variables.0.rms' .*float32.*float64"),
        (replaced("variables.0.clocks", lambda clocks: clocks + 100), "variables.0. has clocks from .* after 7 steps"),
        (replaced("variables.0.clocks", lambda clocks: clocks - 100), "variables.0. has clocks from -"),
        (replaced("variables.0.clocks", lambda clocks: clocks[1:]), "expected 'variables.0.clocks' of shape"),
        (replaced("variables.0.runs", lambda runs: runs[:0]), "variables.0. has runs"),
        (replaced("variables.0.runs", lambda runs: runs + 3), "variables.0. has runs"),
        (replaced("variables.0.runs", lambda runs: runs[1:]), "variables.0. has runs"),
        (replaced("variables.0.runs", lambda runs: runs * np.nan), "variables.0. has runs"),
        (replaced("variables.0.runs", lambda runs: runs * [1, 1, 1, 2, 1]), "variables.0. has runs"),
        (replaced("variables.0.runs", lambda runs: runs * [1, 2, 1, 1, 1]), "variables.0. has runs"),
        (replaced("variables.0.runs", lambda runs: runs * [1, 1, 1, 1, 2]), "variables.0. has runs"),
        (replaced("variables.0.runs", lambda runs: runs[:, :3]), "variables.0. has runs of shape"),
        (said(0, steps=-1), "variables.0. has -1 steps and floor 0"),
        (said(0, steps=3), "variables.0. has clocks"),
        (said(0, steps=2**31), "variables.0. has 2147483648 steps"),
        (said(0, floor=8), "variables.0. has 7 steps and floor 8"),
        (said(0, floor=None), "expected .* of variables.0., got {'floor': None}"),
        (said(0, custom_slots=[[]]), "expected names as custom slots"),
        (said(0, custom_slots=["average"]), "expected names as custom slots"),
        (forged_slot("rms"), "has added slots .'rms'."),
        (said(0, flushes=[1] * 65), "expected at most 64 axes and 64 flushes"),
        (replaced("variables.0.runs", lambda runs: np.tile(runs, (70_000, 1))), "has runs of shape"),
        (lambda tensors, _: tensors.update({"variables.1.clocks": np.array(0, np.int32)}), "has clocks without rows"),
        (lambda _, metadata: metadata.update(iterations="-1"), "it cannot be that there are -1 iterations"),
        (lambda _, metadata: metadata.update(iterations="x"), "expected JSON for 'iterations'"),
        (lambda _, metadata: metadata.update(iterations="9" * 9999), "expected JSON for 'iterations'"),
        (lambda _, metadata: metadata.update(variables="9999999"), "it cannot be that .* 9999999 variables"),
        (lambda _, metadata: metadata.update(weights='["total"]'), r"expected an array 'weights\.total'"),
        (lambda _, metadata: metadata.update(config="[" * 10**5), "expected JSON for 'config'"),
        (lambda _, metadata: metadata.update(config="[]"), "expected dict for 'config'"),
        (lambda _, metadata: metadata.update(config='"' + "x" * 2**20 + '"'), "at most 1048576 characters of 'config'"),
        (lambda _, metadata: metadata.pop("identity"), "expected 'identity' in the metadata"),
        (lambda _, metadata: metadata.update(follows="x"), r"expected a file of RMSprop\.save, got another"),
    ],
)
def test_forged_files(tmp_path, change, message):
    opt, variables = trained()
    path = tmp_path / "opt.safetensors"
    opt.save(path, include_variables=True)
    forge(path, lambda *_: None)
    RMSprop.load(path, variables)
    forge(path, change)
    before = [var.tobytes() for var in variables]
    with pytest.raises(ValueError, match=message):
        RMSprop.load(path, variables)
    assert before == [var.tobytes() for var in variables]


def test_an_added_slot_may_have_a_name_that_other_optimizers_use(tmp_path):
    opt, table = RMSprop(), np.ones((5, 2))
    opt.add_slot(table, "momentum", 3.0)
    opt.save(tmp_path / "opt")
    assert (RMSprop.load(tmp_path / "opt", [table]).get_slot(table, "momentum") == 3).all()


def test_nothing_is_saved_that_load_would_refuse(tmp_path):
    table = np.ones((5, 2))
    many = [float(i) for i in range(60_000)]
    for opt, message in [
        (RMSprop(schedules.PiecewiseConstantDecay(many, [*many, 1.0])), "at most 1048576 characters of 'config'"),
        (RMSprop(), "expected names as custom slots"),
        (RMSprop(), "expected an array 'weights"),
    ]:
        opt.build([table])
        if "slots" in message:
            opt.add_slot(table, "\ud800")
        if "weights" in message:
            opt.add_weight("\ud800")
        with pytest.raises(ValueError, match=message):
            opt.save(tmp_path / "opt")
    assert list(tmp_path.iterdir()) == []


def test_names_that_readers_would_refuse_are_not_saved(tmp_path, monkeypatch):
    opt = RMSprop()
    opt.build([np.ones(3)])
    monkeypatch.setattr("numba_rmsprop.files.safetensors_file.MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="expected names and metadata of at most 1,000 bytes, got 1,"):
        opt.save(tmp_path / "opt")
    assert list(tmp_path.iterdir()) == []


def test_variables_are_saved_unless_asked_otherwise(tmp_path):
    opt, variables = trained()
    opt.save(tmp_path / "opt")
    copies = [np.zeros_like(var) for var in variables]
    RMSprop.load(tmp_path / "opt", copies)
    assert [copy.tobytes() for copy in copies] == [var.tobytes() for var in variables]


@pytest.mark.parametrize("delta", [False, True])
def test_variables_with_other_values_than_saved_warn(tmp_path, delta):
    opt, variables = trained()
    files = [tmp_path / "opt"]
    opt.save(files[0], include_variables=False)
    if delta:
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2), np.float32), [2]), variables[0])])
        files.append(tmp_path / "delta")
        opt.save_delta(files[1])
    RMSprop.load(files, [var.copy() for var in variables])  # without a warning
    RMSprop.load(files, [var.copy(order="F") for var in variables])
    zeros = np.zeros_like(variables[0])
    with pytest.warns(UserWarning, match="do not have the values") as told:
        loaded = RMSprop.load(files, [zeros, variables[1], np.zeros_like(variables[2])])
    assert len(told) == 1
    assert told[0].filename == __file__
    assert "variables[0] (float32, shape (5, 2)), variables[2] (float64, shape (4, 3));" in str(told[0].message)
    assert "save with include_variables=True" in str(told[0].message)
    assert loaded.iterations == opt.iterations
    assert not zeros.any()


def test_files_of_an_earlier_version_know_no_checksum_of_the_variables(tmp_path):
    opt, variables = trained()
    opt.save(tmp_path / "opt", include_variables=False)

    def as_before(_, metadata):
        del metadata["run"]
        for i in range(3):
            entry = json.loads(metadata[f"variables.{i}"])
            del entry["checksum"]
            metadata[f"variables.{i}"] = json.dumps(entry)

    forge(tmp_path / "opt", as_before)
    assert RMSprop.load(tmp_path / "opt", [np.zeros_like(var) for var in variables]).iterations == 7


def test_from_config_reverses_get_config():
    opt, _ = trained()
    config = json.loads(json.dumps(opt.get_config()))
    assert RMSprop.from_config(config).get_config() == config
    assert RMSprop.from_config({"lr": 0.5}).learning_rate == 0.5
    with pytest.raises(TypeError, match="momentun"):
        RMSprop.from_config({"momentun": 0.5})
