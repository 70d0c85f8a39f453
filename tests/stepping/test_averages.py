"""Moving averages of variables: against what Keras made of the same steps, and read by rows."""

import copy
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from reference import Reference, assert_close

from numba_rmsprop import IndexedSlices, RMSprop

KERAS = json.loads((Path(__file__).parents[1] / "support/keras_trajectories.json").read_text("utf-8"))
GRADIENTS = np.array(KERAS["gradients"])
AVERAGED = [case for case in KERAS["cases"] if case["options"].get("use_ema")]
OFTEN = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3}


def name_of(case):
    return ", ".join(f"{name}={value}" for name, value in case["options"].items() if value)


def optimizer(options):
    return RMSprop(KERAS["learning_rate"], KERAS["rho"], epsilon=KERAS["epsilon"], epsilon_in_sqrt=True, **options)


def rows_of(grad):
    rows = np.flatnonzero(grad.any(axis=1))
    return IndexedSlices(grad[rows], rows)


@pytest.mark.parametrize(("dtype", "form"), [("float64", np.array), ("float64", rows_of), ("float32", rows_of)])
@pytest.mark.parametrize("case", AVERAGED, ids=name_of)
def test_as_keras(case, dtype, form):
    var, opt = (np.arange(8.0).reshape(4, 2) / 4).astype(dtype), optimizer(case["options"])
    tolerance = {"float64": 1e-9, "float32": 3e-5}[dtype]
    steps = zip(GRADIENTS.astype(dtype), case[dtype]["var"], case[dtype]["average"], strict=True)
    for step, (grad, expected, average) in enumerate(steps):
        opt.apply_gradients([(form(grad), var)])
        if step == 5:
            rows = [3, 0, 3]
            found = opt.gather(var, rows, averaged=True)
            np.testing.assert_allclose(found, np.array(average)[rows], rtol=tolerance, atol=tolerance)
        if step in (2, 4, 7):  # a gap of any length lies between
            np.testing.assert_allclose(opt.average(var), average, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(var, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "weight_decay": 0.1}, {"state": "rowwise"}])
def test_long_gaps(options):
    # Beyond the table of common gaps, over runs that end in each third step.
    table = np.random.default_rng(3).standard_normal((5, 4))
    opt = RMSprop(0.1, 0.9, epsilon=1e-3, **options, **OFTEN)
    reference = Reference([table], momentum="momentum" in options, by_row="state" in options, **OFTEN)
    for step in range(1500):
        rows = [step % 2] if step else [0, 1, 2, 3]
        grad = np.random.default_rng(step).standard_normal((len(rows), 4))
        opt.apply_gradients([(IndexedSlices(grad, rows), table)])
        dense = np.zeros((5, 4))
        dense[rows] = grad
        numbers = {name: value for name, value in options.items() if name != "state"}
        reference.step([dense], lr=0.1, rho=0.9, epsilon=1e-3, **numbers)
    assert_close(opt.gather(table, [3]), reference.vars[0][[3]], 1e-12)
    found = opt.gather(table, [2, 4, 0], averaged=True)
    assert_close(found, reference.averages[0][[2, 4, 0]], 1e-12)
    opt.flush()
    assert_close(table, reference.vars[0], 1e-12)
    assert_close(opt.average(table), reference.averages[0], 1e-12)


def test_a_variable_that_comes_later_starts_as_its_average():
    first, later = np.ones(3), np.full((3, 2), 5.0)
    opt = RMSprop(0.1, use_ema=True, ema_momentum=0.5)
    opt.apply_gradients([(np.ones(3), first)])
    opt.build([first, later])
    assert opt.average(later).tolist() == later.tolist()
    assert opt.gather(later, [1], averaged=True).tolist() == [[5, 5]]
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [1]), later)])
    np.testing.assert_allclose(opt.average(later), 0.5 * 5 + 0.5 * later)
    np.testing.assert_allclose(opt.average(first), first)  # no step, no average


def test_lazy_rows_are_averaged_when_they_step():
    table = np.ones((3, 2))
    opt = RMSprop(0.1, use_ema=True, ema_momentum=0.5, sparse_update="lazy")
    for row in (0, 1, 1):
        before = table.copy()
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), table)])
    np.testing.assert_allclose(opt.average(table)[0], table[0])
    np.testing.assert_allclose(opt.average(table)[1], (0.5 + 0.5 * before[1]) / 2 + table[1] / 2)
    np.testing.assert_allclose(opt.average(table)[2], 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_averages_of_16_bits_are_float32(dtype):
    table = np.ones((4, 2), getattr(ml_dtypes, dtype, dtype))
    opt = RMSprop(0.01, use_ema=True, rounding="stochastic", state_dtype="bfloat16")
    for _ in range(5):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2), np.float32), [2]), table)])
    average = opt.average(table)
    assert average.dtype == np.float32
    assert opt.get_slot(table, "rms").dtype != np.float32
    assert opt.gather(table, [2, 0], averaged=True).dtype == np.float32
    assert average[0].tolist() == [1, 1]
    assert np.float32(table[2, 0]) < average[2, 0] < 1
    with pytest.raises(TypeError, match="dtype: expected float32, got"):
        opt.gather(table, [2], averaged=True, dtype=table.dtype)


def test_strided_variables_and_copies_of_rows():
    base = np.ones((6, 4, 3))
    table = base[::2, ::2]  # no view of shape (rows, columns)
    opt, plain = RMSprop(0.1, momentum=0.9, **OFTEN), np.ones((3, 2, 3))
    other = RMSprop(0.1, momentum=0.9, **OFTEN)
    for row in (0, 2, 2, 1):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2, 3)), [row]), table)])
        other.apply_gradients([(IndexedSlices(np.ones((1, 2, 3)), [row]), plain)])
    found = other.gather(plain, [2, 0], averaged=True)
    assert opt.gather(table, [2, 0], averaged=True).tobytes() == found.tobytes()


def test_the_end_of_training_takes_the_averages():
    table, opt = np.ones((4, 2)), RMSprop(0.1, momentum=0.9, use_ema=True)
    for row in (0, 1, 3):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), table)])
    other, again = copy.deepcopy((opt, table))
    average = other.average(again)
    assert (table != average).any()
    opt.finalize_variable_values([table])
    assert table.tobytes() == average.tobytes()
    before = RMSprop()
    before.finalize_variable_values([table])
    assert table.tobytes() == average.tobytes()


def test_the_end_of_training_is_in_the_next_delta(tmp_path):
    table, opt = np.ones((400, 2)), RMSprop(0.1, use_ema=True)
    for row in (3, 3):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), table)])
    opt.save(tmp_path / "file")
    opt.finalize_variable_values([table])
    opt.save_delta(tmp_path / "delta")
    loaded = np.empty((400, 2))
    RMSprop.load([tmp_path / "file", tmp_path / "delta"], [loaded])
    assert loaded.tobytes() == table.tobytes()


def test_averages_go_on_in_files_deltas_copies_and_weights(tmp_path):
    table, opt = np.ones((40, 2)), RMSprop(0.1, momentum=0.9, **OFTEN)

    def step(one, var, k):
        one.apply_gradients([(IndexedSlices(np.full((2, 2), k + 1.0), [k, 7]), var)])

    for k in range(4):
        step(opt, table, k)
    opt.save(tmp_path / "file")
    step(opt, table, 4)
    opt.save_delta(tmp_path / "delta")
    loaded = np.empty((40, 2))
    runs = [(RMSprop.load([tmp_path / "file", tmp_path / "delta"], [loaded]), loaded), copy.deepcopy((opt, table))]
    for k in range(5, 9):
        step(opt, table, k)
        for one, var in runs:
            step(one, var, k)
    for one, var in runs:
        assert one.average(var).tobytes() == opt.average(table).tobytes()
        assert var.tobytes() == table.tobytes()
    assert opt.get_slot_names() == ["rms", "momentum", "average"]
    fresh, again = table.copy(), RMSprop.from_config(opt.get_config())
    again.build([fresh])
    again.set_weights(opt.get_weights())
    step(again, fresh, 9)
    step(opt, table, 9)
    np.testing.assert_allclose(again.average(fresh), opt.average(table), rtol=1e-12)


def test_what_is_refused_leaves_all_as_it_was():
    table, opt = np.ones((4, 2)), RMSprop(0.1, use_ema=True)
    with pytest.raises(KeyError, match=r"has no average yet; opt.build\(\[var\]\) makes it"):
        opt.average(table)
    with pytest.raises(KeyError, match="has no average yet"):
        opt.gather(table, [0], averaged=True)
    for call in (lambda: RMSprop().average(table), lambda: RMSprop().gather(table, [0], averaged=True)):
        with pytest.raises(ValueError, match="the optimizer keeps no averages; make it with use_ema=True"):
            call()
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [2]), table)])
    before = [table.tobytes(), *(weight.tobytes() for weight in opt.get_weights())]
    table.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.finalize_variable_values([table])
    table.flags.writeable = True
    assert [table.tobytes(), *(weight.tobytes() for weight in opt.get_weights())] == before


@pytest.mark.parametrize("second", [None, {}, {"momentum": 0.9}, {"use_ema": True}])
def test_what_rows_have_missed_goes_by_the_values_that_they_had(second):
    found = []
    for is_sparse in (True, False):
        table, opt = np.ones((4, 2)), RMSprop(0.1, use_ema=True, ema_momentum=0.5)
        others = [] if second is None else [RMSprop(0.1, **second)]
        for step, rows in enumerate([[0, 1], [1], [1], [0], [1]]):
            if step == 3:
                opt.gather(table, [0])
                table[0] = 5.0
            for one in (opt, *others):
                grad = np.zeros((4, 2))
                grad[rows] = 1.0
                one.apply_gradients([(IndexedSlices(grad[rows], rows) if is_sparse else grad, table)])
        opt.flush()
        found.append((opt.average(table), table))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_averages_that_a_variable_of_16_bits_cannot_hold():
    first, half, rates = np.zeros(3), np.full((2, 2), 65440, np.float16), [0.0, 200.0]
    opt = RMSprop(lambda: rates[opt.iterations], rho=0.0, use_ema=True, ema_momentum=0.5)
    for _ in rates:
        with np.errstate(over="ignore"):  # which matters where kernels are plain Python
            opt.apply_gradients([(np.ones(3), first), (-np.ones((2, 2), np.float32), half)])
    with np.errstate(over="raise"):
        opt.finalize_variable_values([first, half])
    assert np.isinf(half).all()
    np.testing.assert_allclose(first, -100.0, rtol=1e-6)


def test_a_subclass_may_fix_averages_in_its_body():
    class Averaged(RMSprop):
        use_ema = True

    class Plain(RMSprop):
        use_ema = False

    assert Averaged(ema_overwrite_frequency=2).drifts
    with pytest.raises(ValueError, match="expected None without averages, got 2"):
        Plain(use_ema=True, ema_overwrite_frequency=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_momentum": 1.5}, "ema_momentum: expected 0 <= ema_momentum <= 1, got 1.5"),
        ({"use_ema": True, "ema_overwrite_frequency": 0}, "expected None or a whole number above 0, got 0"),
        ({"use_ema": True, "ema_overwrite_frequency": True}, "expected None or a whole number above 0, got True"),
        ({"use_ema": True, "ema_overwrite_frequency": 1.5}, "expected None or a whole number above 0, got 1.5"),
        ({"ema_overwrite_frequency": 3}, "expected None without averages, got 3; give use_ema=True as well"),
    ],
)
def test_options_that_there_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        RMSprop(**options)


def test_a_mean_square_that_is_no_number_reaches_the_average_without_a_gradient():
    table, opt = np.ones((3, 2)), RMSprop(0.1, use_ema=True)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [0]), table)])
    opt.get_slot(table, "rms")[1] = np.nan
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [0]), table)])
    opt.flush()
    assert np.isnan(opt.average(table)[1]).all()
    assert np.isfinite(opt.average(table)[[0, 2]]).all()


def test_numbers_that_are_not_finite_reach_the_average():
    table, dense = np.ones((4, 2)), np.ones((4, 2))
    opt, other = RMSprop(0.1, momentum=0.9, **OFTEN), RMSprop(0.1, momentum=0.9, **OFTEN)
    for k in range(7):
        grad = np.zeros((4, 2))
        grad[k % 3] = {0: np.nan, 1: np.inf}.get(k, 1.0)
        with np.errstate(invalid="ignore"):  # which matters where kernels are plain Python
            opt.apply_gradients([(IndexedSlices(grad[[k % 3]], [k % 3]), table)])
            other.apply_gradients([(grad, dense)])
    finite = np.isfinite(other.average(dense))
    assert (np.isfinite(opt.average(table)) == finite).all()
    np.testing.assert_allclose(opt.average(table)[finite], other.average(dense)[finite], rtol=1e-12)
