"""Dense steps: every variant, shape and memory layout."""

import numpy as np
import pytest
from reference import Reference, assert_close
from strategies import DTYPES, TOLERANCE, VARIANTS

from numba_rmsprop import IndexedSlices, RMSprop

LAYOUTS = {
    "0-d": lambda: np.array(2.0),
    "1-d": lambda: np.arange(1.0, 6.0),
    "1-d strided": lambda: np.arange(1.0, 11.0)[::2],
    "1-d backwards": lambda: np.arange(1.0, 6.0)[::-1],
    "2-d": lambda: np.arange(12.0).reshape(3, 4),
    "2-d Fortran": lambda: np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "2-d rows of a wider array": lambda: np.arange(24.0).reshape(3, 8)[:, :4],
    "2-d every second row": lambda: np.arange(24.0).reshape(6, 4)[::2],
    "2-d every second column": lambda: np.arange(24.0).reshape(3, 8)[:, ::2],
    "2-d backwards": lambda: np.arange(12.0).reshape(3, 4)[::-1, ::-1],
    "3-d": lambda: np.arange(24.0).reshape(2, 3, 4),
    "3-d Fortran": lambda: np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "3-d strided": lambda: np.arange(96.0).reshape(2, 6, 8)[:, ::2, ::2],
    "3-d transposed": lambda: np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "4-d strided": lambda: np.arange(64.0).reshape(2, 4, 2, 4)[:, ::2, :, ::2],
    "empty": lambda: np.empty((0, 3)),
    "no columns": lambda: np.empty((3, 0)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("inside", [None, True, False])
def test_variants_equal_the_formulas(dtype, momentum, centered, inside):
    rng = np.random.default_rng(0)
    var = rng.standard_normal((7, 5)).astype(dtype)
    opt = RMSprop(0.01, momentum=0.9 * momentum, epsilon=1e-3, centered=centered, decay=0.1, epsilon_in_sqrt=inside)
    reference = Reference([var], momentum=momentum, centered=centered, epsilon_inside=inside)
    for t in range(10):
        grad = rng.standard_normal(var.shape).astype(dtype)
        assert opt.apply_gradients([(grad, var)]) == t + 1
        reference.step([grad], lr=0.01 / (1 + 0.1 * t), momentum=0.9, epsilon=1e-3)
    assert_close(var, reference.vars[0], TOLERANCE[dtype])
    assert_close(opt.get_slot(var, "rms"), reference.rms[0], TOLERANCE[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_order", ["C", "F"])
@pytest.mark.parametrize("variant", [(False, False), (True, True)])
def test_any_strides(layout, grad_order, variant):
    momentum, centered = variant
    var = LAYOUTS[layout]()
    owner = var if var.base is None else var.base
    outside = ~_mask(owner, var)
    untouched = owner[outside].copy()
    rng = np.random.default_rng(0)
    opt = RMSprop(0.1, momentum=0.9 * momentum, centered=centered, epsilon=1e-3)
    reference = Reference([var], momentum=momentum, centered=centered)
    for t in range(4):
        dense = np.asarray(rng.standard_normal(var.shape))
        if t % 2 and var.ndim and len(var):
            rows = rng.integers(0, len(var), 3)
            values = rng.standard_normal((3, *var.shape[1:]))
            dense = np.zeros(var.shape)
            np.add.at(dense, rows, values)
            grad = IndexedSlices(values, rows)
        else:
            grad = np.asarray(dense, order=grad_order)
        opt.apply_gradients([(grad, var)])
        reference.step([dense], lr=0.1, momentum=0.9, epsilon=1e-3)
    if var.ndim and len(var):
        everything = np.arange(len(var))[::-1]
        assert_close(opt.gather(var, everything), reference.vars[0][::-1], 1e-12)
    opt.flush()
    assert_close(var, reference.vars[0], 1e-12)
    assert (owner[outside] == untouched).all()


def _mask(owner, view):
    """Return which elements of ``owner`` a view of it shows."""
    marked = np.zeros(owner.shape, bool)
    offset = view.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    strides = [stride // owner.itemsize for stride in view.strides]
    flat = marked.reshape(-1, order="A")
    for index in np.ndindex(view.shape):
        flat[offset // owner.itemsize + sum(i * s for i, s in zip(index, strides, strict=True))] = True
    return marked if flat.base is marked or flat is marked else flat.reshape(owner.shape, order="A")


def test_large_arrays_equal_small_ones():
    rng = np.random.default_rng(0)
    grad = rng.standard_normal(100_003).astype(np.float32)
    whole, parts = np.ones_like(grad), np.ones_like(grad)
    RMSprop(0.1).apply_gradients([(grad, whole)])
    pieces = np.split(parts, [10, 5000, 60_000])
    RMSprop(0.1).apply_gradients(list(zip(np.split(grad, [10, 5000, 60_000]), pieces, strict=True)))
    assert whole.tobytes() == parts.tobytes()


def test_float32_stays_in_float32():
    # (1 + 2⁻²⁴) - 1 is 0 in float32 and not in float64
    var = np.ones(1, np.float32)
    RMSprop(2.0**-25, rho=0.0, epsilon=0.0).apply_gradients([(np.ones(1, np.float32), var)])
    assert var[0] == 1
    assert var.dtype == np.float32


def test_gradient_that_is_the_variable_itself():
    for size in (5, 20_000):
        var = np.linspace(1, 2, size)
        reference = Reference([var])
        opt = RMSprop(0.1)
        for _ in range(3):
            reference.step([reference.vars[0]], lr=0.1)
            opt.apply_gradients([(var, var)])
        assert_close(var, reference.vars[0], 1e-12)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero", "ignore:overflow")
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_not_a_number_stays_where_it_came(momentum, centered):
    var = np.ones(4)
    opt = RMSprop(0.1, momentum=0.9 * momentum, centered=centered)
    opt.apply_gradients([(np.array([np.nan, 1.0, np.inf, 0.0]), var)])
    opt.apply_gradients([(np.ones(4), var)])
    assert np.isnan(var).tolist() == [True, False, True, False]


def test_centered_variance_below_zero_is_zero():
    # equal gradients: rms - mg² tends to 0 and rounds below it, where TensorFlow's and PyTorch's roots go NaN
    var = np.zeros(1000, np.float32)
    opt = RMSprop(1e-3, centered=True)
    grad = np.linspace(0.1, 10, 1000, dtype=np.float32)
    for _ in range(300):
        opt.apply_gradients([(grad, var)])
    assert np.isfinite(var).all()


def test_two_views_of_the_same_memory_are_one_variable():
    table = np.zeros((4, 3))
    opt = RMSprop(0.1)
    opt.apply_gradients([(np.ones((4, 3)), table[:])])
    opt.apply_gradients([(np.ones((4, 3)), table[:])])
    assert len(opt.weights) == 2
    np.testing.assert_allclose(opt.get_slot(table, "rms"), 0.19)


def test_memmap(tmp_path):
    table = np.memmap(tmp_path / "table", np.float32, "w+", shape=(10, 2))
    RMSprop(0.1).apply_gradients([(IndexedSlices(np.ones((1, 2), np.float32), [3]), table)])
    table.flush()
    on_disk = np.fromfile(tmp_path / "table", np.float32).reshape(10, 2)
    assert np.flatnonzero(on_disk[:, 0]).tolist() == [3]
