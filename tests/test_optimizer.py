"""RMSprop itself: steps, gather, copies, and refused calls."""

import copy
import inspect
import pickle
import warnings

import numba
import numpy as np
import pytest
from reference import Reference, assert_close, densified

from numba_rmsprop import IndexedSlices, RMSprop, kernels, schedules


def sparse(rows=2, columns=3):
    return IndexedSlices(np.ones((rows, columns)), np.arange(rows))


def test_the_first_example_of_the_documentation():
    opt = RMSprop(learning_rate=0.1)
    var1 = np.array(10.0)
    loss = lambda: (var1**2) / 2.0  # noqa: E731
    step_count = opt.minimize(loss, [var1])
    assert step_count == 1
    np.testing.assert_allclose(var1, 9.683772, atol=5e-7)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        (3, TypeError, r"expected \(gradient, variable\) pairs, got 3"),
        ([np.ones(3)], TypeError, r"grads_and_vars\[0\]: expected a pair \(gradient, variable\), got 3 items"),
        ([(np.ones(3),)], TypeError, "got 1 items"),
        ([(np.ones(3), [1.0, 2.0, 3.0])], TypeError, "whose variable is a NumPy array, got list"),
        ([(np.ones(3), np.ones(3, int))], TypeError, r"variable 0 \(int64, shape \(3,\)\): expected dtype float32, "),
        ([(np.ones(3), np.ones(3, np.int32))], TypeError, "expected dtype float32, float64, float16 or"),
        ([(np.ones(3), np.ones(3, ">f8"))], TypeError, "in native byte order"),
        ([(np.ones(3), np.ma.ones(3))], TypeError, "variable 0 must be a NumPy array.*got MaskedArray"),
        ([(np.ones((2, 2)), np.asmatrix(np.ones((2, 2))))], TypeError, "must be a NumPy array.*got matrix"),
        ([(np.ones((2, 3)), np.broadcast_to(np.ones(3), (2, 3)))], ValueError, "read-only"),
        ([(None, np.ones(3))], ValueError, r"at least one variable, got None for \['grads_and_vars\[0\] \(float64"),
    ],
)
def test_refused_pairs(pairs, error, message):
    with pytest.raises(error, match=message):
        RMSprop().apply_gradients(pairs)


def test_refused_memory():
    base = np.ones(10)
    writable_repeat = np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,))
    frozen = np.ones(3)
    frozen.flags.writeable = False
    unaligned = np.zeros(25, np.uint8)[1:].view(np.float64)
    cases = [
        ([(np.ones(3), frozen)], r"variable 0 \(float64, shape \(3,\)\) is read-only; expected a writable array"),
        ([(np.ones(3), writable_repeat)], "its elements share memory"),
        ([(np.ones(3), unaligned)], "is not aligned"),
        ([(np.ones(6), base[:6]), (np.ones(6), base[4:])], "variable 1 .* overlaps variable 0 .* in memory"),
        ([(np.ones(10), base), (np.ones((2, 5)), base.reshape(2, 5))], r"overlaps .* but is not the same array"),
        ([(np.ones(10), base), (np.ones(10), base[:])], "comes twice, as gradients 0 and 1; expected one gradient"),
    ]
    for pairs, message in cases:
        with pytest.raises(ValueError, match=message):
            RMSprop().apply_gradients(pairs)
    assert (base == 1).all()


def test_interleaved_views_are_apart():
    base = np.ones(10)
    RMSprop(0.1).apply_gradients([(np.ones(5), base[::2]), (np.zeros(5), base[1::2])])
    assert (base[::2] < 1).all()
    assert (base[1::2] == 1).all()


def test_a_variable_that_changed_its_shape():
    var = np.ones((2, 3))
    opt = RMSprop()
    opt.apply_gradients([(np.ones((2, 3)), var)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        var.shape = (3, 2)
    with pytest.raises(ValueError, match=r"variable 0: its shape was \(2, 3\) and is now \(3, 2\)"):
        opt.apply_gradients([(np.ones((3, 2)), var)])


def test_an_empty_list_does_nothing():
    opt = RMSprop()
    assert opt.apply_gradients([]) == 0
    assert opt.apply_gradients(iter(())) == 0


def test_gradients_that_are_none_are_skipped_with_a_warning():
    a, b = np.ones(3), np.ones(3)
    with pytest.warns(UserWarning, match=r"no gradient \(None\) for grads_and_vars\[1\] \(float64, shape \(3,\)\)"):
        RMSprop(0.1).apply_gradients([(np.ones(3), a), (None, b)])
    assert (a < 1).all()
    assert (b == 1).all()


def test_arguments_of_tensorflow_are_taken():
    var = np.ones(3)
    assert RMSprop().apply_gradients([(var, var)], name="step", experimental_aggregate_gradients=False) == 1


def test_gather():
    opt, table = RMSprop(0.1, momentum=0.9), np.arange(12.0).reshape(4, 3)
    assert (opt.gather(table, [[3, 0], [1, 1]]) == table[[[3, 0], [1, 1]]]).all()
    opt.apply_gradients([(sparse(), table)])
    out = np.empty((2, 3))
    assert opt.gather(table, np.array([1, 1], np.uint8), out=out) is out
    assert (out == table[1]).all()
    assert opt.gather(table, []).shape == (0, 3)
    assert opt.gather(np.arange(5.0), [4]).tolist() == [4.0]


@pytest.mark.parametrize(
    ("indices", "out", "error", "message"),
    [
        (
            [0, 4],
            None,
            IndexError,
            r"variable 0 \(float64, shape \(4, 3\)\): indices\[1\] is 4; expected 0 <= index < 4",
        ),
        ([-1], None, IndexError, r"indices\[0\] is -1"),
        ([0.0], None, TypeError, "expected integers, got float64"),
        (
            [0],
            np.empty((1, 3), np.float32),
            ValueError,
            r"out: expected a C-contiguous array \(float64, shape \(1, 3\)\)",
        ),
        ([0], np.empty((1, 6))[:, ::2], ValueError, "C-contiguous: False"),
        ([0], [[0.0, 0.0, 0.0]], TypeError, "out must be a NumPy array"),
    ],
)
def test_refused_gathers(indices, out, error, message):
    opt, table = RMSprop(momentum=0.9), np.ones((4, 3))
    opt.apply_gradients([(sparse(), table)])
    before = table.tobytes()
    with pytest.raises(error, match=message):
        opt.gather(table, indices, out)
    assert table.tobytes() == before


def test_gather_into_the_table_itself_is_refused():
    table = np.ones((4, 3))
    with pytest.raises(ValueError, match="out overlaps"):
        RMSprop().gather(table, [0, 1], out=table[:2])
    with pytest.raises(ValueError, match="has no rows to gather"):
        RMSprop().gather(np.array(1.0), [0])


def test_plain_rmsprop_is_never_behind():
    """Untouched rows keep their values without momentum and weight decay, so there is nothing to flush."""
    opt, table = RMSprop(0.1), np.ones((4, 3))
    opt.apply_gradients([(sparse(), table)])
    opt.apply_gradients([(IndexedSlices(np.ones((1, 3)), [3]), table)])
    before = table.copy()
    opt.flush()
    assert (table == before).all()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_copies_and_pickles_take_equal_steps(copied):
    opt, table = RMSprop(schedules.CosineDecay(0.1, 9), momentum=0.9, centered=True), np.ones((4, 3))
    for t in range(4):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 3)), [t]), table)])
    other, other_table = copied((opt, table))
    assert other_table is not table
    for o, v in ((opt, table), (other, other_table)):
        o.apply_gradients([(IndexedSlices(np.full((1, 3), 0.5), [0]), v)])
        o.flush()
    assert other_table.tobytes() == table.tobytes()
    assert [w.tobytes() for w in other.weights] == [w.tobytes() for w in opt.weights]
    assert len(other.weights) == 4


def test_a_model_with_several_variables_and_all_kinds_of_gradients():
    opt = RMSprop(0.1, momentum=0.5, clipnorm=2.0)
    rng = np.random.default_rng(0)
    table, matrix, bias, scale = rng.random((6, 3)), rng.random((3, 2)), rng.random(2), np.array(1.5)
    reference = Reference([table, matrix, bias, scale], momentum=True)
    for _ in range(5):
        values, rows = rng.random((4, 3)), rng.integers(0, 6, 4)
        dense = [densified(values, rows, (6, 3)), rng.random((3, 2)), rng.random(2), 0.5]
        opt.apply_gradients(zip([IndexedSlices(values, rows), *dense[1:]], [table, matrix, bias, scale], strict=True))
        reference.step(dense, lr=0.1, momentum=0.5, clipnorm=2.0)
    opt.flush()
    for var, expected in zip([table, matrix, bias, scale], reference.vars, strict=True):
        assert_close(var, expected, 1e-12)


def dispatchers():
    for module in vars(kernels).values():
        if inspect.ismodule(module):
            yield from (f for f in vars(module).values() if hasattr(f, "signatures"))


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
def test_other_sizes_do_not_recompile(launches):
    def run(rows, columns, count):
        opt, table, vector = RMSprop(0.1, momentum=0.9), np.ones((rows, columns)), np.ones(rows)
        for _ in range(3):
            values = np.ones((count, columns))
            opt.apply_gradients([(IndexedSlices(values, np.arange(count)), table), (np.ones(rows), vector)])
            opt.gather(table, np.arange(count))
        opt.flush()

    run(10, 4, 3)
    before = {function: len(function.signatures) for function in dispatchers()}
    assert len(before) > 20
    run(1000, 7, 600)
    run(1, 1, 1)
    run(2000, 64, 0)
    assert before == {function: len(function.signatures) for function in dispatchers()}


def test_a_gradient_that_is_another_variable_is_read_before_that_is_stepped():
    """The loss a·b has such gradients, b and a."""
    a, b = np.array([1.0, 2.0]), np.array([10.0, -20.0])
    reference = Reference([a, b])
    opt = RMSprop(0.1)
    for _ in range(3):
        reference.step([reference.vars[1], reference.vars[0]], lr=0.1)
        opt.apply_gradients([(IndexedSlices(b, [0, 1]), a), (a, b)])
    assert_close(a, reference.vars[0], 1e-12)
    assert_close(b, reference.vars[1], 1e-12)


def test_a_gradient_that_is_a_slot():
    var = np.array([1.0, 2.0])
    opt = RMSprop(0.1)
    opt.build([var])
    opt.get_slot(var, "rms")[...] = 4.0
    opt.apply_gradients([(opt.get_slot(var, "rms"), var)])
    np.testing.assert_allclose(opt.get_slot(var, "rms"), 0.9 * 4 + 0.1 * 16)


def test_parts_of_a_variable_are_refused_everywhere():
    opt, var = RMSprop(0.1, momentum=0.9), np.ones((4, 3))
    opt.apply_gradients([(sparse(), var)])
    for call in (lambda: opt.gather(var[:2], [0]), lambda: opt.flush(var[:2]), lambda: opt.get_slot(var[:2], "rms")):
        with pytest.raises(ValueError, match=r"the variable .* overlaps variable 0"):
            call()
    with pytest.raises(TypeError, match=r"the variable must be a NumPy array.*got list"):
        opt.flush([var])


@pytest.mark.parametrize("grad", [np.ones((4, 3)), sparse()])
def test_a_variable_made_read_only_later(grad):
    opt, other, var = RMSprop(0.1), np.ones(3), np.ones((4, 3))
    opt.apply_gradients([(np.ones(3), other), (grad, var)])
    var.flags.writeable = False
    before = other.tobytes(), var.tobytes()
    with pytest.raises(ValueError, match=r"variable 1 .* is read-only"):
        opt.apply_gradients([(np.ones(3), other), (grad, var)])
    assert before == (other.tobytes(), var.tobytes())


def test_variables_whose_elements_overlap():
    windows = np.lib.stride_tricks.as_strided(np.zeros(5), (4, 2), (8, 8))
    with pytest.raises(ValueError, match="its elements share memory"):
        RMSprop().apply_gradients([(np.ones((4, 2)), windows)])


def test_gather_into_a_slot_is_refused():
    opt, var = RMSprop(), np.ones((4, 3))
    opt.build([var])
    with pytest.raises(ValueError, match="or another variable or slot"):
        opt.gather(var, [0, 1, 2, 3], out=opt.get_slot(var, "rms"))


def test_a_shallow_copy_goes_on_by_itself():
    var, opt = np.ones((4, 2)), RMSprop(0.1)
    opt.apply_gradients([(np.ones((4, 2)), var)])
    copied = copy.copy(opt)
    copied.apply_gradients([(np.ones((4, 2)), var), (np.ones(3), np.ones(3))])
    assert (opt.iterations, copied.iterations) == (1, 2)
    assert (len(opt.weights), len(copied.weights)) == (2, 3)


def test_what_a_subclass_fixes_stands_in_its_config():
    class Centered(RMSprop):
        centered = True

    assert Centered().get_config()["centered"]
