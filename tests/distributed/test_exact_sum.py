"""Sums over ranks that are rounded once."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_rmsprop.distributed.exact_sum import exact_sum, partial_sum


@given(
    terms=st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=0), max_size=30), cut=st.integers(0, 30)
)
def test_a_sum_is_rounded_once(terms, cut):
    parts = [partial_sum(np.array(part, np.float64)) for part in (terms[:cut], terms[cut:])]
    exact = sum(map(Fraction, terms), Fraction(0))
    try:
        expected = float(exact)
    except OverflowError:
        expected = np.inf
    assert exact_sum(parts) == expected


def test_many_large_terms_pass_no_64_bits():
    terms = np.full(5000, np.nextafter(2.0, 0))
    assert exact_sum([partial_sum(terms)] * 3) == float(15_000 * Fraction(np.nextafter(2.0, 0)))


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_what_is_not_finite_stays_so(wrong):
    beyond = partial_sum(np.full(4, 1e308))
    assert exact_sum([beyond, partial_sum(np.array([1e308]))]) == np.inf
    assert not np.isfinite(exact_sum([beyond, partial_sum(np.array([wrong]))]))
    assert not np.isfinite(exact_sum([partial_sum(np.array([1.0, wrong])), partial_sum(np.array([1.0]))]))
