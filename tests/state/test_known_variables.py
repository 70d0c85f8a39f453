"""Which array is which variable: copied, loaded, moved, dropped, and seen for the first time among thousands."""

import copy
import pickle
import sys
import warnings
import weakref
from functools import partial

import joblib
import numpy as np
import pytest

from numba_rmsprop import CheckpointManager, IndexedSlices, RMSprop
from numba_rmsprop.arrays.variables import Occupied
from numba_rmsprop.state.registry import MemoryRanges
from numba_rmsprop.state.slots import Slots

ONES = np.ones((4, 2))


def trained(var, steps=3, **options):
    opt = RMSprop(0.1, **options)
    for _ in range(steps):
        opt.apply_gradients([(np.ones(var.shape), var)])
    return opt


def rows(var, *indices):
    return [(IndexedSlices(np.ones((len(indices), *var.shape[1:]), var.dtype), list(indices)), var)]


# Going on at another array


@pytest.mark.parametrize("which", ["array", "number", "name"])
def test_a_rebound_variable_goes_on_with_its_state(which):
    var, same = ONES.copy(), ONES.copy()
    opt, expected = trained(var, momentum=0.9), trained(same, momentum=0.9)
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
        opt, expected = trained(first), trained(same)
        moved = laid_out(first)
        opt.rebind(first, moved)
        for pairs, expected_pairs in [([(ONES, moved)], [(ONES, same)]), (rows(moved, 1, 1), rows(same, 1, 1))]:
            opt.apply_gradients(pairs)
            expected.apply_gradients(expected_pairs)
        np.testing.assert_array_equal(moved, same)


def test_rows_that_are_behind_stay_so_at_another_array():
    var = np.ones((6, 2))
    opt, same = RMSprop(0.1, momentum=0.9), var.copy()
    expected = RMSprop(0.1, momentum=0.9)
    for _ in range(3):
        opt.gather(var, [1])
        opt.apply_gradients(rows(var, 1))
        opt.rebind(var, var := var.copy())
        expected.gather(same, [1])
        expected.apply_gradients(rows(same, 1))
    opt.flush()
    expected.flush()
    assert var.tobytes() == same.tobytes()


def test_a_delta_after_a_rebind_holds_the_new_values(tmp_path):
    var = ONES.copy()
    opt = trained(var)
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
def test_what_cannot_be_rebound(variable, array, error, message):
    var = ONES.copy()
    opt = trained(var)
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
    opt.rebind(b, flat[5:9])  # which may overlap where it was itself
    opt.apply_gradients([(np.ones(4), flat[5:9])])
    assert flat[8] != 1


def test_a_forgotten_variable_starts_from_nothing():
    a, b = ONES.copy(), ONES.copy()
    opt = trained(a)
    opt.apply_gradients([(ONES, b)])
    opt.forget(a)
    assert len(opt.get_weights()) == 2
    with pytest.raises(KeyError, match="has no slots yet"):
        opt.get_slot(a, "rms")
    opt.apply_gradients([(ONES, a), (ONES, b)])
    np.testing.assert_allclose(opt.get_slot(a, "rms"), 0.1)
    assert [own.name for own in opt._slots] == ["variable 1", "variable 2"]  # no name comes twice
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


# Copies and pickles


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "load"])
@pytest.mark.parametrize("call", ["apply_gradients", "gather", "get_slot", "flush", "build", "add_slot"])
def test_an_unknown_array_is_refused_after_restoring_without_the_variable(how, call, tmp_path):
    var = ONES.copy()
    opt = trained(var)
    if how == "load":
        opt.save(tmp_path / "file", include_variables=True)
        restored = RMSprop.load(tmp_path / "file", [np.zeros((4, 2))])
    else:
        restored = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
    elsewhere = var.copy()
    arguments = {
        "apply_gradients": lambda: [[(ONES, elsewhere)]],
        "gather": lambda: [elsewhere, [0]],
        "get_slot": lambda: [elsewhere, "rms"],
        "build": lambda: [[elsewhere]],
        "add_slot": lambda: [elsewhere, "average"],
    }.get(call, lambda: [elsewhere])()
    with pytest.raises(ValueError, match=r"call opt.rebind\('variable 0', array\).*opt.forget\('variable 0'\)"):
        getattr(restored, call)(*arguments)
    assert elsewhere.tobytes() == var.tobytes()
    restored.rebind("variable 0", elsewhere)
    restored.apply_gradients([(ONES, elsewhere)])
    opt.apply_gradients([(ONES, var)])
    assert elsewhere.tobytes() == var.tobytes()


def test_joblib_keeps_no_link_and_rebind_makes_it_anew(tmp_path):
    var = ONES.copy()
    opt = trained(var, momentum=0.9)
    joblib.dump((opt, var), tmp_path / "run")
    restored, elsewhere = joblib.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"opt\.rebind"):
        restored.apply_gradients([(ONES, elsewhere)])
    restored.rebind(0, elsewhere)
    restored.apply_gradients([(ONES, elsewhere)])
    opt.apply_gradients([(ONES, var)])
    assert elsewhere.tobytes() == var.tobytes()


def test_a_new_variable_is_no_stranger_where_the_restored_ones_are_held():
    var = ONES.copy()
    opt, var = pickle.loads(pickle.dumps((trained(var), var)))
    opt.apply_gradients([(ONES, ONES.copy())])
    assert opt.apply_gradients([(ONES, var)]) == 5
    assert len(opt.weights) == 3


def test_a_new_variable_is_no_stranger_of_another_shape_or_once_all_were_used():
    var = ONES.copy()
    opt = pickle.loads(pickle.dumps(trained(var)))
    others = [np.ones((4, 3)), ONES.astype(np.float32)]
    opt.build(others)
    opt.rebind(0, var)
    other = ONES.copy()
    opt.build([other])
    assert len(opt.weights) == 5


class Model:
    def __init__(self, order):
        self.flat = np.ones((6, 2), order=order)

    @property
    def part(self):
        return self.flat[1:5]


def pickled(both, protocol):
    return pickle.loads(pickle.dumps(both, protocol))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("how", [partial(pickled, protocol=4), partial(pickled, protocol=5), copy.deepcopy])
def test_views_stay_views_of_what_was_copied_with_them(how, order):
    model = Model(order)
    opt = trained(model.part, momentum=0.9)
    opt.apply_gradients(rows(model.part, 2))
    copied, other = how((opt, model))
    copied.flush()
    opt.flush()
    assert other.flat.tobytes() == model.flat.tobytes()
    for optimizer, its in ((copied, other), (opt, model)):
        optimizer.apply_gradients([(ONES, its.part)])
    assert other.flat.tobytes() == model.flat.tobytes()
    assert len(copied.weights) == 3
    copied, other = how((copied, other))  # and once more
    copied.apply_gradients([(ONES, other.part)])
    assert len(copied.weights) == 3


def test_a_view_that_was_itself_copied_with_the_optimizer_is_the_variable():
    flat = np.ones((6, 2))
    part = flat[1:5]
    opt, part, flat = pickle.loads(pickle.dumps((trained(part), part, flat)))
    before = part.copy()
    opt.apply_gradients([(ONES, part)])
    assert (part != before).all()
    assert len(opt.weights) == 2


# Arrays that nobody holds


def test_a_loop_that_hands_over_new_arrays_is_told_once_and_keeps_few():
    var, opt, kept = np.ones((50, 8)), RMSprop(0.1), []

    def step():
        nonlocal var
        opt.apply_gradients([(np.ones((50, 8)), var)])
        var = var / np.linalg.norm(var, axis=1, keepdims=True)
        kept.append(len(opt._slots))

    first = weakref.ref(var)
    step()
    step()
    with pytest.warns(UserWarning, match=r"table /= norms.*opt\.rebind\(table, new\)") as told:
        step()
    for _ in range(20):
        step()
    assert len(told) == 1
    assert told[0].filename == __file__
    assert max(kept) <= 2
    assert first() is None


def test_a_copy_as_a_variable_is_told():
    table, opt = np.ones((10, 2)), RMSprop(0.1)
    for _ in range(2):
        opt.apply_gradients([(np.ones((2, 2)), table[[1, 2]])])
    with pytest.warns(UserWarning, match=r"a copy, such as table\[\[1, 2\]\], takes its changes with it"):
        opt.apply_gradients([(np.ones((2, 2)), table[[1, 2]])])


def test_a_warning_as_an_error_leaves_the_call_undone_and_comes_once():
    opt = RMSprop(0.1)
    for _ in range(2):
        opt.apply_gradients([(np.ones(3), np.zeros(3))])
    with pytest.raises(UserWarning, match="new array"):
        opt.apply_gradients([(np.ones(3), np.zeros(3))])
    assert opt.iterations == 2
    var = np.zeros(3)
    assert opt.apply_gradients([(np.ones(3), var)]) == 3
    assert opt.apply_gradients([(np.ones(3), var)]) == 4


def test_new_arrays_at_times_are_no_loop():
    opt = RMSprop(0.1)
    for _ in range(6):  # as in folds, which start anew
        var = np.zeros(3)
        for _ in range(5):
            opt.apply_gradients([(np.ones(3), var)])
    for _ in range(4):  # built, and never stepped
        opt.build([np.zeros(3)])
    a, b = np.zeros(4), np.zeros(4)
    opt.apply_gradients([(np.ones(4), a), (np.ones(4), b)])
    del a, b
    opt.build([np.zeros(4)])


def test_what_somebody_may_still_hold_stays(tmp_path):
    opt = RMSprop(0.1)
    flat, held = np.ones(8), np.ones(5)
    mapped = np.memmap(tmp_path / "map", np.float64, "w+", shape=3)
    listed = {"inside": [np.ones(2)]}
    foreign = np.frombuffer(bytearray(32))
    buffer = memoryview(viewed := np.ones(6))
    variables = [flat[:4], flat[4:], held, mapped, listed["inside"][0], foreign, viewed]
    opt.build(variables)
    lengths = [len(var) for var in variables]
    del variables, viewed, mapped, foreign
    for n in range(20, 30):
        opt.build([np.ones(n)])
    assert [len(own.var) for own in opt._slots][: len(lengths)] == lengths
    assert len(opt._slots) <= len(lengths) + 2
    assert len(buffer) == 6
    del flat, held, listed, buffer
    opt.build([np.ones(100_000)])
    assert [len(own.var) for own in opt._slots] == [3, 4, 100_000]


def test_a_view_keeps_the_other_views_of_its_array():
    flat, opt = np.ones(8), RMSprop(0.1)
    a, b = flat[:4], flat[4:]
    opt.build([a, b])
    del flat, a
    opt.build([np.ones(100_000)])
    assert [len(own.var) for own in opt._slots] == [4, 4, 100_000]
    opt.apply_gradients([(np.ones(4), b.base[:4])])
    assert b.base[0] != 1
    del b
    opt.build([np.ones(200_000)])
    assert [len(own.var) for own in opt._slots] == [200_000]


def test_a_restored_variable_that_nobody_holds_yet_is_not_let_go():
    opt = pickle.loads(pickle.dumps(trained(ONES.copy())))
    others = [np.ones(n) for n in range(3, 40)]
    for other in others:
        opt.build([other])
    var = ONES.copy()
    opt.rebind(0, var)
    assert opt.get_slot(var, "rms").all()


# Thousands of variables


def test_thousands_of_new_variables_take_calls_in_their_number():
    def calls(n):
        variables, opt, count = [np.ones(8) for _ in range(n)], RMSprop(), 0

        def note(*_):
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            opt.build(variables[: n // 2])
            for var in variables[n // 2 :]:
                opt.build([var])
        finally:
            sys.setprofile(None)
        return count

    calls(200)  # compiles
    assert calls(2000) < 15 * calls(200)  # each against each other would be 100 times


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_all_that_reach_into_an_array(seed):
    rng = np.random.default_rng(seed)
    memory = np.zeros(400)
    places, known = MemoryRanges(), []
    for _ in range(60):
        begin, length, step = rng.integers(0, 300), rng.integers(1, 40), rng.integers(1, 3)
        view = memory[begin : begin + length : step]
        expected = {own for own in known if np.may_share_memory(own.var, view)}
        assert set(places.near(view)) == expected
        if rng.random() < 0.7:
            own = Slots(view, "a", momentum=False, centered=False, exact=True, decays=False)
            known.append(own)
            places.add(own)
        elif known:
            places.remove(known.pop(rng.integers(len(known))))


def test_occupied_memory_that_grows_and_shrinks_is_that_of_its_arrays():
    rng, memory = np.random.default_rng(0), np.zeros(1000)
    arrays, occupied = [], Occupied([])
    for begins in rng.permutation(900)[:120].reshape(40, 3):
        more = [memory[i : i + rng.integers(1, 30)] for i in begins]
        arrays, occupied = arrays + more, occupied.with_more(more)
        gone = arrays.pop(rng.integers(len(arrays)))
        occupied = occupied.without([gone, np.ones(3)])
        np.testing.assert_array_equal(occupied.array, Occupied(arrays).array)


def test_one_array_is_one_variable_and_not_its_rows():
    opt, table = RMSprop(), np.ones((5, 2))
    opt.build(table)
    assert [array.shape for array in opt.weights] == [(), (5, 2)]


def test_interleaved_views_that_share_no_element_are_variables():
    table, opt = np.zeros((5, 40)), RMSprop(0.1, rho=0.0, epsilon=0.0)
    opt.apply_gradients([(np.full(5, 1.0), table[:, k]) for k in range(39)])
    np.testing.assert_array_equal(table[:, :39], -0.1)
    with pytest.raises(ValueError, match=r"overlaps variable [789] "):
        opt.apply_gradients([(np.ones((5, 3)), table[:, 7:10])])
    opt.apply_gradients([(np.ones(5), table[:, 39])])
    np.testing.assert_array_equal(table[:, 39], -0.1)


def test_warnings_of_the_loop_are_the_only_ones():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        var, opt = np.ones(3), RMSprop(0.1)
        for _ in range(5):
            opt.apply_gradients([(np.ones(3), var[:])])  # another view of the same memory each time
    assert len(opt.weights) == 2
