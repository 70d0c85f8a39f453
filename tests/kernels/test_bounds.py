"""Accesses out of bounds raise under NUMBA_BOUNDSCHECK=1; ``make test`` runs this file only with it."""

import numba
import numpy as np
import pytest

from numba_rmsprop import curve_fit_many, minimize_many
from numba_rmsprop.kernels.csr import step_csr
from numba_rmsprop.kernels.dense import step_dense, step_many
from numba_rmsprop.kernels.gather_and_flush import flush_rows, gather_catching_up, gather_rows
from numba_rmsprop.kernels.norms import BLOCK, TERMS, csr_squares, dense_squares, rows_squares, strided_squares
from numba_rmsprop.kernels.rows import step_rows
from numba_rmsprop.runtime.launching import new_counters
from numba_rmsprop.state.scratch import Scratch

ROWS, COLUMNS, SPARE = 40, 3, 2000
PACKED, CLIPVALUE = np.ones(11), 1.0
HISTORY = np.ones((8, 8)), np.ones((1, 5)), np.zeros((2, 8))


KINDS = 0.0, 0.0, None, None


def state(rows=ROWS):
    return np.ones((rows, COLUMNS)), np.ones((rows, COLUMNS)), np.ones((rows, COLUMNS)), None, None


def state_by_row():
    return np.ones((ROWS, 9)), np.ones(ROWS), None, None, None


def ages(now=1):
    """Return clocks for more rows than there are, so that the first access out of bounds is to the state."""
    return np.zeros(ROWS + SPARE, np.int32), 0, now


TEAM = 2, 0


def entries(row, columns=COLUMNS):
    return np.array([0, row, 1, 0]), np.ones((4, columns)), None, None


def links():
    return Scratch(ROWS + SPARE, COLUMNS, np.dtype(float), by_row=False).links(4)


def matrix(row, column):
    indptr = np.zeros(row + 2, np.int64)
    indptr[-1] = 1
    return indptr, np.array([column]), np.ones(1)


def sums():
    return np.zeros((2, COLUMNS))


def scratch(columns=COLUMNS, by_row=False):
    return Scratch(ROWS, columns, np.dtype(float), by_row=by_row).shares(2)


def at_rows(rows):
    return np.array([0, rows]), np.empty((2, COLUMNS))


BY_ROW = {
    "step_rows": lambda row: step_rows(TEAM, entries(row), state(), ages(), HISTORY, PACKED, links(), scratch()),
    "step_rows, clocks": lambda row: step_rows(
        TEAM, entries(row), state(ROWS + SPARE), (np.zeros(ROWS, np.int32), 0, 1), HISTORY, PACKED, links(), scratch()
    ),
    "step_rows, one number to a row": lambda row: step_rows(
        TEAM, entries(row, 9), state_by_row(), ages(), HISTORY, PACKED, links(), scratch(9, by_row=True)
    ),
    "rows_squares": lambda row: rows_squares(
        TEAM, entries(row), np.zeros(ROWS, np.int32), CLIPVALUE, links(), scratch(), np.zeros((1, TERMS))
    ),
    "gather_catching_up": lambda row: gather_catching_up(TEAM, *at_rows(row), state(), ages(), HISTORY),
    "gather_rows": lambda row: gather_rows(TEAM, *at_rows(row), state()[0]),
}
OTHERS = {
    "step_csr": lambda: step_csr(TEAM, matrix(ROWS, 0), state(), ages(), HISTORY, PACKED, sums(), None),
    "step_csr, columns": lambda: step_csr(TEAM, matrix(0, COLUMNS), state(), ages(), HISTORY, PACKED, sums(), None),
    "csr_squares": lambda: csr_squares(TEAM, matrix(0, COLUMNS), CLIPVALUE, sums(), np.zeros(1)),
    "dense_squares, partial": lambda: dense_squares(TEAM, np.ones((1, 2 * BLOCK)), CLIPVALUE, np.zeros((2, TERMS - 1))),
    "strided_squares": lambda: strided_squares(TEAM, np.ones((ROWS, COLUMNS)), CLIPVALUE, np.zeros((1, TERMS - 1))),
    "step_dense": lambda: step_dense(TEAM, np.ones((ROWS + 1, COLUMNS)), state(), PACKED, None),
    "gather_rows, out": lambda: gather_rows(TEAM, np.zeros(2, np.int64), np.empty((1, COLUMNS)), state()[0]),
    "flush_rows": lambda: flush_rows(TEAM, state(), (np.zeros(ROWS - 1, np.int32), 0, 1), HISTORY),
    "step_many": lambda: step_many(
        TEAM, np.zeros((4, 5), np.int64), np.zeros(4, np.int64), KINDS, np.ones(4), PACKED, new_counters(1)
    ),
}


@pytest.mark.parametrize("row", [ROWS, ROWS + 1000, -1])
@pytest.mark.parametrize("kernel", BY_ROW)
def test_access_to_a_missing_row_raises(kernel, row):
    with pytest.raises(IndexError):
        BY_ROW[kernel](row)


@pytest.mark.parametrize("kernel", OTHERS)
def test_other_accesses_out_of_bounds_raise(kernel):
    with pytest.raises(IndexError):
        OTHERS[kernel]()


@numba.njit
def distance(x, row):
    return (x[0] - row[0]) ** 2 + (x[1] - row[1][1]) ** 2


@numba.njit
def distance_slopes(x, row, out):
    out[0], out[1] = 2 * (x[0] - row[0]), 2 * (x[1] - row[1][1])


@numba.njit
def line(x, b1, b2):
    return b1 + b2 * x


def test_fits_stay_within_their_arrays():
    targets = np.arange(5.0), np.arange(10.0).reshape(5, 2)
    given = {"maxiter": 20, "centered": True, "clipnorm": 1.0, "bounds": (-1.0, 9.0)}
    fits = minimize_many(distance, np.zeros((5, 2)), targets, jac=distance_slopes, **given)
    assert set(fits.status) <= {0, 1}, fits.message


def test_curves_stay_within_their_arrays():
    x = np.linspace(0.0, 1.0, 7)
    fits = curve_fit_many(line, x, 1 + np.arange(3.0)[:, np.newaxis] * x, [1.0, 1.0], loss="cauchy", maxiter=20)
    assert set(fits.status) <= {0, 1}, fits.message
    assert np.isfinite(fits.pcov).all()
