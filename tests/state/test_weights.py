"""Slots and weights, with the interface of tf.keras optimizers."""

import numpy as np
import pytest

from numba_rmsprop import IndexedSlices, RMSprop


def trained(**options):
    opt = RMSprop(0.1, **options)
    a, b = np.ones((3, 2)), np.ones(4, np.float32)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [1]), a), (np.ones(4, np.float32), b)])
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [2]), a)])
    return opt, a, b


def test_order_of_weights():
    opt, a, b = trained(momentum=0.9, centered=True)
    iterations, *slots = opt.weights
    assert iterations == 2
    assert iterations.dtype == np.int64
    assert [slot.shape for slot in slots] == [(3, 2), (4,)] * 3
    expected = [opt.get_slot(var, name) for name in ("rms", "momentum", "mg") for var in (a, b)]
    assert all(slot is other for slot, other in zip(slots, expected, strict=True))
    assert [w.tobytes() for w in opt.variables()] == [w.tobytes() for w in opt.get_weights()]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["rms"]),
        ({"momentum": 0.9}, ["rms", "momentum"]),
        ({"centered": True}, ["rms", "mg"]),
        ({"momentum": lambda: 0.0, "centered": True}, ["rms", "momentum", "mg"]),
    ],
)
def test_slot_names(options, names):
    assert trained(**options)[0].get_slot_names() == names


def test_slots_are_read_up_to_date():
    opt, a, _ = trained()
    np.testing.assert_allclose(opt.get_slot(a, "rms")[:, 0], [0, 0.1 * 0.9, 0.1])


def test_get_weights_are_copies():
    opt, a, _ = trained()
    opt.get_weights()[1][...] = 7
    assert (opt.get_slot(a, "rms") != 7).all()


def test_set_weights_restores_a_run():
    opt, a, b = trained(momentum=0.9)
    saved, saved_a, saved_b = opt.get_weights(), a.copy(), b.copy()
    other = RMSprop(0.1, momentum=0.9)
    other.build([saved_a, saved_b])
    other.set_weights(saved)
    for o, x, y in ((opt, a, b), (other, saved_a, saved_b)):
        o.apply_gradients([(IndexedSlices(np.ones((2, 2)), [0, 0]), x), (np.ones(4, np.float32), y)])
        o.flush()
    assert (a.tobytes(), b.tobytes(), opt.iterations) == (saved_a.tobytes(), saved_b.tobytes(), other.iterations)


def test_set_weights_leaves_no_row_behind():
    opt, a, _ = trained(momentum=0.9)  # row 1 has missed the last step
    given = [weight + 1 for weight in trained(momentum=0.9)[0].get_weights()]
    before = a.copy()
    opt.set_weights(given)
    assert (a[1] < before[1]).all()
    assert [weight.tobytes() for weight in opt.weights] == [weight.tobytes() for weight in given]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda w: w[:-1], ValueError, "weights: expected 3 arrays, iterations and slots of 2 variables, got 2"),
        (lambda w: [*w, w[1]], ValueError, "expected 3 arrays"),
        (lambda w: [w[0], w[1].T, w[2]], ValueError, r"weights\[1\]: expected shape \(3, 2\), got \(2, 3\)"),
        (lambda w: [w[0], w[1], w[2] + 1j], TypeError, r"weights\[2\]: expected dtype float32, got complex"),
        (lambda w: [w[1], w[1], w[2]], ValueError, r"weights\[0\]: expected the number of iterations"),
        (lambda w: [-1, w[1], w[2]], ValueError, r"iterations: expected a whole number >= 0 and below 2\*\*63, got"),
        (lambda w: [1.5, w[1], w[2]], ValueError, "iterations: expected a whole number >= 0"),
        (lambda w: [np.inf, w[1], w[2]], ValueError, "iterations: expected a whole number >= 0"),
        (lambda w: [None, w[1], w[2]], ValueError, "iterations: expected a whole number >= 0"),
    ],
)
def test_refused_weights_change_nothing(change, error, message):
    opt, _, _ = trained()
    before = opt.get_weights()
    with pytest.raises(error, match=message):
        opt.set_weights(change([w + 1 for w in before]))
    assert [w.tobytes() for w in opt.get_weights()] == [w.tobytes() for w in before]


def test_a_fresh_optimizer_says_how_to_make_slots():
    with pytest.raises(ValueError, match=r"opt.build\(variables\) makes the slots"):
        RMSprop().set_weights([0, np.ones(3)])
    with pytest.raises(KeyError, match=r"has no slots yet; opt.build\(\[var\]\) makes them"):
        RMSprop().get_slot(np.ones(3), "rms")
    opt, var = RMSprop(), np.ones(3)
    opt.build([var])
    with pytest.raises(KeyError, match="variable 0 has no slot 'momentum'; expected one of"):
        opt.get_slot(var, "momentum")


def test_iterations_are_settable():
    opt, _, _ = trained()
    opt.iterations = np.int64(100)
    assert opt.iterations == 100
    with pytest.raises(ValueError, match=r"iterations: expected a whole number >= 0 and below 2\*\*63, got -3"):
        opt.iterations = -3


def test_added_slots_and_weights_come_last_and_are_kept():
    opt, a, b = trained()
    ema = opt.add_slot(a, "average", "ones")
    assert opt.add_slot(a, "average") is ema
    total = opt.add_weight("total", (2,), np.float64, initializer=0.5)
    opt.add_slot(b, "counts", lambda shape, dtype: np.arange(shape[0], dtype=dtype))
    opt.add_slot(b, "seen", initializer=3.0, shape=())
    assert opt.get_slot_names() == ["rms", "average", "counts", "seen"]
    assert opt.weights[3] is ema
    assert opt.weights[-1] is total
    assert (ema == 1).all()
    assert total.tolist() == [0.5, 0.5]
    assert opt.get_slot(b, "counts").tolist() == [0, 1, 2, 3]
    assert opt.get_slot(b, "seen") == 3
    opt.set_weights([w + 1 for w in opt.get_weights()])
    assert total.tolist() == [1.5, 1.5]


def test_add_slot_makes_the_slots_of_a_new_variable():
    opt, var = RMSprop(), np.ones(3)
    assert opt.add_slot(var, "rms", "ones").tolist() == [1, 1, 1]
    assert opt.add_slot(var, "rms", "zeros").tolist() == [1, 1, 1]


def test_a_slot_that_cannot_be_made_leaves_no_variable():
    opt, var = RMSprop(), np.ones(3)
    with pytest.raises(ValueError, match="initializer of 'x'"):
        opt.add_slot(var, "x", "bad")
    assert len(opt.weights) == 1


def test_refused_slots_and_weights():
    opt = RMSprop()
    opt.add_weight("total")
    with pytest.raises(ValueError, match="there is a weight 'total' already"):
        opt.add_weight("total")
    with pytest.raises(ValueError, match="initializer of 'mean': expected 'zeros', 'ones', a number or a callable"):
        opt.add_weight("mean", initializer="glorot")
    with pytest.raises(ValueError, match=r"initializer of 'mean': expected shape \(2,\), got \(3,\)"):
        opt.add_slot(np.ones(2), "mean", lambda shape, dtype: np.ones(3))
