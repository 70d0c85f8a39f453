"""Clipping of the summed gradient: by value, then by norm, then by global norm."""

import copy
import math

import numba
import numpy as np
import pytest
import scipy.sparse
from reference import Reference, assert_close, densified

from numba_rmsprop import IndexedSlices, RMSprop

CLIPS = [{"clipvalue": 0.1}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.7, "clipnorm": 0.9}]


@pytest.mark.parametrize("clips", CLIPS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mixed_gradients(clips, dtype):
    rng = np.random.default_rng(0)
    variables = [rng.standard_normal(shape).astype(dtype) for shape in ((9000,), (5, 3), (300, 7), ())]
    values, indices = rng.standard_normal((40, 3)).astype(dtype), rng.integers(0, 5, 40)
    csr = scipy.sparse.random_array((300, 7), density=0.1, rng=rng, dtype=dtype, format="csr")
    dense = [rng.standard_normal(9000).astype(dtype), densified(values, indices, (5, 3)), csr.toarray(), 3.0]
    given = [dense[0], IndexedSlices(values, indices), csr, 3.0]
    reference = Reference(variables)
    opt = RMSprop(0.1, **clips)
    for _ in range(3):
        opt.apply_gradients(list(zip(given, variables, strict=True)))
        reference.step(dense, lr=0.1, **clips)
    for var, expected in zip(variables, reference.vars, strict=True):
        assert_close(var, expected, 1e-5 if dtype == np.float32 else 1e-12)


def test_duplicates_are_summed_before_they_are_clipped():
    var = np.zeros((2, 1))
    opt = RMSprop(0.1, clipvalue=1.0, rho=0.0)
    opt.apply_gradients([(IndexedSlices([[3.0], [-2.5]], [0, 0]), var)])
    assert opt.get_slot(var, "rms")[0, 0] == 0.25


def test_duplicates_in_a_csr_array_count_once_in_a_norm():
    var = np.zeros((2, 2))
    opt = RMSprop(0.1, clipnorm=1.0, rho=0.0)
    opt.apply_gradients([(scipy.sparse.csr_array(([1.0, 2.0, 4.0], [0, 0, 1], [0, 3, 3]), (2, 2)), var)])
    np.testing.assert_allclose(opt.get_slot(var, "rms"), [[9 / 25, 16 / 25], [0, 0]], rtol=1e-15)


@pytest.mark.parametrize("clips", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}], ids=str)
def test_a_small_variable_is_clipped_after_a_step_that_was_not(clips):
    var = np.zeros(4)
    opt = RMSprop(0.1, rho=0.0, **clips)
    for size, expected in ((0.5, 0.25), (0.25, 0.0625), (3.0, 0.25)):
        opt.apply_gradients([(np.full(4, size), var)])
        assert (opt.get_slot(var, "rms") == expected).all()


def test_gradients_below_the_limit_keep_their_bits():
    grad = np.random.default_rng(0).standard_normal(1000)
    plain, clipped = np.ones(1000), np.ones(1000)
    RMSprop(0.1).apply_gradients([(grad, plain)])
    RMSprop(0.1, clipvalue=10.0, clipnorm=1e3).apply_gradients([(grad, clipped)])
    assert plain.tobytes() == clipped.tobytes()


def test_clipping_to_nothing_stops_the_variable():
    for clips in ({"clipvalue": 0.0}, {"clipnorm": 0.0}, {"global_clipnorm": 0.0}):
        var = np.ones(3)
        RMSprop(0.1, **clips).apply_gradients([(np.ones(3), var)])
        assert (var == 1).all()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("clips", [{"clipvalue": 1.0}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}])
def test_not_a_number_is_not_clipped_away(clips):
    var, other = np.ones(3), np.ones(3)
    RMSprop(0.1, **clips).apply_gradients([(np.array([np.nan, 1, 1]), var), (np.ones(3), other)])
    assert np.isnan(var[0])
    assert np.isnan(other).all() == ("global_clipnorm" in clips)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy warns where the kernels run as plain Python
def test_norms_do_not_overflow_in_float32():
    var = np.zeros(4, np.float32)
    opt = RMSprop(0.1, clipnorm=1.0, rho=0.0)
    opt.apply_gradients([(np.full(4, 1e30, np.float32), var)])
    np.testing.assert_allclose(opt.get_slot(var, "rms"), 0.25, rtol=1e-6)


SHAPES = [(), (33,), (9, 7), (5, 6, 7), (0, 3)]
if not numba.config.DISABLE_JIT:
    SHAPES += [(20_001,), (100, 200), (20_000, 1), (3, 9_000), (3, 16_384), (40, 30, 20)]
LAYOUTS = {
    "Fortran": lambda array: array.copy(order="F"),
    "every second": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "backwards": lambda array: np.ascontiguousarray(array[::-1])[::-1] if array.ndim else array,
}


def mean_squares(gradients, variables, **clips):
    """Return the squares of the gradients as they were clipped."""
    opt = RMSprop(0.1, rho=0.0, **clips)
    opt.apply_gradients(list(zip(gradients, variables, strict=True)))
    return [opt.get_slot(var, "rms").tobytes() for var in variables]


@pytest.mark.parametrize("clips", [{"clipnorm": 0.5}, {"global_clipnorm": 0.5}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bits_of_a_norm_depend_on_no_layout(clips, dtype, threads):
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    variables = [np.ones_like(gradient) for gradient in gradients]
    expected = mean_squares(gradients, variables, **clips)
    for name, turned in LAYOUTS.items():
        for which in ("gradients", "variables"):
            others = [[turned(array) for array in arrays] for arrays in (gradients, variables)]
            given = (others[0], variables) if which == "gradients" else (gradients, others[1])
            assert mean_squares(*given, **clips) == expected, f"{name} {which}"
    backwards = mean_squares(gradients[::-1], variables[::-1], **clips)
    assert backwards[::-1] == expected, "in another order"


def test_no_bit_of_a_global_norm_depends_on_the_order_of_variables():
    sizes = np.array([1.0, *[2.0**-27] * 16])  # the squares of the small ones are lost one by one, and together are not
    variables = list(np.zeros((17, 1)))
    expected = mean_squares(list(sizes[:, np.newaxis]), variables, global_clipnorm=0.5)
    backwards = mean_squares(list(sizes[::-1, np.newaxis]), variables[::-1], global_clipnorm=0.5)
    assert backwards[::-1] == expected


@pytest.mark.parametrize(
    "shape", [(5,), (7, 3)] if numba.config.DISABLE_JIT else [(5,), (70_000,), (70, 1_000)], ids=str
)
def test_a_norm_of_both_dtypes_is_as_exact_as_float64(shape):
    rng = np.random.default_rng(0)
    single, double = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(5)
    for grad in (single, np.asfortranarray(single), IndexedSlices(single, np.arange(len(single)))):
        opt, var = RMSprop(0.1, rho=0.0, global_clipnorm=1.0), np.zeros(5)
        opt.apply_gradients([(grad, np.zeros(shape, np.float32)), (double, var)])
        norm = np.sqrt(np.sum(single.astype(float) ** 2) + np.sum(double**2))
        np.testing.assert_allclose(opt.get_slot(var, "rms"), (double / norm) ** 2, rtol=1e-14)


@pytest.mark.parametrize("clips", [{"clipnorm": math.inf}, {"global_clipnorm": math.inf}, {"clipnorm": 0.5}], ids=str)
def test_norms_are_told_after_a_step(clips):
    table, bias, plain = np.ones((5, 2)), np.ones(3), np.ones((5, 2))
    opt, other = RMSprop(**clips), RMSprop()
    opt.build({"table": table, "bias": bias})
    gradient = IndexedSlices([[3.0, 0.0], [0.0, 4.0]], [1, 1])
    opt.apply_gradients([(gradient, table), (np.array([2.0, 0.0, 0.0]), bias)])
    assert opt.gradient_norms == {"table": 5.0, "bias": 2.0}
    assert copy.deepcopy(opt).gradient_norms == opt.gradient_norms
    other.apply_gradients([(gradient, plain)])
    assert (table.tobytes() == plain.tobytes()) == (clips.get("clipnorm") != 0.5)
    assert other.gradient_norms == {}
    with pytest.raises(IndexError):
        opt.apply_gradients([(np.ones(3), bias), (IndexedSlices(np.ones((1, 2)), [9]), table)])
    assert opt.gradient_norms == {"table": 5.0, "bias": 2.0}


def test_an_infinite_limit_lets_infinite_gradients_through_as_they_are():
    var = np.ones(3)
    RMSprop(clipnorm=math.inf).apply_gradients([(np.array([np.nan, 1.0, 1.0]), var)])
    assert np.isnan(var).tolist() == [True, False, False]
