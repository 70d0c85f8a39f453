"""Clipping acts on the summed gradient, in the order value, norm, global norm."""

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


@pytest.mark.filterwarnings("ignore:overflow encountered")  # as plain Python, NumPy tells of it
def test_norms_do_not_overflow_in_float32():
    var = np.zeros(4, np.float32)
    opt = RMSprop(0.1, clipnorm=1.0, rho=0.0)
    opt.apply_gradients([(np.full(4, 1e30, np.float32), var)])
    np.testing.assert_allclose(opt.get_slot(var, "rms"), 0.25, rtol=1e-6)
