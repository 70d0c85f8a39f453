"""NaN, infinite, denormal and huge gradients, and gaps in which the mean square vanishes or is infinite."""

import numpy as np
import pytest
from optimizer_internals import let_steps_pass
from reference import Reference, assert_close, densified
from strategies import DTYPES, TOLERANCE, VARIANTS, unsorted_csr

from numba_rmsprop import IndexedSlices, RMSprop

SHAPE = (5, 3)

BAD = [np.nan, np.inf, -np.inf]


def optimizer(momentum, centered, **settings):
    return RMSprop(0.1, momentum=0.9 * momentum, centered=centered, **settings)


def gradient_with(bad, kind, dtype):
    """Return a gradient with ``bad`` added to two elements, as it is passed and as a dense array."""
    rng = np.random.default_rng(0)
    if kind == "dense":
        dense = rng.standard_normal(SHAPE).astype(dtype)
        dense[1, 2] += bad
        dense[4, 0] += bad
        return dense, dense
    rows, columns = np.array([3, 1, 3, 0, 3]), np.array([0, 2, 0, 1, 1])
    if kind == "rows":
        values = rng.standard_normal((5, 3)).astype(dtype)
        values[1, 2] += bad
        values[2, 0] += bad  # one of three entries of a row
        return IndexedSlices(values, rows), densified(values, rows, SHAPE)
    values = rng.standard_normal(5).astype(dtype)
    values[1:3] += bad
    return unsorted_csr(values, rows, columns, SHAPE), densified(values, (rows, columns), SHAPE)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the reference
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["dense", "rows", "csr"])
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_reach_only_their_elements(bad, kind, momentum, centered, dtype):
    results = []
    for value in (0.0, bad):
        opt, var = optimizer(momentum, centered), np.ones(SHAPE, dtype)
        reference = Reference([var], momentum=momentum, centered=centered)
        steps = [
            gradient_with(0.0, "dense", dtype),
            gradient_with(value, kind, dtype),
            gradient_with(0.0, "rows", dtype),
        ]
        for grad, dense in [*steps, (IndexedSlices(np.ones((1, 3), dtype), [2]), None)]:
            dense = densified(np.ones((1, 3)), [2], SHAPE) if dense is None else dense
            opt.apply_gradients([(grad, var)])
            reference.step([dense], lr=0.1, momentum=0.9)
        opt.flush()
        expected = {"rms": reference.rms[0], "momentum": reference.mom[0], "mg": reference.mg[0]}
        results.append((var, {name: opt.get_slot(var, name) for name in opt.get_slot_names()}))
    (clean, clean_slots), (var, slots) = results
    for name, array, without, wanted in [
        ("var", var, clean, reference.vars[0]),
        *((name, slots[name], clean_slots[name], expected[name]) for name in slots),
    ]:
        finite = np.isfinite(wanted)
        assert 0 < np.sum(~finite) <= 2, name
        assert (np.isfinite(array) == finite).all(), name
        assert (np.isnan(array) == np.isnan(wanted)).all(), name
        assert array[finite].tobytes() == without[finite].tobytes(), name


SIZES = {
    np.float32: [1e-45, 1e-38, 1e-22, 1e-10, 1e10, 1e18, 1e25, 1e38],
    np.float64: [5e-324, 1e-308, 1e-160, 1e-30, 1e30, 1e150, 1e200, 1e300],
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")  # of the reference
@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_and_huge_gradients(kind, momentum, centered, dtype):
    """Equal NumPy's arithmetic of the same dtype, where a square overflows or vanishes too."""
    sizes = np.array(SIZES[dtype] + [-size for size in SIZES[dtype]], dtype)[:, np.newaxis]
    opt, var = optimizer(momentum, centered), np.ones(sizes.shape, dtype)
    lr, rho, rest, m, eps = (dtype(number) for number in (0.1, 0.9, 1 - 0.9, 0.9, 1e-7))
    rms, mg, mom, expected = (np.full_like(var, start) for start in (0, 0, 0, 1))
    for _ in range(3):
        grad = IndexedSlices(sizes, np.arange(len(sizes))) if kind == "rows" else sizes
        opt.apply_gradients([(grad, var)])
        rms = rho * rms + rest * sizes**2
        mg = rho * mg + rest * sizes
        v = np.maximum(rms - mg**2, 0) if centered else rms
        step = lr * sizes / (np.sqrt(v + eps) if momentum else np.sqrt(v) + eps)
        mom = m * mom + step
        expected = expected - (mom if momentum else step)
    found = {"rms": rms, "momentum": mom, "mg": mg}
    # what is left of a denormal is rounded to whole steps of the smallest one
    near = {"rtol": 20 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).smallest_subnormal}
    np.testing.assert_allclose(var, expected, **near)
    for name in opt.get_slot_names():
        np.testing.assert_allclose(opt.get_slot(var, name), found[name], **near, err_msg=name)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.01}], ids=str)
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gradients_for_ever(settings, momentum, centered, dtype):
    """A gap of a million steps gives what dense steps with gradient 0 give, when rms has vanished in both."""
    dense, sparse = (optimizer(momentum, centered, **settings) for _ in range(2))
    var, other = np.ones(SHAPE, dtype), np.ones(SHAPE, dtype)
    rows = IndexedSlices(np.arange(1, 16, dtype=dtype).reshape(SHAPE), np.arange(5))
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(rows, array)])
    before = None
    for t in range(10_000):
        dense.apply_gradients([(np.zeros(SHAPE, dtype), var)])
        if t % 250 == 0:
            now = [array.tobytes() for array in (var, *dense.get_weights()[1:])]
            if now == before:  # no later step changes anything
                break
            before = now
    let_steps_pass(sparse, 10_000)
    for gap in (0, 1_000_000):
        let_steps_pass(sparse, gap)
        gathered = sparse.gather(other, np.arange(5))
        assert_close(gathered, var, 20 * TOLERANCE[dtype], "gathered", 1.0)
        sparse.flush()
        for name in sparse.get_slot_names():
            for opt, array in ((dense, var), (sparse, other)):
                left = opt.get_slot(array, name)
                # rounding to nearest keeps a few times the smallest number from becoming 0
                assert (np.abs(left) <= 8 * np.finfo(dtype).smallest_subnormal).all(), name
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(rows, array)])
        opt.flush()
    assert_close(other, var, 20 * TOLERANCE[dtype], "after another step", 1.0)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # where the kernels run as plain Python
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy's, where nothing is compiled
def test_an_infinite_rms_does_not_become_nan_in_a_gap():
    """The square of a finite gradient may overflow: this step is then 0, and so are all later ones."""
    dense, sparse = RMSprop(0.1), RMSprop(0.1)
    var, other = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    huge = IndexedSlices(np.full((1, 3), 1e30, np.float32), [2])
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(huge, array)])
    for _ in range(3_000):
        dense.apply_gradients([(np.zeros(SHAPE, np.float32), var)])
    let_steps_pass(sparse, 3_000)
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 3), np.float32), [2]), array)])
    assert (other == var).all()
    assert (sparse.get_slot(other, "rms") == dense.get_slot(var, "rms")).all()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_zeros_stay_zero_in_a_gap_in_which_a_decay_overflows():
    opt, var = RMSprop(1.0, momentum=0.9, weight_decay=1e30), np.zeros((2, 3))
    opt.apply_gradients([(IndexedSlices(np.zeros((1, 3)), [0]), var)])
    let_steps_pass(opt, 300)
    opt.flush()
    assert (var == 0).all()
