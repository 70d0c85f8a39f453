"""Calls of hostile or broken programs are refused before anything is written; ``make fuzz`` tries more of them."""

import json

import hostile_calls
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from numba_rmsprop import IndexedSlices, RMSprop, schedules


def source(data):
    return hostile_calls.Source(lambda low, high: data.draw(st.integers(low, high)))


@given(data=st.data())
def test_gradients(data):
    # one variant, since each takes long to compile
    hostile_calls.TARGETS["gradients"](source(data), variants=[(True, False)], dtypes=("f4",), most_calls=3)


@given(data=st.data())
def test_weights(data):
    hostile_calls.TARGETS["weights"](source(data), variants=[(True, False)])


@given(data=st.data())
def test_configs(data):
    hostile_calls.TARGETS["config"](source(data))


@given(data=st.data())
def test_files(data):
    hostile_calls.TARGETS["load"](source(data))


def refused(grad, var, error, match):
    before = var.tobytes()
    with pytest.raises(error, match=match):
        RMSprop(0.1).apply_gradients([(grad, var)])
    assert var.tobytes() == before


def test_inconsistent_bsr_arrays():
    # SciPy would write beyond the arrays of its result
    for name, changed, error, match in [
        ("indptr", np.array([0, 9, 4], np.int32), ValueError, "indptr of the bsr array does not fit"),
        ("indptr", np.array([0, 2, 4, 4, 4], np.int32), ValueError, "indptr of the bsr array does not fit"),
        ("indices", np.array([0, 1, 0, 7], np.int32), IndexError, r"indices\[3\] of the bsr array is 7, out of range"),
        ("data", np.ones((2, 2, 2)), ValueError, "indptr of the bsr array does not fit"),
        ("indptr", None, TypeError, "expected indptr of the bsr array to be an array of 1 axes"),
    ]:
        grad = scipy.sparse.bsr_array(np.ones((4, 4)), blocksize=(2, 2))
        setattr(grad, name, changed)
        refused(grad, np.ones((4, 4)), error, match)


def test_inconsistent_dia_arrays():
    for name, changed, match in [
        ("offsets", np.array([0, 1, 2]), "as many offsets of the dia array as rows of data"),
        ("offsets", np.array([2**32, 1]), "expected offsets of the dia array from -2147483643"),
        ("data", np.ones((1, 4)), "as many offsets of the dia array as rows of data"),
    ]:
        grad = scipy.sparse.dia_array((np.ones((2, 4)), [0, 1]), (4, 4))
        setattr(grad, name, changed)
        refused(grad, np.ones((4, 4)), ValueError, match)


def test_diagonals_outside_the_matrix_are_empty():
    grad = scipy.sparse.dia_array((np.ones((2, 4)), [0, 9]), (4, 4))
    var = np.ones((4, 4))
    RMSprop(0.1).apply_gradients([(grad, var)])
    assert ((var < 1) == np.eye(4, dtype=bool)).all()


def test_inconsistent_lil_arrays():
    for name, line, match in [
        ("rows", [0], "as many columns as values"),
        ("data", [1.0, 2.0, 3.0], "as many columns as values"),
        ("data", None, "a list for each row"),
        ("data", [1.0, 10**400], "expected numbers of the variable's dtype"),
    ]:
        grad = scipy.sparse.lil_array(np.ones((3, 2)))
        getattr(grad, name)[1] = line
        refused(grad, np.ones((3, 2)), ValueError, match)


@pytest.mark.parametrize(("key", "error"), [((0, 7), IndexError), ((0, 2**70), TypeError), ((0, 0, 0), ValueError)])
def test_wrong_keys_of_dok_arrays(key, error):
    grad = scipy.sparse.dok_array((3, 2))
    grad.setdefault(key, 1.0)
    refused(grad, np.ones((3, 2)), error, "of the dok array")


def test_inconsistent_coo_arrays():
    grad = scipy.sparse.coo_array(([1.0, 2.0], ([0, 2], [0, 1])), (3, 2))
    grad.data = np.ones(1)
    refused(grad, np.ones((3, 2)), ValueError, "coords of the coo array do not fit")
    grad = scipy.sparse.coo_array(([1.0, 2.0], ([0, 2], [0, 1])), (3, 2))
    grad.coords = (np.array([0.0, 1.0]), np.array([0, 1]))
    refused(grad, np.ones((3, 2)), TypeError, r"expected coords\[0\] of the coo array to be integers")


def test_csr_and_csc_arrays_with_parts_of_a_wrong_kind():
    for name, changed, error in [
        ("indices", np.array([0.0, 1.0]), TypeError),
        ("data", np.ones((2, 2)), TypeError),
        ("data", [1.0, 2.0], TypeError),
        ("indptr", np.zeros(0, np.int32), ValueError),
    ]:
        for form in ("csr", "csc"):
            grad = scipy.sparse.csr_array(np.eye(2)).asformat(form)
            setattr(grad, name, changed)
            refused(grad, np.ones((2, 2)), error, f"of the {form} array")


def test_indices_in_another_byte_order():
    grad = scipy.sparse.csr_array(np.eye(2))
    grad.indices, grad.indptr = grad.indices.astype(">i4"), grad.indptr.astype(">i8")
    var = np.ones((2, 2))
    RMSprop(0.1).apply_gradients([(grad, var)])
    assert ((var < 1) == np.eye(2, dtype=bool)).all()


def test_slices_whose_arrays_were_resized():
    values, indices = np.ones((4, 2)), np.arange(4)
    grad = IndexedSlices(values, indices)
    indices.resize((2, 2), refcheck=False)
    refused(grad, np.ones((5, 2)), ValueError, r"expected indices of shape \(n,\), got \(2, 2\)")
    indices.resize((4,), refcheck=False)
    values.resize((1, 2), refcheck=False)
    refused(grad, np.ones((5, 2)), ValueError, r"expected values of shape \(4, 2\), got \(1, 2\)")


@pytest.mark.parametrize(
    ("schedule", "error", "match"),
    [
        ({"class_name": "ExponentialDecay"}, ValueError, "expected the keys 'class_name' and 'config'"),
        ({"class_name": "ExponentialDecay", "config": 5}, TypeError, "expected a mapping as the config"),
        ({"class_name": ["ExponentialDecay"], "config": {}}, ValueError, "learning_rate: expected a class"),
        ({"function": []}, ValueError, "which a config cannot hold"),
        ({"class_name": "LearningRateSchedule", "config": {}}, TypeError, "abstract"),
        ({"class_name": "np", "config": {}}, ValueError, "expected a class of numba_rmsprop.schedules"),
        (10**400, ValueError, "expected 0 <= learning_rate, finite"),
        (-(10**400), ValueError, "expected 0 <= learning_rate, finite"),
    ],
)
def test_malformed_learning_rates_in_configs(schedule, error, match):
    config = json.loads(json.dumps(RMSprop().get_config() | {"learning_rate": schedule}))
    with pytest.raises(error, match=match):
        RMSprop.from_config(config)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.ExponentialDecay(0.1, 1, 1e200),
        schedules.ExponentialDecay(0.1, 1, 2, staircase=True),  # 2**step as an exact integer would fill the memory
        schedules.CosineDecayRestarts(0.1, 1, t_mul=1.0, m_mul=2),
    ],
)
def test_schedules_without_a_value(schedule):
    opt, var = RMSprop(schedule), np.ones(2)
    opt.iterations = 2**40
    with pytest.raises(ValueError, match=f"learning_rate: {type(schedule).__name__}.* has no value at step 10995"):
        opt.apply_gradients([(np.ones(2), var)])
    assert (var == 1).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.InverseTimeDecay(0.1, 1, -1 / 2**40),  # would divide by 0 at step 2**40
        lambda: schedules.PolynomialDecay(0.1, 1, power=-1),
    ],
)
def test_schedules_that_would_come_to_have_no_value(make):
    with pytest.raises(ValueError, match=r"expected (decay_rate|power) >= 0"):
        make()


def test_numbers_that_float32_cannot_hold_stop_no_step_halfway():
    opt, first, second = RMSprop(0.1, epsilon=1e-300), np.ones(2), np.ones(2, np.float32)
    with np.errstate(under="raise"):
        assert opt.apply_gradients([(np.ones(2), first), (np.ones(2, np.float32), second)]) == 1
    np.testing.assert_allclose(first, second, rtol=1e-6)


@pytest.mark.parametrize("config", [None, 5, "config", [["rho", 0.5]]])
def test_configs_that_are_no_mapping(config):
    with pytest.raises(TypeError, match="config: expected a mapping"):
        RMSprop.from_config(config)


def test_weights_that_share_memory_with_other_slots():
    opt, variables = RMSprop(0.1), [np.ones(2), np.ones(2)]
    opt.apply_gradients([(np.full(2, 1.0), variables[0]), (np.full(2, 2.0), variables[1])])
    iterations, first, second = opt.get_weights()
    opt.set_weights([iterations, opt.weights[2], opt.weights[1]])
    assert [slot.tolist() for slot in opt.get_weights()[1:]] == [second.tolist(), first.tolist()]


def test_weights_that_a_slot_cannot_hold():
    opt, variables = RMSprop(0.1), [np.ones(2, np.float32), np.ones(2, np.float32)]
    opt.build(variables)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        opt.set_weights([0, np.ones(2), np.full(2, 1e300)])
    assert not any(slot.any() for slot in opt.get_weights())


@pytest.mark.parametrize("iterations", [2**63, 1e300, np.uint64(2**63)])
def test_more_iterations_than_can_be_saved(iterations):
    opt = RMSprop()
    with pytest.raises(ValueError, match="iterations: expected a whole number >= 0"):
        opt.iterations = iterations
    with pytest.raises(ValueError, match="iterations: expected a whole number >= 0"):
        opt.set_weights([np.array(iterations)])


def test_coordinates_that_are_lists():
    grad = scipy.sparse.coo_array(np.eye(3))
    grad.coords = ([0, 1, 2], [0, 1, 2])
    refused(grad, np.ones((3, 3)), TypeError, r"expected coords\[0\] of the coo array to be integers")
