"""Deltas: a file and its deltas restore the state bit for bit, and a delta holds the touched rows only."""

import json

import numpy as np
import pytest
from checkpoint_files import forge
from hypothesis import given
from hypothesis import strategies as st
from optimizer_internals import state_of
from strategies import gradient_of, runs

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.files.safetensors_file import map_tensors

BETWEEN = ("gather", "gather all", "flush", "set_weights", "save", "save_delta", "load", "grow")


@given(run=runs(), data=st.data(), include_variables=st.booleans(), lazy=st.booleans(), small=st.booleans())
def test_a_file_and_its_deltas_are_the_state(run, data, include_variables, lazy, small, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if not small:  # large variables may have no row clocks and still be saved by rows
            patch.setattr("numba_rmsprop.state.slot_arrays.SMALL_ITEMS", 0)
        check_a_file_and_its_deltas(run, data, include_variables, lazy, tmp_path_factory.mktemp("run"))


def check_a_file_and_its_deltas(run, data, include_variables, lazy, folder):
    run.lazy = lazy
    now = [run.steps[0]]
    opt, var = run.optimizer(now), run.variable()
    paths = []

    def restored():
        copy = np.full_like(var, np.nan) if include_variables else var.copy()
        found = RMSprop.load(paths, [copy], custom_objects=run.functions(now))
        return found, copy

    def act(action):
        nonlocal opt, var, paths
        name = folder / f"{len(list(folder.iterdir()))}"
        if action == "save" or not paths:
            opt.build([var])
            paths = [name]
            opt.save(name, include_variables=include_variables)
        elif action in ("save_delta", "load"):
            paths.append(name)
            opt.save_delta(name)
        elif action == "gather":
            opt.gather(var, [len(var) // 2])
        elif action == "gather all":
            opt.gather(var, np.arange(len(var)))
        elif action == "flush":
            opt.flush()
        elif action == "grow":
            var = opt.resize(var, len(var) + 3, 0.5)
        elif action == "set_weights":
            opt.set_weights([weight / 2 if i else weight for i, weight in enumerate(opt.get_weights())])
        if action == "load":
            opt, var = restored()

    for step in run.steps:
        now[0] = step
        for action in data.draw(st.lists(st.sampled_from(BETWEEN), max_size=3)):
            act(action)
        opt.apply_gradients([(gradient_of(step, var.shape, run.dtype)[0], var)])
    act("save_delta")
    found, copy = restored()
    assert state_of(found, [copy]) == state_of(opt, [var])


def table_after_two_saves(tmp_path, between, **settings):
    """Return the arrays of a delta that was saved after rows 3 and 5 of 1,000 were touched."""
    opt, table = RMSprop(0.1, **settings), np.ones((1000, 4), np.float32)
    for row in (7, 8, 3):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4), np.float32), [row]), table)])
    between(opt, table)
    opt.save(tmp_path / "base", include_variables=True)
    for row in (3, 5):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4), np.float32), [row]), table)])
        between(opt, table)
    opt.save_delta(tmp_path / "delta")
    return map_tensors(tmp_path / "delta")[0]


@pytest.mark.parametrize("mode", ["exact", "lazy"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("between", [lambda *_: None, lambda opt, _: opt.flush()], ids=["nothing", "flush"])
def test_a_delta_holds_the_touched_rows(tmp_path, between, settings, mode):
    tensors = table_after_two_saves(tmp_path, between, sparse_update=mode, **settings)
    assert tensors["variables.0.rows"].tolist() == [3, 5]
    assert {tensor.shape for name, tensor in tensors.items() if name.endswith(("rms", "value", "momentum"))} == {(2, 4)}


def test_a_delta_holds_gathered_rows_once(tmp_path):
    def gather(opt, table):
        opt.gather(table, [11])

    tensors = table_after_two_saves(tmp_path, gather, momentum=0.9)
    assert tensors["variables.0.rows"].tolist() == [3, 5, 11]
    # Gather catches rows up without a step since the last file.
    opt, table = RMSprop(momentum=0.9), np.ones((50, 4))
    for row in (1, 2):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [row]), table)])
    opt.save(tmp_path / "base")
    opt.gather(table, [2, 1])
    opt.save_delta(tmp_path / "delta")
    assert map_tensors(tmp_path / "delta")[0]["variables.0.rows"].tolist() == [1]
    # A second delta without a step in between is empty, though all rows were caught up just before.
    opt, table = RMSprop(momentum=0.9), np.ones((50, 4))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [2]), table)])
    opt.gather(table, np.arange(40))
    opt.save(tmp_path / "base")
    opt.save_delta(tmp_path / "delta")
    assert map_tensors(tmp_path / "delta")[0]["variables.0.rows"].tolist() == []


def test_a_loaded_run_goes_on_with_deltas(tmp_path):
    opt, table = RMSprop(momentum=0.9), np.ones((50, 4))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    opt.save(tmp_path / "base", include_variables=True)
    again = RMSprop.load(tmp_path / "base", [table])
    again.apply_gradients([(IndexedSlices(np.ones((1, 4)), [2]), table)])
    again.save_delta(tmp_path / "delta")
    assert map_tensors(tmp_path / "delta")[0]["variables.0.rows"].tolist() == [2]
    copy = np.zeros((50, 4))
    found = RMSprop.load([tmp_path / "base", tmp_path / "delta"], [copy])
    assert state_of(found, [copy]) == state_of(again, [table])


def test_small_and_dense_variables_come_whole(tmp_path):
    opt = RMSprop()
    scale, vector, matrix = np.array(1.0), np.ones(3), np.ones((300, 100))
    opt.build([scale, vector, matrix])
    opt.save(tmp_path / "base")
    opt.save_delta(tmp_path / "nothing new")
    assert map_tensors(tmp_path / "nothing new")[0]["variables.2.rms"].shape == (0, 100)
    opt.apply_gradients([(1.0, scale), (np.ones(3), vector), (np.ones((300, 100)), matrix)])
    late = np.ones((400, 100))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 100)), [3]), late)])
    opt.save_delta(tmp_path / "delta")
    tensors = map_tensors(tmp_path / "delta")[0]
    assert [tensors[f"variables.{i}.rms"].shape for i in range(4)] == [(), (3,), (300, 100), (400, 100)]
    found = RMSprop.load(
        [tmp_path / "base", tmp_path / "nothing new", tmp_path / "delta"], [scale, vector, matrix, late]
    )
    assert state_of(found, []) == state_of(opt, [])


def test_a_small_variable_that_gets_its_first_sparse_step_comes_whole(tmp_path):
    opt, table = RMSprop(), np.ones((50, 4))
    opt.build([table])
    opt.save(tmp_path / "base", include_variables=True)
    opt.apply_gradients([(np.ones((50, 4)), table)])
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [3]), table)])
    opt.save_delta(tmp_path / "delta")
    copy = np.zeros((50, 4))
    assert state_of(RMSprop.load([tmp_path / "base", tmp_path / "delta"], [copy]), [copy]) == state_of(opt, [table])


def test_many_flushes_make_a_delta_whole(tmp_path):
    opt, table = RMSprop(momentum=0.9), np.ones((50, 4))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    opt.save(tmp_path / "base", include_variables=True)
    for t in range(70):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [t % 3]), table)])
        opt.flush()
    opt.save_delta(tmp_path / "delta")
    copy = np.zeros((50, 4))
    assert state_of(RMSprop.load([tmp_path / "base", tmp_path / "delta"], [copy]), [copy]) == state_of(opt, [table])


def test_flushes_after_a_base_without_clocks(tmp_path):
    opt, table = RMSprop(0.1, momentum=0.9), np.ones((300, 100))
    opt.apply_gradients([(np.ones((300, 100)), table)])
    opt.save(tmp_path / "base", include_variables=True)
    for row in (3, 5, 7):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 100)), [row]), table)])
    opt.flush()
    opt.save_delta(tmp_path / "delta")
    copy = np.zeros((300, 100))
    assert state_of(RMSprop.load([tmp_path / "base", tmp_path / "delta"], [copy]), [copy]) == state_of(opt, [table])


def test_a_delta_does_not_overwrite_what_it_goes_on_from(tmp_path):
    opt, table = RMSprop(), np.ones((50, 4))
    opt.build([table])
    opt.save(tmp_path / "base")
    opt.save_delta(tmp_path / "1")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    for name in ("base", "1", "link"):
        with pytest.raises(ValueError, match="expected a new file, got one that the delta would go on from"):
            opt.save_delta(tmp_path / name)
    again = RMSprop.load([tmp_path / "base", tmp_path / "1"], [table])
    with pytest.raises(ValueError, match="expected a new file"):
        again.save_delta(tmp_path / "base")
    again.save_delta(tmp_path / "2")


def test_a_save_that_runs_out_of_memory_changes_nothing(tmp_path, monkeypatch):
    opt, table = RMSprop(momentum=0.9), np.ones((50, 4))
    for row in (1, 2):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [row]), table)])
    opt.save(tmp_path / "base", include_variables=True)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [7]), table)])
    with monkeypatch.context() as patch:
        patch.setattr(np, "packbits", no_memory)
        with pytest.raises(MemoryError):
            opt.save(tmp_path / "base", include_variables=True)
    opt.gather(table, [2])
    opt.save_delta(tmp_path / "delta")
    copy = np.zeros((50, 4))
    found = RMSprop.load([tmp_path / "base", tmp_path / "delta"], [copy])
    assert state_of(found, [copy]) == state_of(opt, [table])


def no_memory(*_, **__):
    raise MemoryError


def test_a_dense_step_after_a_refused_sparse_one_is_in_the_delta(tmp_path, monkeypatch):
    opt, table, dense = RMSprop(0.1), np.ones((50, 4)), np.ones((50, 4))
    sparse = IndexedSlices(np.ones((1, 4)), [1])
    opt.apply_gradients([(dense, table)])
    with monkeypatch.context() as patch:
        patch.setattr("numba_rmsprop.state.scratch.Scratch.links", no_memory)
        with pytest.raises(MemoryError):
            opt.apply_gradients([(sparse, table)])
    opt.save(tmp_path / "base", include_variables=True)
    opt.apply_gradients([(dense, table)])
    opt.save_delta(tmp_path / "delta")
    copy = np.zeros((50, 4))
    found = RMSprop.load([tmp_path / "base", tmp_path / "delta"], [copy])
    assert state_of(found, [copy]) == state_of(opt, [table])


def test_deltas_in_a_wrong_order_are_refused(tmp_path):
    opt, table = RMSprop(momentum=0.9), np.ones((50, 4))
    with pytest.raises(ValueError, match=r"expected a file to go on from, got none; call opt\.save first"):
        opt.save_delta(tmp_path / "delta")
    for name in ("base", "1", "2"):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
        opt.flush()
        opt.save(tmp_path / name, include_variables=True) if name == "base" else opt.save_delta(tmp_path / name)
    base, first, second = (tmp_path / name for name in ("base", "1", "2"))
    RMSprop.load([base, first, second], [table])
    cases = [
        ([base, second], "expected the delta that was saved after .*base, got another"),
        ([base, second, first], "expected the delta that was saved after .*base, got another"),
        ([base, base], "expected the delta that was saved after .*base, got another"),
        ([first], r"expected a file of RMSprop\.save, got another"),
        ([], "expected a file, or a file and its deltas in order, got no path"),
    ]
    for paths, message in cases:
        with pytest.raises(ValueError, match=message):
            RMSprop.load(paths, [table])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy's, where nothing is compiled
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}], ids=str)
def test_a_rate_times_a_decay_that_overflows_is_loaded_as_it_was_trained_with(tmp_path, settings):
    table = np.ones((9, 2))
    opt = RMSprop(1e200, weight_decay=1e200, **settings)
    with np.errstate(all="ignore"):
        for row in (0, 1):
            opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), table)])
    opt.save(tmp_path / "base")
    copy = np.zeros_like(table)
    loaded = RMSprop.load(tmp_path / "base", [copy])
    assert state_of(loaded, [copy]) == state_of(opt, [table])
    opt.flush()
    opt.save_delta(tmp_path / "delta")
    loaded = RMSprop.load([tmp_path / "base", tmp_path / "delta"], [copy])
    assert state_of(loaded, [copy]) == state_of(opt, [table])


def rows(*numbers):
    def change(tensors, _):
        tensors["variables.0.rows"] = np.array(numbers)

    return change


def flushes(*steps):
    def change(_, metadata):
        metadata["variables.0"] = json.dumps(json.loads(metadata["variables.0"]) | {"flushes": steps})

    return change


def back_in_time(tensors, metadata):
    for name in list(tensors):
        tensors[name] = tensors[name][:0]
    entry = json.loads(metadata["variables.0"])
    metadata["variables.0"] = json.dumps(entry | {"steps": 0, "floor": 0, "flushes": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (back_in_time, "expected all rows of variables.0., got some"),
        (rows(50), "rows that are not in order, or out of range"),
        (rows(-1), "rows that are not in order, or out of range"),
        (rows(1, 1), "rows that are not in order, or out of range"),
        (rows(0, 1), r"expected 'variables.0.rms' of shape \(2, 4\)"),
        (flushes(9), "flushes at steps .9."),
        (flushes(0), "flushes at steps .0."),
        (flushes("x"), "flushes at steps .'x'."),
        (flushes(2, 2), "expected an array 'variables.0.flush.1'"),
        (lambda tensors, _: tensors.update({"variables.0.flush.0": np.ones((1, 5)) * 1.5}), "has runs"),
        (lambda _, metadata: metadata.update(variables="0"), "has 0 variables|expected 0 variables"),
        (lambda _, metadata: metadata.update(include_variables="false"), "variables in all files, or in none"),
    ],
)
def test_forged_deltas(tmp_path, change, message):
    opt, table = RMSprop(momentum=0.9), np.ones((50, 4))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    opt.save(tmp_path / "base", include_variables=True)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    opt.flush()
    opt.save_delta(tmp_path / "delta")
    forge(tmp_path / "delta", lambda *_: None)
    RMSprop.load([tmp_path / "base", tmp_path / "delta"], [table])
    forge(tmp_path / "delta", change)
    before = table.copy()
    with pytest.raises(ValueError, match=message):
        RMSprop.load([tmp_path / "base", tmp_path / "delta"], [table])
    assert before.tobytes() == table.tobytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_forged_flushes_do_not_move_values_that_are_not_in_the_file(tmp_path, momentum):
    opt, table = RMSprop(momentum=momentum), np.ones((50, 4))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    opt.save(tmp_path / "base", include_variables=False)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    opt.save_delta(tmp_path / "delta")
    before = table.copy()

    def flush(tensors, metadata):
        tensors["variables.0.flush.0"] = tensors["variables.0.runs"] * [1, 1, 1, momentum > 0, 1]
        flushes(2)(tensors, metadata)

    forge(tmp_path / "delta", flush)
    with pytest.raises(ValueError, match="flushes that move values, without the values"):
        RMSprop.load([tmp_path / "base", tmp_path / "delta"], [table])
    assert before.tobytes() == table.tobytes()
