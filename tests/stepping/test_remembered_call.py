"""A call with the variables of the one before takes a shorter way, to the same bits and the same errors."""

import pickle
import sys
import tracemalloc
import warnings

import numba
import numpy as np
import pytest
from optimizer_internals import forget_call, refuse_closer_looks, remembered_call
from reference import Reference, assert_close
from strategies import VARIANTS

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.arrays import noted_layouts

DTYPES = [np.float32, np.float64]


def variables(dtype):
    return [np.ones(5, dtype), np.ones((3, 4), dtype), np.array(1.0, dtype), np.ones((50, 2), dtype), np.ones(9, dtype)]


def gradients(step, dtype):
    rng = np.random.default_rng(step)
    sparse = IndexedSlices(rng.standard_normal((4, 2)).astype(dtype), [step % 50, 7, 7, 3])
    dense = [rng.standard_normal(shape).astype(dtype) for shape in [(5,), (3, 4), ()]]
    return [*dense, sparse, rng.standard_normal(9).astype(dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_the_bits_of_a_closer_look(dtype, momentum, centered):
    planned, unplanned = (RMSprop(0.01, momentum=0.9 * momentum, centered=centered) for _ in range(2))
    with_plan, without = variables(dtype), variables(dtype)
    for step in range(6):
        planned.apply_gradients(list(zip(gradients(step, dtype), with_plan, strict=True)))
        assert remembered_call(planned).batches
        forget_call(unplanned)
        unplanned.apply_gradients(list(zip(gradients(step, dtype), without, strict=True)))
    planned.flush()
    unplanned.flush()
    for a, b in zip([*with_plan, *planned.weights], [*without, *unplanned.weights], strict=True):
        assert a.tobytes() == b.tobytes()


def test_the_second_call_needs_no_closer_look(monkeypatch):
    opt, var, table = RMSprop(0.1), np.ones(3), np.ones((4, 2))
    pairs = [(np.ones(3), var), (IndexedSlices(np.ones((1, 2)), [0]), table)]
    opt.apply_gradients(pairs)
    refuse_closer_looks(opt, monkeypatch)
    assert opt.apply_gradients(pairs) == 2


def test_gradients_that_were_unpickled_need_no_closer_look(monkeypatch):
    opt, var = RMSprop(0.1), pickle.loads(pickle.dumps(np.ones(3, np.float32)))
    opt.apply_gradients([(np.ones(3, np.float32), var)])
    refuse_closer_looks(opt, monkeypatch)
    opt.apply_gradients([(pickle.loads(pickle.dumps(np.ones(3, np.float32))), var)])
    assert opt.apply_gradients([(np.ones(3, np.float32), var)]) == 3


def test_an_unknown_layout_of_arrays_takes_the_longer_way(monkeypatch):
    monkeypatch.setattr("numba_rmsprop.arrays.noted_layouts.DATA", 24)
    noted_layouts.layout_is_known.cache_clear()
    opt, var = RMSprop(0.1, rho=0.0), np.zeros(3)
    with pytest.warns(RuntimeWarning, match="please report"):
        opt.apply_gradients([(np.ones(3), var)])
    opt.apply_gradients([(np.ones(3), var)])
    monkeypatch.undo()
    noted_layouts.layout_is_known.cache_clear()
    assert remembered_call(opt) is None
    np.testing.assert_allclose(var, -0.2, rtol=1e-5)


def overlapping(var):
    return var[::-1], var[::-1].copy()


def in_the_same_memory(var):
    return var, var.copy()


def strided(var):
    wide = np.arange(12.0).reshape(6, 2)
    return wide[:, 0], wide[:, 0].copy()


def a_subclass(var):
    values = np.arange(6.0).view(np.memmap)
    return values, np.array(values)


def a_list(var):
    return [1.0] * 6, np.ones(6)


def sparse(var):
    return IndexedSlices(np.array([2.0]), [4]), np.array([0, 0, 0, 0, 2.0, 0])


@pytest.mark.parametrize("kind", [overlapping, in_the_same_memory, strided, a_subclass, a_list, sparse])
def test_gradients_that_a_batch_cannot_read_where_they_lie(kind):
    opt, plain = RMSprop(0.1), RMSprop(0.1)
    var, other = np.arange(1.0, 7.0), np.arange(1.0, 7.0)
    for _ in range(2):
        opt.apply_gradients([(np.ones(6), var)])
        plain.apply_gradients([(np.ones(6), other)])
    for _ in range(2):
        grad, copied = kind(var)
        opt.apply_gradients([(grad, var)])
        forget_call(plain)
        plain.apply_gradients([(copied, other)])
        np.testing.assert_array_equal(var, other)
    opt.apply_gradients([(np.ones(6), var)])
    plain.apply_gradients([(np.ones(6), other)])
    np.testing.assert_array_equal(var, other)


def frozen(opt, var, grad):
    var.flags.writeable = False
    return [(grad, var)]


def reshaped(opt, var, grad):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.5 and later advise against it
        var.shape = (2, 3)
    return [(grad, var)]


WRONG = {
    "read-only": (frozen, ValueError, "read-only"),
    "another shape in place": (reshaped, ValueError, r"its shape was \(6,\) and is now \(2, 3\)"),
    "dtype": (lambda opt, var, grad: [(grad.astype(np.float32), var)], TypeError, "expected dtype float64"),
    "byte order": (lambda opt, var, grad: [(grad.astype(">f8"), var)], TypeError, "expected dtype float64"),
    "shape": (lambda opt, var, grad: [(grad.reshape(2, 3), var)], ValueError, r"expected shape \(6,\)"),
    "size": (lambda opt, var, grad: [(grad[:5], var)], ValueError, r"expected shape \(6,\)"),
    "axes": (lambda opt, var, grad: [(grad[np.newaxis], var)], ValueError, r"expected shape \(6,\)"),
    "None": (lambda opt, var, grad: [(None, var)], ValueError, "at least one variable"),
    "twice": (lambda opt, var, grad: [(grad, var), (grad, var)], ValueError, "comes twice"),
    "no pair": (lambda opt, var, grad: [(grad,)], TypeError, "got 1 items"),
    "three": (lambda opt, var, grad: [(grad, var, grad)], TypeError, "got 3 items"),
    "nothing iterable": (lambda opt, var, grad: [3], TypeError, "expected a pair"),
    "another dtype of the same memory": (lambda opt, var, grad: [(grad, var.view(np.int64))], TypeError, "int64"),
    "no variable": (lambda opt, var, grad: [(grad, 3)], TypeError, "NumPy array, got int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_after_right_ones_leave_every_byte(case):
    make, error, message = WRONG[case]
    opt, var, grad = RMSprop(0.1, momentum=0.9), np.ones(6), np.arange(6.0)
    opt.apply_gradients([(grad, var)])
    opt.apply_gradients([(grad, var)])
    before = var.tobytes(), opt.get_slot(var, "rms").tobytes(), opt.get_slot(var, "momentum").tobytes()
    with pytest.raises(error, match=message):
        opt.apply_gradients(make(opt, var, grad))
    slots = opt.known.slots[0]
    assert (var.tobytes(), slots.slots["rms"].tobytes(), slots.slots["momentum"].tobytes()) == before
    assert opt.iterations == 2


def test_gradients_that_are_each_others_variables():
    """As for the loss a·b, whose gradients are b and a."""
    a, b = np.array([1.0, 2.0]), np.array([10.0, -20.0])
    reference, opt = Reference([a, b]), RMSprop(0.1)
    for _ in range(3):
        reference.step([reference.vars[1], reference.vars[0]], lr=0.1)
        opt.apply_gradients([(b, a), (a, b)])
    assert_close(a, reference.vars[0], 1e-12)
    assert_close(b, reference.vars[1], 1e-12)


def test_other_variables_than_before():
    opt = RMSprop(0.1, rho=0.0)
    a, b = np.zeros(3), np.zeros(3)
    for chosen in ([a, b], [b, a], [a], [b], [a, b], [b, a]):
        opt.apply_gradients([(np.full(3, 1.0 if var is a else -1.0), var) for var in chosen])
    np.testing.assert_allclose(a, -0.5, rtol=1e-5)
    np.testing.assert_allclose(b, 0.5, rtol=1e-5)


def test_an_equal_array_is_not_the_variable():
    opt, var, grad = RMSprop(0.1, rho=0.0), np.zeros(3), np.ones(3)
    opt.apply_gradients([(grad, var)])
    opt.apply_gradients([(grad, var)])
    lookalike = var.copy()
    opt.apply_gradients([(grad, lookalike)])
    np.testing.assert_allclose(var, -0.2, rtol=1e-5)
    np.testing.assert_allclose(lookalike, -0.3, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 40])
def test_variables_of_both_dtypes_and_all_sizes(count, threads):
    opt = RMSprop(0.1, rho=0.0)
    few = 5 if numba.config.DISABLE_JIT else 1
    tables = [np.zeros(1 + 700 * k, DTYPES[k % 2]) for k in range(0, count, few)]
    for _ in range(3):
        opt.apply_gradients([(np.ones(table.shape, table.dtype), table) for table in tables])
    for table in tables:
        np.testing.assert_allclose(table, -0.3, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.5},
        {"lr": 0.5},
        {"rho": 0.3},
        {"epsilon": 0.1},
        {"decay": 0.5},
        {"momentum": 0.3},
        {"clipvalue": 0.01},
        {"clipnorm": 0.01},
        {"global_clipnorm": 0.01},
    ],
    ids=str,
)
def test_settings_changed_between_calls_take_effect(change):
    settings = {"learning_rate": 0.1, "rho": 0.9, "epsilon": 1e-7, "decay": 0.0, "momentum": 0.9}
    opt, var = RMSprop(**settings), np.zeros(3)
    for _ in range(2):
        opt.apply_gradients([(np.ones(3), var)])
    fresh, expected = RMSprop(**(settings | change)), var.copy()
    fresh.build([expected])
    fresh.set_weights(opt.get_weights())
    for name, value in change.items():
        setattr(opt, name, value)
    for _ in range(2):
        opt.apply_gradients([(np.ones(3), var)])
        fresh.apply_gradients([(np.ones(3), expected)])
        np.testing.assert_array_equal(var, expected)


def test_a_sparse_step_allocates_nothing_of_the_size_of_the_table():
    table = np.zeros((200_000, 8), np.float32)
    opt, rng = RMSprop(0.1, momentum=0.9), np.random.default_rng(0)
    grad = IndexedSlices(np.ones((64, 8), np.float32), rng.integers(0, len(table), 64))
    for _ in range(2):  # the first compiles
        opt.apply_gradients([(grad, table)])
        opt.gather(table, grad.indices)
    tracemalloc.start()
    opt.apply_gradients([(grad, table)])
    opt.gather(table, grad.indices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.parametrize("settings", [{}, {"global_clipnorm": 0.1}, {"sparse_update": "lazy"}], ids=str)
def test_marks_are_gone_after_a_step(settings, threads, launches):
    opt, table = RMSprop(0.1, **settings), np.ones((600, 2))
    indices = np.r_[np.arange(600), np.full(600, 7), np.arange(599, -1, -1)]
    opt.apply_gradients([(IndexedSlices(np.ones((1800, 2)), indices), table)])
    slots = opt.known.slots[0]
    assert (slots.clocks == 1).all()
    assert not slots.scratch.seen().any()


def test_a_hot_row_is_summed_in_order(threads, launches):
    values = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    indices = np.where(np.arange(5000) % 2 == 0, 5, np.arange(5000) % 40)
    table = np.zeros((40, 3), np.float32)
    opt = RMSprop(1.0, rho=0.0, epsilon=0.0, epsilon_in_sqrt=False)
    opt.apply_gradients([(IndexedSlices(values, indices), table)])
    summed = np.zeros_like(table)
    np.add.at(summed, indices, values)
    assert opt.get_slot(table, "rms").tobytes() == (summed * summed).tobytes()


def python_calls(function):
    """Return how many functions in Python a call comes to."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="kernels are Python")
@pytest.mark.parametrize("options", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"check_finite": True}], ids=str)
def test_small_variables_add_no_python_call_to_a_step(options):
    def calls(n):
        opt, pairs = RMSprop(0.1, **options), [(np.ones(5), np.ones(5)) for _ in range(n)]
        for _ in range(2):
            opt.apply_gradients(pairs)
        return python_calls(lambda: opt.apply_gradients(pairs))

    assert calls(100) <= calls(10) + 100 * ("clipnorm" in options)
