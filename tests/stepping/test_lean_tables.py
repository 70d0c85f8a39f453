"""Tables of 16 bits, and rounding at random: against float32 steps that NumPy rounds."""

import copy
import pickle

import ml_dtypes
import numba
import numpy as np
import pytest
import scipy.sparse
from small_tables import randn, rows_of, trained

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct

BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
HALVES = (BFLOAT16, FLOAT16)
PLAIN = bool(numba.config.DISABLE_JIT)  # where less has to do
STOCHASTIC = {"rounding": "stochastic", "seed": 7}
LEAN = STOCHASTIC | {"state": "rowwise"}
FORMS = [{}, {"state": "rowwise"}, STOCHASTIC, LEAN, STOCHASTIC | {"state_dtype": "bfloat16"}]

# Each dtype, form and kind of gradient compiles kernels of its own, for some seconds: so not all go with all.
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
forms = pytest.mark.parametrize("form", FORMS, ids=str)


def bits(array):
    return array.view(np.uint16)


# Rounding to the nearest


@pytest.mark.parametrize(
    ("dtype", "state", "momentum"),
    [(BFLOAT16, "elementwise", 0.9), (BFLOAT16, "rowwise", 0.0), (FLOAT16, "rowwise", 0.9)],
)
def test_a_step_is_a_float32_step_that_is_rounded_once(dtype, state, momentum):
    var = randn(40, 19, dtype=dtype)
    wide = var.astype(np.float32)
    options = {"learning_rate": 0.02, "rho": 0.9, "momentum": momentum, "state": state}
    opt, reference = RMSprop(**options), RMSprop(**options)
    for step in range(6):
        grad = randn(40, 19, seed=step)  # dense, so that every row is rounded at every step
        opt.apply_gradients([(grad, var)])
        reference.apply_gradients([(grad, wide)])
        wide[...] = wide.astype(dtype)
        assert bits(var).tobytes() == bits(wide.astype(dtype)).tobytes()
    for slot in opt.get_slot_names():
        assert opt.get_slot(var, slot).dtype == np.float32
        assert opt.get_slot(var, slot).tobytes() == reference.get_slot(wide, slot).tobytes()


@halves
def test_sparse_rows_are_rounded_when_they_are_touched(dtype):
    var = randn(40, 19, dtype=dtype)
    wide = var.astype(np.float32)
    opt, reference = RMSprop(0.02, rho=0.9), RMSprop(0.02, rho=0.9)
    for step in range(6):
        grad = rows_of(step)
        opt.apply_gradients([(grad, var)])
        reference.apply_gradients([(grad, wide)])
        wide[...] = wide.astype(dtype)
        assert bits(var).tobytes() == bits(wide.astype(dtype)).tobytes()


@halves
def test_gradients_may_be_of_the_dtype_of_the_variable(dtype):
    half = rows_of(3, dtype=dtype)
    wide = IndexedSlices(half.values.astype(np.float32), half.indices)
    grads = [
        (half, wide),
        (randn(40, 19, dtype=dtype), randn(40, 19, dtype=dtype).astype(np.float32)),
        (
            SparseProduct.from_bags(half.values[:2], [3, 1, 3], [0, 1]),
            SparseProduct.from_bags(wide.values[:2], [3, 1, 3], [0, 1]),
        ),
    ]
    for options in ({}, {"clipnorm": 0.5}, {"check_finite": True}):
        for pair in grads:
            results = []
            for grad in pair:
                var = randn(40, 19, dtype=dtype)
                RMSprop(0.02, **options).apply_gradients([(grad, var)])
                results.append(bits(var).tobytes())
            assert results[0] == results[1]


def test_a_float16_matrix_of_scipy_is_taken():
    var, other = randn(5, 3, dtype=FLOAT16), randn(5, 3, dtype=FLOAT16)
    matrix = scipy.sparse.csr_array(([1.5, 2.5], [0, 2], [0, 0, 1, 1, 2, 2]), (5, 3), dtype=np.float32)
    RMSprop().apply_gradients([(matrix, var)])
    RMSprop().apply_gradients([(matrix.toarray(), other)])
    assert bits(var).tobytes() == bits(other).tobytes()


@halves
def test_infinity_and_nan_stay_what_they_are(dtype):
    var = np.array([[1, np.inf, -np.inf, np.nan], [1, 2, 3, 4]], dtype)
    for form in ({}, LEAN):
        table = var.copy()
        RMSprop(0.01, **form).apply_gradients([(IndexedSlices(np.zeros((1, 4), np.float32), [0]), table)])
        np.testing.assert_array_equal(table[0].astype(np.float32), var[0].astype(np.float32))
        grad = np.array([[1, np.nan, 1, 1]], np.float32)
        RMSprop(0.01, **form).apply_gradients([(IndexedSlices(grad, [1]), table)])
        assert np.isnan(table[1, 1].astype(np.float32))


# Rounding at random


@halves
@pytest.mark.parametrize("columns", [3, 16, 37])
def test_a_number_becomes_one_of_its_neighbours_and_itself_on_average(dtype, columns):
    rows, shift = 400 if PLAIN else 4000, 1e-3
    start = np.resize(np.float32([1.0, -2.75, 300.0, 1e-3, 3e-6, -4e-7]), (rows, columns))
    opt = RMSprop(shift, rho=0.0, epsilon=0.0, **STOCHASTIC)
    for step, grad in enumerate((1.0, -1.0)):
        table = start.astype(dtype)
        before = table.astype(np.float64)
        opt.forget(*[own.var for own in opt.known.slots])
        opt.apply_gradients([(np.full((rows, columns), grad, np.float32), table)])
        exact = (before.astype(np.float32) - np.float32(grad * shift)).astype(np.float64)
        after = table.astype(np.float64)
        below = np.nextafter(exact.astype(dtype), np.array(-np.inf, dtype)).astype(np.float64)
        above = np.nextafter(exact.astype(dtype), np.array(np.inf, dtype)).astype(np.float64)
        assert ((below <= after) & (after <= above)).all()
        for value in np.unique(before):
            of_value = before == value
            error = np.abs(after[of_value].mean() - exact[of_value].mean())
            spread = (above - below)[of_value].mean() / np.sqrt(of_value.sum())
            assert error <= 3 * spread, (step, value)


@halves
def test_steps_far_below_the_last_place_add_up(dtype):
    moved = {}
    for rounding in ("nearest", "stochastic"):
        var = np.ones((40 if PLAIN else 1000, 8), dtype)
        opt = RMSprop(1e-5, rho=0.0, epsilon=0.0, rounding=rounding)
        for _ in range(200):
            opt.apply_gradients([(np.ones(var.shape, np.float32), var)])
        moved[rounding] = 1 - var.astype(np.float64).mean()
    assert moved["nearest"] == 0
    assert abs(moved["stochastic"] - 2e-3) < (1e-3 if PLAIN else 2e-4)


@pytest.mark.parametrize("form", [STOCHASTIC | {"state_dtype": "bfloat16"}, LEAN], ids=str)
def test_bits_depend_on_seed_row_step_and_column_alone(form):
    results = {}
    for threads in (1, 2):
        numba.set_num_threads(threads)
        for layout in ("C", "F"):
            rows = 60 if PLAIN else 3000
            var = randn(rows, 19, dtype=BFLOAT16)
            var = np.asfortranarray(var) if layout == "F" else var
            opt = RMSprop(0.02, rho=0.9, **form)
            for step in range(3):
                values, indices = randn(rows, 19, seed=step), np.random.default_rng(step).integers(0, rows, rows)
                opt.apply_gradients([(IndexedSlices(values, indices), var)])
            opt.apply_gradients([(randn(rows, 19, seed=9), var)])
            results[threads, layout] = bits(np.ascontiguousarray(var)).tobytes()
    assert len(set(results.values())) == 1


def test_dense_and_sparse_steps_are_rounded_by_the_same_bits():
    sparse, dense = randn(40, 19, dtype=BFLOAT16), randn(40, 19, dtype=BFLOAT16)
    first, second = RMSprop(0.02, **LEAN), RMSprop(0.02, **LEAN)
    for step in range(4):
        values = randn(40, 19, seed=step)
        first.apply_gradients([(IndexedSlices(values, np.arange(40)), sparse)])
        second.apply_gradients([(values, dense)])
        assert bits(sparse).tobytes() == bits(dense).tobytes()


def test_numbers_that_float16_holds_are_not_moved():
    every = np.arange(2**15, dtype=np.uint16).view(np.float16)
    every = np.repeat(every[np.isfinite(every)][:: 500 if PLAIN else 1, np.newaxis], 16, axis=1)
    table = every.copy()
    opt = RMSprop(0.1, **STOCHASTIC)
    for _ in range(1 if PLAIN else 40):
        opt.apply_gradients([(np.zeros(table.shape, np.float32), table)])
    assert table.tobytes() == every.tobytes()


def test_columns_of_a_row_have_bits_of_their_own():
    var = np.ones((4, 64), BFLOAT16)
    RMSprop(0.001, rho=0.0, **STOCHASTIC).apply_gradients([(np.ones((4, 64), np.float32), var)])
    assert all(len(set(bits(row).tolist())) == 2 for row in var)


def test_copies_of_rows_are_rounded_as_the_rows_are():
    # A table of this form has no view of its rows, and a gather of one of several ranks works on copies.
    orders = {order: randn(6, 5, 4, dtype=BFLOAT16).copy(order) for order in "CF"}
    for var in orders.values():
        opt = RMSprop(0.02, rho=0.9, **STOCHASTIC)
        for step in range(3):
            opt.apply_gradients([(IndexedSlices(randn(2, 5, 4, seed=step), [5, 3]), var)])
    assert np.ascontiguousarray(orders["F"]).tobytes() == orders["C"].tobytes()


def test_variables_of_one_shape_have_bits_of_their_own():
    first, second = np.ones((400, 1), BFLOAT16), np.ones((400, 1), BFLOAT16)
    grad = np.ones((400, 1), np.float32)
    RMSprop(1e-3, rho=0.0, epsilon=0.0, **STOCHASTIC).apply_gradients([(grad, first), (grad, second)])
    assert first.tobytes() != second.tobytes()


def test_another_seed_other_bits_and_another_step_too():
    tables = [randn(40, 19, dtype=BFLOAT16) for _ in range(3)]
    for table, seed in zip(tables, (1, 1, 2), strict=True):
        trained(table, rounding="stochastic", seed=seed)
    assert bits(tables[0]).tobytes() == bits(tables[1]).tobytes() != bits(tables[2]).tobytes()
    opt, found = RMSprop(1e-3, rho=0.0, epsilon=0.0, **STOCHASTIC), []
    table = np.empty((400, 1), BFLOAT16)
    for _ in range(2):
        table[...] = 1
        opt.apply_gradients([(np.ones((400, 1), np.float32), table)])
        found.append(table.tobytes())
    assert found[0] != found[1]


def test_gather_with_momentum_rounds_a_catch_up_once():
    var = randn(40, 19, dtype=BFLOAT16)
    opt = trained(var, momentum=0.9, **LEAN)
    wide = opt.gather(var, np.arange(40))
    assert wide.dtype == np.float32
    assert wide.astype(BFLOAT16).tobytes() == var.tobytes()  # what was written is what was returned
    again = opt.gather(var, np.arange(40))
    assert wide.tobytes() == again.tobytes()


# Reading


@halves
def test_gather_gives_float32_or_the_storage_dtype(dtype):
    var = randn(40, 19, dtype=dtype)
    opt = trained(var)
    wide, half = opt.gather(var, [3, 1, 3]), opt.gather(var, [3, 1, 3], dtype=dtype)
    assert (wide.dtype, half.dtype) == (np.float32, dtype)
    assert half.tobytes() == var[[3, 1, 3]].tobytes()
    assert wide.tobytes() == var[[3, 1, 3]].astype(np.float32).tobytes()
    for out in (np.empty((3, 19), np.float32), np.empty((3, 19), dtype)):
        assert opt.gather(var, [3, 1, 3], out=out) is out
        assert out.astype(np.float32).tobytes() == wide.tobytes()
    sums = opt.gather_sum(var, [3, 1, 3], [0, 1])
    np.testing.assert_allclose(sums, [wide[0], wide[1] + wide[2]], rtol=1e-6)
    matrix = scipy.sparse.csr_array(([2.0, 1.0], ([0, 1], [3, 1])), (2, 40), dtype=np.float32)
    np.testing.assert_allclose(opt.multiply(matrix, var), [2 * wide[0], wide[1]], rtol=1e-6)
    untrained = RMSprop()
    assert untrained.gather(var, [1]).tobytes() == wide[1:2].tobytes()
    var.flags.writeable = False
    assert untrained.gather(var, [1]).tobytes() == wide[1:2].tobytes()


@halves
def test_gather_refuses_other_dtypes(dtype):
    var = randn(4, 3, dtype=dtype)
    opt = RMSprop()
    with pytest.raises(TypeError, match=r"dtype: expected float32 or \w+, got float64"):
        opt.gather(var, [0], dtype=np.float64)
    with pytest.raises(ValueError, match=r"out: expected a C-contiguous array \(float32 or"):
        opt.gather(var, [0], out=np.empty((1, 3)))
    with pytest.raises(ValueError, match=r"out: expected a C-contiguous array \(float32, "):
        opt.gather_sum(var, [0], [0], out=np.empty((1, 3), dtype))
    with pytest.raises(TypeError, match="dtype: expected float32, got float64"):
        opt.gather(np.ones((4, 3), np.float32), [0], dtype=np.float64)


# Files, copies, and going on


@forms
def test_a_run_that_is_saved_and_loaded_has_the_same_bits(form, tmp_path):
    var = randn(40, 19, dtype=BFLOAT16)
    momentum = 0.9 if form == LEAN else 0.0
    opt = trained(var, momentum=momentum, **form)
    opt.save(tmp_path / "whole")
    opt.apply_gradients([(rows_of(6), var)])
    opt.save_delta(tmp_path / "delta")
    loaded = np.zeros_like(var)
    other = RMSprop.load([tmp_path / "whole", tmp_path / "delta"], [loaded])
    pickled, third = pickle.loads(pickle.dumps((opt, var)))
    deep, fourth = copy.deepcopy((opt, var))
    for one, table in ((opt, var), (other, loaded), (pickled, third), (deep, fourth)):
        for step in range(7, 9):
            one.apply_gradients([(rows_of(step), table)])
        one.apply_gradients([(randn(40, 19), table)])
        assert table.tobytes() == var.tobytes()
        for slot in opt.get_slot_names():
            assert one.get_slot(table, slot).tobytes() == opt.get_slot(var, slot).tobytes()


def test_slots_in_files_are_as_small(tmp_path):
    var = randn(2000, 32, dtype=BFLOAT16)
    opt = RMSprop(slots_folder=tmp_path, **LEAN)
    opt.apply_gradients([(IndexedSlices(randn(3, 32), [1, 2, 1]), var)])
    assert sum(array.nbytes for array in opt.known.slots[0].held.values()) == 2000 * (2 * 32 + 4 + 4)


def test_a_variable_goes_on_in_another_dtype():
    dtype, wide = BFLOAT16, randn(40, 19)
    opt = trained(wide)
    half = wide.astype(dtype)
    opt.rebind(wide, half)
    opt.apply_gradients([(rows_of(6), half)])
    reference = trained(randn(40, 19))
    expected = wide.astype(dtype).astype(np.float32)
    reference.rebind(reference.known.slots[0].var, expected)
    reference.apply_gradients([(rows_of(6), expected)])
    assert half.tobytes() == expected.astype(dtype).tobytes()
    assert opt.known.saved is None
    with pytest.raises(ValueError, match="array: expected"):
        opt.rebind(half, half.astype(np.float64))


def test_a_file_of_another_dtype_is_refused_with_a_remedy(tmp_path):
    var = randn(4, 3)
    opt = RMSprop()
    opt.build([var])
    opt.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"variables\[0\] \(float32, .*rebind"):
        RMSprop.load(tmp_path / "file", [var.astype(BFLOAT16)])
    lean = RMSprop(**LEAN)
    lean.build([var])
    with pytest.raises(ValueError, match=r"weights\[1\]: expected shape \(4,\), got \(4, 3\)"):
        lean.set_weights(opt.get_weights())


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state": "columnwise"}, ValueError, "state: expected one of"),
        ({"state": "rowwise", "centered": True}, ValueError, "state: expected 'elementwise' with centered"),
        ({"rounding": "up"}, ValueError, "rounding: expected one of"),
        ({"state_dtype": "float16"}, ValueError, "state_dtype: expected one of"),
        ({"state_dtype": "bfloat16"}, ValueError, "rounding: expected 'stochastic'"),
        ({"seed": 1.5}, TypeError, "seed: expected a whole number"),
        ({"seed": -1}, ValueError, "seed: expected 0 <= seed"),
        (STOCHASTIC | {"state_dtype": "bfloat16", "centered": True}, ValueError, "state_dtype: expected None with"),
    ],
)
def test_forms_that_there_are_not(options, error, message):
    with pytest.raises(error, match=message):
        RMSprop(**options)


def test_float64_keeps_its_state():
    opt, var = RMSprop(state_dtype="bfloat16", momentum=0.5, state="rowwise", **STOCHASTIC), np.ones((3, 9))
    opt.apply_gradients([(np.ones((3, 9)), var)])
    assert {opt.get_slot(var, slot).dtype for slot in opt.get_slot_names()} == {np.dtype(np.float64)}


def test_forms_cannot_be_changed():
    opt = RMSprop(**LEAN)
    for name in ("state", "state_dtype", "rounding", "seed"):
        with pytest.raises(AttributeError):
            setattr(opt, name, getattr(opt, name))
    assert RMSprop.from_config(opt.get_config()).get_config() == opt.get_config()
    assert "state='rowwise'" in repr(opt)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.complex64, ml_dtypes.float8_e4m3fn, ">f2"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"expected dtype float32, float64, float16 or ml_dtypes\.bfloat16"):
        RMSprop().apply_gradients([(np.ones((2, 2), np.float32), np.zeros((2, 2), dtype))])


@halves
def test_gradients_of_other_dtypes_are_refused(dtype):
    var = np.zeros((2, 2), dtype)
    other = FLOAT16 if dtype == BFLOAT16 else BFLOAT16
    for wrong in (np.float64, other):
        with pytest.raises(TypeError, match=rf"expected dtype float32 or {dtype}, got"):
            RMSprop().apply_gradients([(np.ones((2, 2), wrong), var)])
    assert not bits(var).any()
