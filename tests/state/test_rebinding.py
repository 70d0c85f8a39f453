"""Variables that go on at another array, and variables that are forgotten."""

import numpy as np
import pytest
from optimizer_internals import names_of
from trained_tables import ones_for_rows, trained_on_ones

from numba_rmsprop import CheckpointManager, RMSprop

ONES = np.ones((4, 2))


@pytest.mark.parametrize("which", ["array", "number", "name"])
def test_a_rebound_variable_goes_on_with_its_state(which):
    var, same = ONES.copy(), ONES.copy()
    opt, expected = trained_on_ones(var, momentum=0.9), trained_on_ones(same, momentum=0.9)
    for _ in range(3):
        norms = np.linalg.norm(var, axis=1, keepdims=True)
        moved = var / norms
        opt.rebind({"array": var, "number": 0, "name": "variable 0"}[which], moved)
        same /= norms
        var = moved
        opt.apply_gradients([(ONES, var)])
        expected.apply_gradients([(ONES, same)])
    assert var.tobytes() == same.tobytes()
    assert [a.tobytes() for a in opt.get_weights()] == [a.tobytes() for a in expected.get_weights()]


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_an_array_of_another_layout_goes_on_alike(layout):
    def laid_out(array):
        return {"C": array.copy(), "F": np.asfortranarray(array), "strided": np.repeat(array, 2, axis=1)[:, ::2]}[
            layout
        ]

    for first in (ONES.copy(), np.asfortranarray(ONES)):
        same = first.copy(order="K")
        opt, expected = trained_on_ones(first), trained_on_ones(same)
        moved = laid_out(first)
        opt.rebind(first, moved)
        for stepping, var in ((opt, moved), (expected, same)):
            stepping.apply_gradients([(ONES, var)])
            stepping.apply_gradients(ones_for_rows(var, 1, 1))
        np.testing.assert_array_equal(moved, same)


def test_rows_that_are_behind_stay_so_at_another_array():
    var = np.ones((6, 2))
    opt, same = RMSprop(0.1, momentum=0.9), var.copy()
    expected = RMSprop(0.1, momentum=0.9)
    for _ in range(3):
        opt.gather(var, [1])
        opt.apply_gradients(ones_for_rows(var, 1))
        opt.rebind(var, var := var.copy())
        expected.gather(same, [1])
        expected.apply_gradients(ones_for_rows(same, 1))
    opt.flush()
    expected.flush()
    assert var.tobytes() == same.tobytes()


def test_a_delta_after_a_rebind_holds_the_new_values(tmp_path):
    var = ONES.copy()
    opt = trained_on_ones(var)
    opt.save(tmp_path / "base", include_variables=True)
    opt.rebind(var, np.full((4, 2), 7.0))
    opt.save_delta(tmp_path / "delta")
    loaded = np.zeros((4, 2))
    RMSprop.load([tmp_path / "base", tmp_path / "delta"], [loaded])
    np.testing.assert_array_equal(loaded, 7.0)


@pytest.mark.parametrize(
    ("variable", "array", "error", "message"),
    [
        (0, np.ones((4, 3)), ValueError, r"array: expected variable 0 \(float64, shape \(4, 2\)\)"),
        (0, np.ones((4, 2), np.float32), ValueError, "array: expected variable 0"),
        (0, [1.0], TypeError, "array must be a NumPy array"),
        (1, np.ones((4, 2)), KeyError, "number 1 is none of this optimizer's 1 variables: variable 0"),
        (-1, np.ones((4, 2)), KeyError, "number -1"),
        ("users", np.ones((4, 2)), KeyError, "'users' is none"),
        (np.ones((4, 2)), np.ones((4, 2)), KeyError, r"the variable \(float64, shape \(4, 2\)\) is none"),
        (None, np.ones((4, 2)), TypeError, "an array, a number or a name, got NoneType"),
    ],
)
def test_invalid_rebinds_are_refused(variable, array, error, message):
    var = ONES.copy()
    opt = trained_on_ones(var)
    before = var.tobytes(), opt.get_slot(var, "rms").tobytes()
    with pytest.raises(error, match=message):
        opt.rebind(variable, array)
    assert (var.tobytes(), opt.get_slot(var, "rms").tobytes()) == before


def test_a_variable_does_not_go_on_at_another_one():
    flat = np.ones(12)
    a, b = flat[:4], flat[4:8]
    opt = RMSprop()
    opt.build([a, b])
    with pytest.raises(ValueError, match="is variable 1; expected one that is no other variable"):
        opt.rebind(a, b)
    with pytest.raises(ValueError, match="overlaps variable 1"):
        opt.rebind(a, flat[6:10])
    opt.rebind(b, flat[5:9])  # the new place may overlap the old one
    opt.apply_gradients([(np.ones(4), flat[5:9])])
    assert flat[8] != 1


def test_a_forgotten_variable_starts_from_nothing():
    a, b = ONES.copy(), ONES.copy()
    opt = trained_on_ones(a)
    opt.apply_gradients([(ONES, b)])
    opt.forget(a)
    assert len(opt.get_weights()) == 2
    with pytest.raises(KeyError, match="has no slots yet"):
        opt.get_slot(a, "rms")
    opt.apply_gradients([(ONES, a), (ONES, b)])
    np.testing.assert_allclose(opt.get_slot(a, "rms"), 0.1)
    assert names_of(opt) == ["variable 1", "variable 2"]  # no name comes twice
    with pytest.raises(KeyError, match="none of this optimizer's"):
        opt.forget(a, ONES.copy())
    assert len(opt.get_weights()) == 3


def test_a_delta_cannot_go_on_from_a_file_with_a_variable_that_was_forgotten(tmp_path):
    a, b = ONES.copy(), ONES.copy()
    opt, manager = RMSprop(), CheckpointManager(tmp_path / "many", full_every=10)
    opt.build([a, b])
    opt.save(tmp_path / "base")
    manager.save(opt)
    opt.forget(a)
    with pytest.raises(ValueError, match=r"call opt\.save first"):
        opt.save_delta(tmp_path / "delta")
    assert [path.name for path in (manager.save(opt), *manager.latest())] == ["checkpoint-000000002.safetensors"] * 2


TAKING = {
    "rebind": lambda opt, var, slot: opt.rebind(var, slot),
    "build": lambda opt, var, slot: opt.build([slot]),
    "step": lambda opt, var, slot: opt.apply_gradients([(np.ones((4, 2)), slot)]),
}


@pytest.mark.parametrize("take", TAKING)
def test_a_slot_is_no_variable(take):
    opt, var = RMSprop(0.1), np.ones((4, 2))
    opt.apply_gradients([(np.ones((4, 2)), var)])
    slot = opt.get_slot(var, "rms")
    before = var.copy(), slot.copy()
    with pytest.raises(ValueError, match=r"overlaps rms of variable 0 \(float64, shape \(4, 2\)\)"):
        TAKING[take](opt, var, slot)
    assert (var == before[0]).all()
    assert (slot == before[1]).all()
