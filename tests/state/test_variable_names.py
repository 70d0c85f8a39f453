"""Names of variables, in calls, messages and files."""

import json
import pickle

import numpy as np
import pytest
from optimizer_internals import names_of

from numba_rmsprop import CheckpointManager, RMSprop
from numba_rmsprop.files.safetensors_file import map_tensors, write_tensors

ONES = np.ones((4, 3))


def named(users, items):
    """Return an optimizer that saw the items before the users."""
    opt = RMSprop(0.1)
    opt.build({"items": items, "users": users})
    opt.apply_gradients([(np.full((4, 3), 5.0), users), (ONES, items)])
    return opt


def state(opt, *variables):
    return [(opt.get_slot(var, "rms").tobytes(), var.tobytes()) for var in variables]


def test_the_order_of_names_does_not_matter(tmp_path):
    users, items = ONES.copy(), ONES.copy()
    opt = named(users, items)
    opt.save(tmp_path / "file", include_variables=True)
    opt.apply_gradients([(ONES, users)])
    opt.save_delta(tmp_path / "delta")
    a, b = np.zeros((4, 3)), np.zeros((4, 3))
    loaded = RMSprop.load([tmp_path / "file", tmp_path / "delta"], {"users": a, "items": b})
    assert state(loaded, a, b) == state(opt, users, items)
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in opt.get_weights()]
    loaded.save(tmp_path / "again")
    with pytest.raises(ValueError, match=r"\{'items': array\}, got a sequence of 2"):
        RMSprop.load(tmp_path / "again", [a, b])


def test_names_in_the_files_of_a_manager_and_in_pickles(tmp_path):
    users, items = ONES.copy(), ONES.copy()
    opt, manager = named(users, items), CheckpointManager(tmp_path, full_every=3)
    for _ in range(3):
        opt.apply_gradients([(ONES, users)])
        manager.save(opt)
    a, b = np.zeros((4, 3)), np.zeros((4, 3))
    loaded = RMSprop.load(manager.latest(), {"users": a, "items": b})
    assert state(loaded, a, b) == state(opt, users, items)
    alone = pickle.loads(pickle.dumps(opt))
    alone.rebind("users", a)
    alone.rebind("items", b)
    assert state(alone, a, b) == state(opt, users, items)


def test_messages_call_a_variable_by_its_name():
    users, items = ONES.copy(), ONES.copy()
    with pytest.raises(ValueError, match=r"gradient of users \(float64, shape \(4, 3\)\)"):
        named(users, items).apply_gradients([(np.ones(3), users)])
    with pytest.raises(TypeError, match="users must be a NumPy array"):
        RMSprop().build({"users": [1.0]})


def test_a_variable_that_was_seen_before_gets_its_name_later(tmp_path):
    users, opt = ONES.copy(), RMSprop(0.1)
    opt.apply_gradients([(ONES, users)])
    opt.save(tmp_path / "file")
    opt.build({"users": users})
    opt.build({"users": users})
    opt.save_delta(tmp_path / "delta")
    loaded = RMSprop.load([tmp_path / "file", tmp_path / "delta"], {"users": users})
    assert state(loaded, users) == state(opt, users)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (lambda a, b: {"": b}, "expected a name for each, got ''"),
        (lambda a, b: {3: b}, "expected a name for each, got 3"),
        (lambda a, b: {"variable 1": b}, "what variables without a name are called"),
        (lambda a, b: {"\ud800": b}, "expected a name for each"),
        (lambda a, b: {"items": b, "users": a, "people": a}, "one name for each array, this one is called 'users'"),
        (lambda a, b: {"items": b, "people": a}, "one name for each array, this one is called 'users'"),
        (lambda a, b: {"items": b, "both": b}, "one name for each array, this one is called 'items'"),
        (lambda a, b: {"users": b}, r"another array is called so; opt.rebind\('users', array\)"),
    ],
)
def test_invalid_names_are_refused(variables, message):
    a, b, opt = ONES.copy(), ONES.copy(), RMSprop()
    opt.build({"users": a})
    with pytest.raises(ValueError, match=message):
        opt.build(variables(a, b))
    assert names_of(opt) == ["users"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"users": ONES}, r"missing: \['items', 'variable 2'\], and not in it: \[\]"),
        ({"users": ONES, "items": ONES, "others": ONES}, r"missing: \['variable 2'\], and not in it: \['others'\]"),
        ([ONES, ONES, ONES], "the variables in it have names; expected them by name"),
    ],
)
def test_names_that_are_not_those_of_the_file(variables, message, tmp_path):
    users, items, third = ONES.copy(), ONES.copy(), np.ones(3)
    opt = named(users, items)
    opt.build([third])
    opt.save(tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        RMSprop.load(tmp_path / "file", variables)
    RMSprop.load(tmp_path / "file", {"variable 2": third, "users": users, "items": items})


def test_names_for_a_file_without_names(tmp_path):
    opt, var = RMSprop(), ONES.copy()
    opt.build([var])
    opt.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"the names in it, \['variable 0'\]; missing: \['variable 0'\]"):
        RMSprop.load(tmp_path / "file", {"users": var})
    RMSprop.load(tmp_path / "file", [var])


def test_a_variable_without_a_gradient_counts_as_seen(tmp_path):
    users, items, frozen, opt = ONES.copy(), ONES.copy(), np.ones(2), RMSprop(0.1)
    frozen.flags.writeable = False
    with pytest.warns(UserWarning, match="no gradient"):
        opt.apply_gradients([(None, frozen), (None, users), (ONES, items)])
    opt.apply_gradients([(np.full((4, 3), 5.0), users), (ONES, items)])
    opt.save(tmp_path / "file")
    assert state(RMSprop.load(tmp_path / "file", [users, items]), users, items) == state(opt, users, items)


def test_loading_by_order_warns_where_it_may_mix_variables_up(tmp_path):
    users, items, opt = ONES.copy(), ONES.copy(), RMSprop(0.1)
    opt.apply_gradients([(ONES, items)])
    opt.apply_gradients([(ONES, users)])
    opt.save(tmp_path / "file")
    with pytest.warns(UserWarning, match="variable 0 and variable 1 .* came after 0 and 1 steps") as told:
        loaded = RMSprop.load(tmp_path / "file", [items, users])
    assert told[0].filename == __file__
    loaded.build({"users": users, "items": items})
    loaded.save(tmp_path / "file")
    RMSprop.load(tmp_path / "file", {"users": users, "items": items})


def test_a_file_from_before_there_were_names_and_forged_names(tmp_path):
    users, items, opt = ONES.copy(), ONES.copy(), RMSprop(0.1)
    opt.build([users, items])
    opt.save(tmp_path / "file")
    tensors, metadata = map_tensors(tmp_path / "file")
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    metadata = {key: value for key, value in metadata.items() if not key.startswith("crc32")}

    def write(**changes):
        entry = json.loads(metadata["variables.1"]) | changes
        del entry["since"]
        write_tensors(tmp_path / "other", tensors, metadata | {"variables.1": json.dumps(entry)})
        return tmp_path / "other"

    RMSprop.load(write(), [users, items])
    for name in ("variable 0", "\ud800"):
        with pytest.raises(ValueError, match=r"expected (different names|a name)"):
            RMSprop.load(write(name=name), [users, items])
