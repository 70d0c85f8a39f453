"""Variables that nobody but the optimizer holds are let go; loops that pass a new array at each step are warned."""

import gc
import pickle
import warnings
import weakref

import numpy as np
import pytest
from optimizer_internals import all_slots
from trained_tables import trained_on_ones

from numba_rmsprop import RMSprop

ONES = np.ones((4, 2))


def test_a_loop_with_new_arrays_warns_once_and_keeps_few():
    var, opt, kept = np.ones((50, 8)), RMSprop(0.1), []

    def step():
        nonlocal var
        opt.apply_gradients([(np.ones((50, 8)), var)])
        var = var / np.linalg.norm(var, axis=1, keepdims=True)
        kept.append(len(all_slots(opt)))

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


def test_a_copy_as_a_variable_warns():
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


def test_new_arrays_now_and_then_do_not_warn():
    opt = RMSprop(0.1)
    for _ in range(6):  # as in cross-validation
        var = np.zeros(3)
        for _ in range(5):
            opt.apply_gradients([(np.ones(3), var)])
    for _ in range(4):  # built, and never stepped
        opt.build([np.zeros(3)])
    a, b = np.zeros(4), np.zeros(4)
    opt.apply_gradients([(np.ones(4), a), (np.ones(4), b)])
    del a, b
    opt.build([np.zeros(4)])


def lengths_of(opt):
    return [len(slots.var) for slots in all_slots(opt)]


def test_variables_that_may_still_be_held_stay(tmp_path):
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
    assert lengths_of(opt)[: len(lengths)] == lengths
    assert len(all_slots(opt)) <= len(lengths) + 2
    assert len(buffer) == 6
    del flat, held, listed, buffer
    opt.build([np.ones(100_000)])
    assert lengths_of(opt) == [3, 4, 100_000]


def test_a_view_keeps_the_other_views_of_its_array():
    flat, opt = np.ones(8), RMSprop(0.1)
    a, b = flat[:4], flat[4:]
    opt.build([a, b])
    del flat, a
    opt.build([np.ones(100_000)])
    assert lengths_of(opt) == [4, 4, 100_000]
    opt.apply_gradients([(np.ones(4), b.base[:4])])
    assert b.base[0] != 1
    del b
    opt.build([np.ones(200_000)])
    assert lengths_of(opt) == [200_000]


def test_a_restored_variable_that_nobody_holds_yet_is_not_let_go():
    opt = pickle.loads(pickle.dumps(trained_on_ones(ONES.copy())))
    others = [np.ones(n) for n in range(3, 40)]
    for other in others:
        opt.build([other])
    var = ONES.copy()
    opt.rebind(0, var)
    assert opt.get_slot(var, "rms").all()


def test_new_views_of_one_array_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        var, opt = np.ones(3), RMSprop(0.1)
        for _ in range(5):
            opt.apply_gradients([(np.ones(3), var[:])])  # another view of the same memory each time
    assert len(opt.weights) == 2


def test_a_dropped_optimizer_and_a_forgotten_variable_free_their_memory_at_once():
    var, opt = np.ones((4, 2)), RMSprop(0.1, momentum=0.9)
    for _ in range(2):
        opt.apply_gradients([(np.ones((4, 2)), var)])
    gc.disable()
    try:
        forgotten = weakref.ref(opt.get_slot(var, "rms"))
        opt.forget(var)
        assert forgotten() is None
        dropped = weakref.ref(opt)
        del opt
        assert dropped() is None
    finally:
        gc.enable()
