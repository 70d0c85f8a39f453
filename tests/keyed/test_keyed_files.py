"""Files of keyed tables: whole ones, deltas over growth and eviction, hostile ones, and runs that are killed."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyed_tables import DRAW, batch, state_of
from killed_trainings import kill_children
from processes import can_fork

from numba_rmsprop import CheckpointManager, RMSprop
from numba_rmsprop.files import checkpoint
from numba_rmsprop.files.safetensors_file import map_tensors
from numba_rmsprop.keyed import KeyedTable, rows_by_key, table

VARIANTS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"state": "rowwise", "sparse_update": "lazy", "admit_after": 2},
    {"use_ema": True, "ema_momentum": 0.5, "bias_correction": True, "initial_scale": 0.5},
]


@pytest.mark.usefixtures("growth")
@pytest.mark.parametrize("initializer", [DRAW, 0.5, "ones"])
def test_files(tmp_path, initializer):
    keyed = KeyedTable(3, initializer=initializer, learning_rate=0.1, momentum=0.9)
    for step in range(4):
        keyed.apply_gradients(*batch(step))
    keyed.evict(max_rows=20)
    keyed.save(tmp_path / "file")
    keys, grads = batch(1, 10)
    keys = np.resize(keyed.keys(), 10)
    keyed.apply_gradients(keys, grads)
    new = np.array([10**15, -(10**15)])
    keyed.rows(new, create=True)
    keyed.save_delta(tmp_path / "delta")
    loaded = KeyedTable.load([tmp_path / "file", tmp_path / "delta"])
    for step in range(6, 9):
        for each in (keyed, loaded):
            each.gather(batch(step)[0])
            each.apply_gradients(*batch(step))
    assert loaded.keys().tolist() == keyed.keys().tolist()
    np.testing.assert_array_equal(loaded.gather(keyed.keys()), keyed.gather(keyed.keys()))
    assert loaded.iterations == keyed.iterations
    loaded.save(tmp_path / "again")


def test_files_of_functions_and_of_others(tmp_path):
    keyed = KeyedTable(2, initializer=lambda keys: np.stack([keys, -keys], 1).astype(float))
    keyed.rows([3], create=True)
    keyed.save(tmp_path / "file")
    with pytest.raises(ValueError, match="initializer was the function '<lambda>', which a file cannot hold; pass"):
        KeyedTable.load(tmp_path / "file")
    assert KeyedTable.load(tmp_path / "file", initializer="ones").gather([3, 4]).tolist() == [[3, -3], [1, 1]]
    var, opt = np.ones((2, 2)), RMSprop()
    opt.build({"table": var})
    opt.save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"expected a file of KeyedTable\.save, got another"):
        KeyedTable.load(tmp_path / "other")
    with pytest.raises(ValueError, match="path: expected a file, or a file and its deltas in order, got no path"):
        KeyedTable.load([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": np.array([3, 3])}, "expected different keys for at most 1024 rows, got others"),
        ({"keys": np.arange(2000)}, "expected different keys for at most 1024 rows, got others"),
        ({"keys": np.array([3.0])}, "expected different keys for at most 1024 rows, got others"),
        ({"free rows": np.array([7])}, "expected different keys for at most 1024 rows, got others"),
        ({"admission": np.array([0, 1])}, "admit_after: expected a whole number from 1 to 255, got 0"),
        ({"admission": np.array([2, 1])}, "sightings: expected shape"),
        *(
            (
                {"initializer": np.frombuffer(text.encode(), np.uint8)},
                "initializer: expected a number or that of a table",
            )
            for text in ("[" * 5000, "null", "true", "{", '{"uniform":3}', '{"uniform":[0.0,1.0,3,0]}', "NaN", "[1]")
        ),
    ],
)
def test_files_that_make_no_sense(tmp_path, changes, message):
    keyed = KeyedTable(2)
    keyed.rows([3], create=True)
    right = keyed.weights_in_file
    keyed.weights_in_file = lambda rows: right(rows) | changes
    keyed.save(tmp_path / "wrong")
    with pytest.raises(ValueError, match=message):
        KeyedTable.load(tmp_path / "wrong")


def test_other_files_are_no_tables(tmp_path):
    keyed = KeyedTable(2)
    keyed.optimizer.save(tmp_path / "values apart", include_variables=False)
    with pytest.raises(ValueError, match=r"expected a file of KeyedTable\.save, got another"):
        KeyedTable.load(tmp_path / "values apart")
    for shape in ((3,), (3, 2, 2), (3, 0)):
        var, opt = np.ones(shape, np.float32), RMSprop()
        opt.build({"table": var})
        opt.own_weights = keyed.weights_in_file(None)
        opt.save(tmp_path / "shape")
        with pytest.raises(ValueError, match=r"expected a file of KeyedTable\.save, got another"):
            KeyedTable.load(tmp_path / "shape")


def test_a_handler_amid_a_save_and_a_gather(monkeypatch, tmp_path):
    """A handler evicts all keys and gives their rows to others while a file is written: the file fits together."""
    keyed = KeyedTable(1, initializer=lambda keys: keys[:, np.newaxis] * 1.0)
    keyed.rows([1, 2], create=True)
    parse, done = checkpoint.parse, []

    def handled(*arguments):
        if not done:
            done.append(True)
            keyed.evict(max_rows=0)
            keyed.rows([50, 51], create=True)
        return parse(*arguments)

    monkeypatch.setattr(checkpoint, "parse", handled)
    keyed.save(tmp_path / "file")
    loaded = KeyedTable.load(tmp_path / "file", initializer="zeros")
    assert loaded.gather(loaded.keys()).ravel().tolist() == loaded.keys().tolist()


ACTIONS = ("step", "step", "step", "create", "evict old", "evict many", "gather", "flush", "save", "delta", "load")


@given(actions=st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=25), data=st.data())
def test_a_file_and_its_deltas_are_the_table(actions, data, tmp_path_factory):
    folder, options = tmp_path_factory.mktemp("run"), data.draw(st.sampled_from(VARIANTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "ROWS_AT_START", 2)
        if data.draw(st.booleans()):

            def refuse(own, rows):
                raise MemoryError

            patch.setattr(rows_by_key, "Reserve", refuse)
        keyed, paths = KeyedTable(3, initializer=DRAW, learning_rate=0.1, **options), []
        for number, action in enumerate([*actions, "delta"]):
            keys, grads = batch(data.draw(st.integers(0, 20)), data.draw(st.integers(0, 30)))
            path = folder / str(number)
            if action == "step":
                keyed.apply_gradients(keys, grads)
            elif action == "create":
                keyed.rows(keys, create=True)
            elif action == "evict old":
                keyed.evict(max_age=2)
            elif action == "evict many":
                keyed.evict(max_rows=3)
            elif action == "gather":
                keyed.gather(keys)
            elif action == "flush":
                keyed.flush()
            elif action == "save" or not paths:
                paths = [path]
                keyed.save(path)
            else:
                paths.append(path)
                keyed.save_delta(path)
            if action == "load" and paths:
                keyed = KeyedTable.load(paths)
        assert state_of(KeyedTable.load(paths)) == state_of(keyed)


def test_a_delta_holds_what_has_come_and_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROWS_AT_START", 2)
    keyed = KeyedTable(3)
    keyed.rows(np.arange(5000), create=True)
    for _ in range(4):
        keyed.apply_gradients(np.arange(3000), np.ones((3000, 3), np.float32))
    keyed.evict(max_rows=4000)
    keyed.save(tmp_path / "file")
    keyed.apply_gradients([7, 10**6], np.ones((2, 3), np.float32))
    keyed.evict(max_rows=3990)
    keyed.rows(np.arange(-20, 0), create=True)
    keyed.save_delta(tmp_path / "delta")
    tensors = map_tensors(tmp_path / "delta")[0]
    sizes = {name: len(array) for name, array in tensors.items() if name.startswith(("weights.", "variables.0.value"))}
    assert sizes["variables.0.value"] == sizes["weights.keys"] == 22
    assert sizes["weights.free rows"] <= 30
    assert state_of(KeyedTable.load([tmp_path / "file", tmp_path / "delta"])) == state_of(keyed)


def test_deltas_that_do_not_fit(tmp_path):
    keyed = KeyedTable(3)
    keyed.apply_gradients([1, 2, 3], np.ones((3, 3), np.float32))
    keyed.evict(max_rows=2)
    keyed.save(tmp_path / "file")
    right = keyed.weights_in_file
    counts = keyed.weights_in_file([])["counts"]
    wrong = [
        {"counts": counts + np.array([5000, 0, 0])},
        {"counts": counts - [1, 0, 0]},
        {"counts": counts + np.array([0, 9, 0])},
        {"counts": counts - [0, 9, 0]},
        {"counts": counts * [1, 1, -1]},
        {"counts": counts[:2]},
        {"counts": counts * 1.0},
        {"keys": np.arange(9)},
        {"keys": np.array([3])},
        {"touched": np.arange(9, dtype=np.int32)},
        {"touched": np.array([-1], np.int32)},
        {"free rows": np.array([7])},
        {"free rows": np.array([0])},
    ]
    for k, changes in enumerate(wrong):
        keyed.apply_gradients([2], np.ones((1, 3), np.float32))
        keyed.weights_in_file = lambda rows, changes=changes: right(rows) | changes
        keyed.save_delta(tmp_path / f"{k}")
        with pytest.raises(ValueError, match="expected different keys for at most 1024 rows, got others"):
            KeyedTable.load([tmp_path / "file", tmp_path / f"{k}"])
        keyed.weights_in_file = right
        keyed.save(tmp_path / "file")


def test_files_of_the_first_format(tmp_path):
    """They hold all keys, and do not say when rows were touched, but by their clocks."""
    keyed, later = KeyedTable(1), ("counts", "touched")
    right = keyed.weights_in_file
    keyed.weights_in_file = lambda rows: {k: v for k, v in right(None).items() if k not in later}
    for key in (1, 2, 3, 4):
        keyed.apply_gradients([key], np.ones((1, 1), np.float32))
    keyed.evict(max_rows=3)
    keyed.save(tmp_path / "file")
    keyed.apply_gradients([5], np.ones((1, 1), np.float32))
    keyed.save_delta(tmp_path / "delta")
    loaded = KeyedTable.load([tmp_path / "file", tmp_path / "delta"])
    assert loaded.keys().tolist() == [5, 2, 3, 4]
    assert loaded.evict(max_age=2).tolist() == [2]


def train_on(keyed):
    """Take the next step of a training in which keys come and go; its number alone determines what is done."""
    step = keyed.iterations
    keys, grads = batch(step, 30)
    keys = keys + 5 * (step // 3)
    keyed.gather(keys)
    keyed.apply_gradients(keys, grads)
    if step % 5 == 0:
        keyed.evict(max_age=6)
    if step % 7 == 0:
        keyed.evict(max_rows=40)


def new_training():
    return KeyedTable(3, initializer=DRAW, learning_rate=0.1, momentum=0.9, admit_after=2)


def as_it_was_left(manager):
    latest = manager.latest()
    return KeyedTable.load(latest) if latest else new_training()


def train_and_save(folder, has_saved):
    manager = CheckpointManager(folder, full_every=4)
    keyed = as_it_was_left(manager)
    for step in itertools.count():
        train_on(keyed)
        if step % 3 == 0:
            manager.save(keyed.optimizer)
            has_saved.set()


@can_fork
@pytest.mark.parametrize("children", [10, pytest.param(200, marks=pytest.mark.long)])
def test_kills_lose_no_bit_while_keys_come_and_go(children, tmp_path, seed, monkeypatch):
    """Children train and save until they are killed; each goes on from what the one before it left."""
    monkeypatch.setattr(table, "ROWS_AT_START", 2)
    whole, reached, kills_with_left_overs = new_training(), [], 0
    for saving in kill_children(train_and_save, tmp_path, children, seed):
        kills_with_left_overs += saving
        found = as_it_was_left(CheckpointManager(tmp_path))
        while whole.iterations < found.iterations:
            train_on(whole)
        assert state_of(found) == state_of(whole)
        reached.append(found.iterations)
    assert reached == sorted(reached)
    assert reached[-1] > children
    assert kills_with_left_overs > 0 or children < 200, "no child was killed in the middle of a save"
    print(f"{reached[-1]} steps, {len(set(reached))} different points, {kills_with_left_overs} kills during a save")
