"""The rule that ends every fit."""

import numpy as np
import pytest

from numba_rmsprop.kernels.fits.stopping import CONVERGED, NOT_FINITE, RUNNING, judge, slack, start_progress

NEVER = np.inf


class Judged:
    def __init__(self, gtol=-1.0, ftol=-1.0, patience=3, near=1e-8):
        self.rule = gtol, ftol, patience, near
        self.progress = np.empty(3)
        start_progress(self.progress)

    def __call__(self, mean, norm=NEVER, steps=1):
        return judge(mean, norm, steps, self.progress, *self.rule)

    def all(self, means, norm=NEVER):
        return [self(mean, norm)[1] for mean in means]


def test_the_lowest_is_kept():
    judged = Judged()
    assert [judged(mean)[0] for mean in (3.0, 2.0, 2.0, 4.0, 1.0, -1.0)] == [True, True, False, False, True, True]


@pytest.mark.parametrize("values", [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (1.0, np.nan)])
def test_numbers_that_are_not_finite_end_a_fit_and_are_not_kept(values):
    assert Judged()(*values) == (False, NOT_FINITE)


def test_flat_for_patience_steps():
    assert Judged(ftol=0.01).all([100.0, 100.5, 99.5, 100.5]) == [RUNNING] * 4  # 99.5 is the lowest, and 1 below 100.5
    assert Judged(ftol=0.01, near=0.02).all([100.0, 100.5, 99.5, 100.5]) == [RUNNING] * 3 + [CONVERGED]
    assert Judged(ftol=0.0).all([5.0] * 4) == [RUNNING] * 3 + [CONVERGED]
    assert Judged(ftol=0.0).all([0.0] * 4) == [RUNNING] * 3 + [CONVERGED]
    assert Judged(ftol=-1.0).all([5.0] * 9) == [RUNNING] * 9


def test_a_rise_is_no_sign_of_a_minimum_unless_there_is_noise():
    means = [100.0, 105.0, 110.0, 104.0, 109.0]
    assert Judged(ftol=0.01).all(means) == [RUNNING] * 5
    assert Judged(ftol=0.01, near=np.inf).all(means) == [RUNNING] * 3 + [CONVERGED] * 2
    # One that falls goes on, noise or not.
    assert Judged(ftol=0.01, near=np.inf).all(np.linspace(100, 50, 20)) == [RUNNING] * 20


def test_a_fit_that_has_settled_where_it_is_worse_has_not_converged():
    assert Judged(ftol=1e-9).all([1.0, *[2.0] * 9]) == [RUNNING] * 10
    assert Judged(gtol=1e-3).all([1.0, 2.0])[1] == RUNNING
    judged = Judged(gtol=1e-3)
    judged(1.0)
    assert judged(2.0, norm=0.0) == (False, RUNNING)
    assert judged(1.0 + 1e-9, norm=1e-3) == (True, CONVERGED)  # as low as any, and its gradient is the one to return


def test_windows_count_by_their_steps():
    judged = Judged(ftol=0.0, patience=100)
    assert [judged(1.0, steps=50)[1] for _ in range(3)] == [RUNNING, RUNNING, CONVERGED]


@pytest.mark.parametrize(
    ("ftol", "pace", "expected"),
    [(1e-3, 1.0, 1e-3), (1e-3, 0.1, 1e-4), (1e-3, 1e-12, 1e-14), (-1.0, 0.1, -1.0), (1e-3, np.nan, 1e-3)],
)
def test_slack_is_in_proportion_to_the_rate(ftol, pace, expected):
    assert slack(ftol, pace, 1e-14) == pytest.approx(expected, abs=0)
