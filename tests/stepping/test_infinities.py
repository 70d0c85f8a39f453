"""Infinite and NaN elements of rows that steps leave out become what the dense algorithm makes of them."""

import itertools

import numpy as np
import pytest
from strategies import DTYPES, VARIANTS

from numba_rmsprop import IndexedSlices, RMSprop

NUMBERS = [1.0, 0.0, np.inf, -np.inf, np.nan]
MEAN_SQUARES = [0.5, np.inf, np.nan]
GAPS = {np.float32: 25, np.float64: 165}
"""Number of steps after which 0.01 to this power is 0."""


def settings_of(momentum, now):
    """Return hyperparameters that affect infinity in different ways, and whether they are constant."""

    def at_step_1(this, otherwise):
        return lambda: this if now[0] == 1 else otherwise

    usual = {"learning_rate": 0.099, "rho": 0.01, "momentum": 0.01 * momentum, "weight_decay": 10.0}
    yield usual, True
    yield usual | {"rho": 0.0}, True
    yield usual | {"rho": at_step_1(0.0, 0.01)}, False
    yield usual | {"weight_decay": 0.0, "momentum": 1.0 * momentum}, True
    for rate in (0.1, 0.15):  # weight decay multiplies the value by 0, or by a negative number
        yield usual | {"learning_rate": rate}, True
        yield usual | {"learning_rate": at_step_1(rate, 0.099)}, False
    if momentum:
        yield usual | {"momentum": at_step_1(0.0, 0.01)}, False


def kinds(array):
    """Return 2 for NaN, the sign of an infinite element, and 0 for a finite one."""
    return np.where(np.isnan(array), 2, np.where(np.isinf(array), np.sign(array), 0))


def with_elements(opt, elements, dtype):
    """Return a table with a row for each ``(var, rms, momentum, mg)``, after one that is touched."""
    var = np.ones((len(elements) + 1, 1), dtype)
    opt.build([var])
    slots = {name: opt.get_slot(var, name) for name in opt.get_slot_names()}
    for k, array in enumerate([var, slots["rms"], slots.get("momentum"), slots.get("mg")]):
        if array is not None:
            array[1:, 0] = [element[k] for element in elements]
    return var


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # where the kernels run as plain Python
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_and_nan_pass_through_gaps_as_through_dense_steps(momentum, centered, dtype):
    choices = NUMBERS, MEAN_SQUARES, NUMBERS if momentum else [0.0], [1.0, np.inf] if centered else [0.0]
    elements, now = list(itertools.product(*choices)), [0]
    rows = np.arange(len(elements) + 1)
    zeros, ones = np.zeros((len(rows), 1), dtype), np.ones((len(rows), 1), dtype)
    zeros[0] = 1
    for settings, constant in settings_of(momentum, now):
        for gap in (1, 2, GAPS[dtype] if constant else 4):
            opts = [RMSprop(**settings, centered=centered, epsilon=1e-3) for _ in range(3)]
            tables = [with_elements(opt, elements, dtype) for opt in opts]
            (dense, sparse, stepped), (expected, table, other) = opts, tables
            for t in range(gap):
                now[0] = t
                for opt, var, grad in zip(opts, tables, [zeros, *2 * [IndexedSlices(ones[:1], [0])]], strict=True):
                    opt.apply_gradients([(grad, var)])
            what = f"{settings}, {gap} steps"
            if momentum or settings["weight_decay"]:  # only then do values fall behind
                assert (kinds(sparse.gather(table, rows)) == kinds(expected)).all(), what
            agree(sparse, table, dense, expected, what)
            dense.apply_gradients([(ones, expected)])
            stepped.apply_gradients([(IndexedSlices(ones, rows), other)])
            agree(stepped, other, dense, expected, what)


def agree(opt, var, dense, expected, what):
    opt.flush()
    assert (kinds(var) == kinds(expected)).all(), what
    for name in opt.get_slot_names():
        assert (kinds(opt.get_slot(var, name)) == kinds(dense.get_slot(expected, name))).all(), f"{name}, {what}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_that_every_step_touches_and_infinite_momentum():
    tables, opts = [np.ones((2, 1)), np.ones((2, 1))], [RMSprop(0.1, momentum=0.9) for _ in range(2)]
    for opt, table, grad in zip(opts, tables, [np.ones((2, 1)), IndexedSlices(np.ones((2, 1)), [0, 1])], strict=True):
        opt.build([table])
        opt.get_slot(table, "momentum")[1] = np.inf
        for _ in range(2):
            opt.apply_gradients([(grad, table)])
    assert (tables[1] == tables[0]).all()
    assert tables[0][1] == -np.inf
