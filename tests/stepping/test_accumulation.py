"""Gradients that are added up over several calls, for one step with their mean, as Keras takes it."""

import copy
import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct

KERAS = json.loads((Path(__file__).parents[1] / "support/keras_trajectories.json").read_text("utf-8"))
GRADIENTS = np.array(KERAS["gradients"])
CASES = [case for case in KERAS["cases"] if case["options"].get("gradient_accumulation_steps")]


def name_of(case):
    return ", ".join(f"{name}={value}" for name, value in case["options"].items() if value)


def rows_of(grad):
    rows = np.flatnonzero(grad.any(axis=1))
    return IndexedSlices(grad[rows], rows)


def product_of(grad):
    rows = np.flatnonzero(grad.any(axis=1))
    return SparseProduct.from_entries(grad[rows] / 2, np.tile(rows, 2), np.tile(np.arange(len(rows)), 2))


TWICE = "a variable that comes twice"

FORMS = {"dense": np.array, "rows": rows_of, "csr": scipy.sparse.csr_array, "product": product_of}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_as_keras(case, dtype, form):
    var, options = (np.arange(8.0).reshape(4, 2) / 4).astype(dtype), case["options"]
    opt = RMSprop(KERAS["learning_rate"], KERAS["rho"], epsilon=KERAS["epsilon"], epsilon_in_sqrt=True, **options)
    tolerance = {"float64": 1e-9, "float32": 3e-5}[dtype]
    steps = zip(GRADIENTS.astype(dtype), case[dtype]["var"], case[dtype]["iterations"], strict=True)
    for grad, expected, iterations in steps:
        assert opt.apply_gradients([(form(grad), var)]) == opt.iterations == iterations
        opt.flush()
        np.testing.assert_allclose(var, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2)])
@pytest.mark.parametrize("kinds", ["rows csr", "csr rows dense", "dense rows product", "csr csr csr csr", "rows rows"])
def test_the_step_is_that_of_the_mean_of_any_kinds(kinds, shape):
    kinds, rng = kinds.split(), np.random.default_rng(1)
    var, other = np.ones(shape), np.ones(shape)
    opt, plain = RMSprop(0.1, gradient_accumulation_steps=len(kinds)), RMSprop(0.1)
    total = np.zeros(shape)
    for kind in kinds:
        grad = rng.standard_normal(shape)
        grad[rng.permutation(6)[:3]] = 0
        total += grad
        form = FORMS[kind]
        if kind == "csr" and len(shape) != 2:
            form = scipy.sparse.coo_array
        opt.apply_gradients([(np.asfortranarray(grad) if kind == "dense" else form_of(form, grad), var)])
    plain.apply_gradients([(total / len(kinds), other)])
    np.testing.assert_allclose(var, other, rtol=1e-12)


def form_of(form, grad):
    """Return a gradient in a form; rows of a vector are numbers."""
    if grad.ndim == 1 and form in (rows_of, product_of):
        rows = np.flatnonzero(grad)
        if form is rows_of:
            return IndexedSlices(grad[rows], rows)
        return SparseProduct.from_entries(grad[rows], rows, np.arange(len(rows)))
    if grad.ndim == 3 and form is rows_of:
        rows = np.flatnonzero(grad.any(axis=(1, 2)))
        return IndexedSlices(grad[rows], rows)
    if grad.ndim == 3 and form is product_of:
        rows = np.flatnonzero(grad.any(axis=(1, 2)))
        return SparseProduct.from_entries(grad[rows], rows, np.arange(len(rows)))
    return form(grad)


def test_sums_of_rows_take_no_more_memory_than_some_times_the_rows():
    table, opt = np.zeros((1000, 4), np.float32), RMSprop(gradient_accumulation_steps=1000)
    for k in range(100):
        rows = (np.arange(20) * 7 + k % 2) % 140  # 40 different ones
        opt.apply_gradients([(IndexedSlices(np.ones((20, 4), np.float32), rows), table)])
    total = opt.known.accumulation.sums[opt.known.slots[0]]
    assert total.dense is None
    assert sum(len(indices) for indices, _ in total.rows) <= 80
    np.testing.assert_allclose(sum(values.sum() for _, values in total.rows), 100 * 20 * 4 / 1000, rtol=1e-6)


@pytest.mark.parametrize(("form", "array"), [("rows", "values"), ("csr", "data"), ("dense", None)])
def test_a_sum_keeps_nothing_of_the_gradients(form, array):
    table, expected = np.ones((5, 2)), np.ones((5, 2))
    opt, plain = RMSprop(0.1, gradient_accumulation_steps=2), RMSprop(0.1)
    for factor in (1.0, 3.0):
        grad = FORMS[form](factor * np.eye(5, 2))
        opt.apply_gradients([(grad, table)])
        (grad if array is None else getattr(grad, array))[...] = np.nan
    plain.apply_gradients([(FORMS[form](2 * np.eye(5, 2)), expected)])
    assert table.tobytes() == expected.tobytes()


def test_16_bits_are_added_up_in_float32():
    table, other = np.ones((4, 2), np.float16), np.ones((4, 2), np.float16)
    opt, plain = RMSprop(0.1, gradient_accumulation_steps=3), RMSprop(0.1)
    for grad in (np.float16(2000), np.float16(1), np.float16(1)):  # in float16, 2001 and 2002 of them is 2000
        opt.apply_gradients([(IndexedSlices(np.full((1, 2), grad), [2]), table)])
    plain.apply_gradients([(IndexedSlices(np.full((1, 2), np.float32(2002) / 3), [2]), other)])
    assert table.tobytes() == other.tobytes()
    np.testing.assert_allclose(opt.get_slot(table, "rms"), plain.get_slot(other, "rms"), rtol=1e-6)


def batches(step):
    rng = np.random.default_rng(step)
    rows = rng.integers(0, 30, 6)
    matrix = scipy.sparse.random_array((4, 3), density=0.4, rng=rng, format="csr")
    return IndexedSlices(rng.standard_normal((6, 2)), rows), matrix, rng.standard_normal(3)


def call(opt, variables, step):
    opt.apply_gradients(list(zip(batches(step), variables, strict=True)))


@pytest.mark.parametrize("delta", [False, True])
def test_a_file_amid_a_round_goes_on_bit_for_bit(tmp_path, delta):
    variables = [np.ones((30, 2)), np.ones((4, 3)), np.ones(3)]
    opt = RMSprop(0.1, momentum=0.9, clipnorm=0.5, gradient_accumulation_steps=4)
    for step in range(6):
        call(opt, variables, step)
        if step == 4 and delta:
            opt.save(tmp_path / "file")
    (opt.save_delta if delta else opt.save)(tmp_path / "last")
    assert (opt.iterations, opt.accumulated_calls) == (1, 2)
    loaded = [np.empty_like(var) for var in variables]
    paths = [tmp_path / "file", tmp_path / "last"] if delta else tmp_path / "last"
    runs = [(RMSprop.load(paths, loaded), loaded), copy.deepcopy((opt, variables))]
    for step in range(6, 15):
        call(opt, variables, step)
        for one, its in runs:
            call(one, its, step)
    for one, its in runs:
        one.flush()
        opt.flush()
        assert [var.tobytes() for var in its] == [var.tobytes() for var in variables]
        assert one.iterations == opt.iterations == 3


def test_a_copy_has_a_round_of_its_own():
    var, opt = np.ones(3), RMSprop(0.1, gradient_accumulation_steps=2)
    opt.apply_gradients([(np.ones(3), var)])
    other = copy.copy(opt)
    other.apply_gradients([(np.ones(3), var)])
    assert (other.iterations, opt.iterations, opt.accumulated_calls) == (1, 0, 1)


def test_other_files_have_no_sums(tmp_path):
    var, opt = np.ones(3), RMSprop(0.1, gradient_accumulation_steps=3)
    for _ in range(2):
        opt.apply_gradients([(np.ones(3), var)])
    opt.save(tmp_path / "file")
    opt.known.accumulation = opt.known.accumulation._replace(calls=3)
    opt.save(tmp_path / "wrong")
    with pytest.raises(ValueError, match="than gradient_accumulation_steps=3, got 3; load it with as many as"):
        RMSprop.load(tmp_path / "wrong", [var])
    assert RMSprop.load(tmp_path / "file", [var]).accumulated_calls == 2
    opt.forget(var)
    opt.known.accumulation = opt.known.accumulation._replace(calls=-5)
    opt.save(tmp_path / "wrong")
    with pytest.raises(ValueError, match="than gradient_accumulation_steps=3, got -5"):
        RMSprop.load(tmp_path / "wrong", [])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (IndexedSlices(np.ones((1, 2)), [4]), IndexError),
        (np.full((4, 2), np.nan), FloatingPointError),
        (np.ones(3), ValueError),
        (np.ones((4, 2), np.float32), TypeError),
        (TWICE, ValueError),
    ],
)
def test_a_refused_call_leaves_the_sums(wrong, error):
    table, other = np.ones((4, 2)), np.ones((4, 2))
    opt = RMSprop(0.1, gradient_accumulation_steps=2, check_finite=True)
    for iterations in (0, 1):
        before, values = opt.known.accumulation, table.tobytes()
        last = (np.ones((4, 2)), other) if wrong is TWICE else (wrong, table)
        with pytest.raises(error):
            opt.apply_gradients([(np.ones((4, 2)), other), last])
        assert opt.known.accumulation is before
        assert table.tobytes() == values
        assert opt.apply_gradients([(np.ones((4, 2)), table)]) == iterations
    assert opt.known.accumulation.sums == {}
    assert (other == 1).all()


def test_a_refused_step_leaves_the_sums():
    rho = 0.9
    var, opt = np.ones(3), RMSprop(0.1, rho=lambda: rho, gradient_accumulation_steps=2)
    opt.apply_gradients([(np.ones(3), var)])
    before, rho = opt.known.accumulation, 2.0
    with pytest.raises(ValueError, match="rho: expected 0 <= rho <= 1"):
        opt.apply_gradients([(np.ones(3), var)])
    assert (opt.known.accumulation is before, var.tolist(), opt.iterations) == (True, [1, 1, 1], 0)
    rho = 0.9
    assert opt.apply_gradients([(np.ones(3), var)]) == 1


def test_what_is_forgotten_is_in_no_sum_and_set_weights_drops_all():
    first, second = np.ones(3), np.ones(2)
    opt = RMSprop(0.1, gradient_accumulation_steps=2)
    opt.apply_gradients([(np.ones(3), first), (np.ones(2), second)])
    opt.forget(first)
    opt.apply_gradients([(np.ones(2), second)])
    assert (first == 1).all()
    assert (second < 1).all()
    opt.apply_gradients([(np.ones(2), second)])
    opt.set_weights(opt.get_weights())
    assert opt.accumulated_calls == 0


def test_variables_without_a_gradient_in_some_calls_have_it_counted_as_0():
    first, second, expected = np.ones(3), np.ones(3), np.ones(3)
    opt, plain = RMSprop(0.1, gradient_accumulation_steps=2), RMSprop(0.1)
    opt.apply_gradients([(np.full(3, 3.0), first)])
    opt.apply_gradients([(np.full(3, 5.0), second)])
    plain.apply_gradients([(np.full(3, 1.5), expected)])
    assert first.tobytes() == expected.tobytes()
    assert opt.iterations == 1
    with pytest.warns(UserWarning, match="no gradient"):
        opt.apply_gradients([(None, first), (np.ones(3), second)])


@pytest.mark.parametrize("form", ["dense", "rows", "csr"])
def test_finite_gradients_have_a_finite_sum(form):
    var, opt = np.ones((4, 2), np.float32), RMSprop(gradient_accumulation_steps=3, check_finite=True)
    for _ in range(3):
        with np.errstate(over="ignore"):  # which matters where kernels are plain Python
            opt.apply_gradients([(FORMS[form](np.full((4, 2), 3e38, np.float32)), var)])
    assert opt.iterations == 1
    twice = IndexedSlices(np.full((2, 2), 3e38, np.float32), [1, 1])
    with pytest.raises(FloatingPointError, match="got rows or entries that come twice, and whose sum is not finite"):
        opt.apply_gradients([(twice, var)])
    assert opt.accumulated_calls == 0


@pytest.mark.parametrize("calls", [1, 2])
def test_none_counts_as_seen_in_every_call(calls):
    first, second = np.ones(3), np.ones(2)
    opt = RMSprop(0.1, gradient_accumulation_steps=calls)
    for _ in range(calls - 1):
        opt.apply_gradients([(np.ones(2), second)])
    with pytest.warns(UserWarning, match="no gradient"):
        opt.apply_gradients([(None, first), (np.ones(2), second)])
    assert {own.var.shape for own in opt.known.slots} == {(3,), (2,)}
    assert (opt.iterations, first.tolist()) == (1, [1, 1, 1])


def test_a_restored_variable_that_nobody_holds_takes_no_step():
    first, second, grad = np.ones((3, 2)), np.ones((3, 2)), np.ones((3, 2))
    opt = RMSprop(0.1, gradient_accumulation_steps=2)
    opt.build({"first": first, "second": second})
    opt.apply_gradients([(grad, first), (grad, second)])
    again, array = pickle.loads(pickle.dumps(opt)), first.copy()
    again.rebind("first", array)
    with pytest.raises(ValueError, match=r"gradients of second .* wait for a step, but nobody holds the array"):
        again.apply_gradients([(grad, array)])
    other = second.copy()
    again.rebind("second", other)
    again.apply_gradients([(grad, array)])
    assert (array < 1).all()
    assert (other < 1).all()


def test_a_variable_that_moves_before_its_step_takes_it_where_it_is():
    first, second, elsewhere = np.ones(3), np.ones(2), np.ones(3)
    moves = []

    def rho():
        if moves:
            opt.rebind(moves.pop(), elsewhere)
        return 0.9

    opt = RMSprop(0.1, rho=rho, gradient_accumulation_steps=2)
    opt.apply_gradients([(np.ones(3), first), (np.ones(2), second)])
    moves.append(first)
    opt.apply_gradients([(np.ones(2), second)])
    assert (first == 1).all()
    assert (elsewhere < 1).all()
    assert len(opt.known.slots) == 2


def test_nothing_is_kept_of_a_variable_that_is_gone():
    opt, var = RMSprop(gradient_accumulation_steps=9), np.ones(100_000)
    opt.apply_gradients([(var, var)])
    del var
    for _ in range(3):
        opt.build([np.ones(30_000)])
    assert not any(own.var.size == 100_000 for own in (*opt.known.slots, *opt.known.accumulation.sums))


def test_there_are_few_pieces_however_small_they_are():
    table, opt = np.zeros((5000, 1)), RMSprop(gradient_accumulation_steps=10_000)
    opt.apply_gradients([(IndexedSlices(np.ones((5000, 1)), np.arange(5000)), table)])
    for step in range(1000):
        row = [] if step % 7 == 0 else [step % 11]
        opt.apply_gradients([(IndexedSlices(np.ones((len(row), 1)), np.array(row, int)), table)])
        assert len(opt.known.accumulation.sums[opt.known.slots[0]].rows) <= 12


def test_a_subclass_may_fix_the_number_of_calls_in_its_body():
    class Two(RMSprop):
        gradient_accumulation_steps = 2

    class Zero(RMSprop):
        gradient_accumulation_steps = 0

    var, opt = np.ones(2), Two(0.1)
    assert [opt.apply_gradients([(np.ones(2), var)]) for _ in range(4)] == [0, 1, 1, 2]
    with pytest.raises(ValueError, match="gradient_accumulation_steps: expected None or a whole number above 0, got 0"):
        Zero()


def test_threads_lose_no_call():
    table, opt = np.zeros((50, 2)), RMSprop(0.1, gradient_accumulation_steps=3)

    def train():
        for k in range(60):
            opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [k % 50]), table)])

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (opt.iterations, opt.accumulated_calls) == (80, 0)


def test_with_averages_each_step_averages_once():
    var, opt = np.ones(2), RMSprop(0.1, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5)
    other, plain = np.ones(2), RMSprop(0.1, use_ema=True, ema_momentum=0.5)
    for step in range(6):
        opt.apply_gradients([(np.full(2, step + 1.0), var)])
        if step % 2:
            plain.apply_gradients([(np.full(2, step + 0.5), other)])
    np.testing.assert_allclose(opt.average(var), plain.average(other), rtol=1e-12)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "2"])
def test_numbers_of_steps_that_there_are_not(steps):
    with pytest.raises(ValueError, match="gradient_accumulation_steps: expected None or a whole number above 0, got"):
        RMSprop(gradient_accumulation_steps=steps)
