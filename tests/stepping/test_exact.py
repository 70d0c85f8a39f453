"""Sparse steps equal the dense algorithm in exact mode; in lazy mode they leave other rows alone."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_internals import slots_of
from reference import Reference, assert_close, densified
from strategies import DTYPES, TOLERANCE, VARIANTS, gradient_of, runs, touched_rows

from numba_rmsprop import IndexedSlices, RMSprop, schedules
from numba_rmsprop.kernels import skip_factors


# Hypothesis varies a few examples most of the time, so the most important choices are parameters.
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("constant", [True, False])
@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data())
def test_sparse_equals_dense(momentum, centered, constant, data):
    run = data.draw(runs(momentum=momentum, centered=centered, constant=constant))
    now = [None]
    opt, var = run.optimizer(now), run.variable()
    reference = run.reference(var)
    for step in run.steps:
        now[0] = step
        grad, dense = gradient_of(step, run.shape, run.dtype)
        opt.apply_gradients([(grad, var)])
        run.reference_step(reference, step, dense)
    opt.flush()
    run.check(opt, var, reference)


@given(run=runs(lazy=True))
def test_lazy_steps_touched_rows_once_and_no_others(run):
    now = [None]
    opt, var = run.optimizer(now), run.variable()
    reference = run.reference(var)
    for step in run.steps:
        now[0] = step
        grad, dense = gradient_of(step, run.shape, run.dtype)
        touched = touched_rows(grad, run.shape)
        before = copy.deepcopy([var, *opt.weights[1:]])
        opt.apply_gradients([(grad, var)])
        after = [var, *opt.weights[1:]]
        for old, new in zip(before if len(before) == len(after) else [], after, strict=False):
            assert old[~touched].tobytes() == new[~touched].tobytes()
        run.reference_step(reference, step, dense, touched)
    run.check(opt, var, reference)


@given(run=runs(clips=False))
def test_gather_returns_what_dense_would_hold(run):
    now = [None]
    opt, var = run.optimizer(now), run.variable()
    reference = run.reference(var)
    rng = np.random.default_rng(0)
    for step in run.steps:
        now[0] = step
        grad, dense = gradient_of(step, run.shape, run.dtype)
        opt.apply_gradients([(grad, var)])
        run.reference_step(reference, step, dense)
        indices = rng.integers(0, run.shape[0], (2, 3))
        largest = reference.largest["vars"][0]
        assert_close(opt.gather(var, indices), reference.vars[0][indices], TOLERANCE[run.dtype], largest=largest)
    opt.flush()
    run.check(opt, var, reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("changing", [False, True])
def test_gaps_beyond_the_table(dtype, momentum, centered, changing):
    steps = skip_factors.TABLE_GAPS + 300
    schedule = (
        schedules.PiecewiseConstantDecay([100, skip_factors.TABLE_GAPS + 76], [0.01, 0.02, 0.03]) if changing else 0.01
    )
    opt = RMSprop(
        schedule,
        rho=0.999,
        momentum=0.9 if momentum else 0.0,
        centered=centered,
        epsilon=1e-3,
        weight_decay=1e-3 if changing else 0.0,
    )
    rng = np.random.default_rng(0)
    var = rng.standard_normal((4, 3)).astype(dtype)
    reference = Reference([var], momentum=momentum, centered=centered)
    for t in range(steps):
        # row 0 is touched at the ends only, row 3 never
        indices = [0, 1] if t in (0, steps - 1) else [1 + t % 2]
        values = rng.standard_normal((len(indices), 3)).astype(dtype)
        opt.apply_gradients([(IndexedSlices(values, indices), var)])
        reference.step(
            [densified(values, indices, var.shape)],
            lr=schedule(t) if changing else 0.01,
            rho=0.999,
            momentum=0.9,
            epsilon=1e-3,
            weight_decay=1e-3 if changing else 0.0,
        )
    opt.flush()
    # the reference rounds 1,300 times, and so do the float32 steps
    tolerance = 1e-12 if dtype == np.float64 else 3e-5
    assert_close(var, reference.vars[0], tolerance)
    np.testing.assert_allclose(opt.get_slot(var, "rms"), reference.rms[0], rtol=10 * tolerance)


# Each step is a run. A gap before the last step is 2 steps shorter, and one before a flush 1: so there are the last gap
# in the table, the first ones beyond it, and runs that end where a node of the tree does, with the last still going on.
@pytest.mark.parametrize(
    "steps", [skip_factors.TABLE_GAPS + 1, skip_factors.TABLE_GAPS + 2, 3 * skip_factors.TABLE_GAPS]
)
@pytest.mark.parametrize("end", ["step", "flush"])
def test_a_long_gap_under_a_changing_schedule_equals_dense(steps, end):
    opt = RMSprop(schedules.ExponentialDecay(0.1, 1000, 0.5), momentum=lambda: 0.9, weight_decay=0.01)
    var = np.ones((2, 1))
    reference = Reference([var], momentum=True)
    for t in range(steps):
        indices = [0, 1] if t == 0 or (t == steps - 1 and end == "step") else [1]
        opt.apply_gradients([(IndexedSlices(np.ones((len(indices), 1)), indices), var)])
        reference.step(
            [densified(np.ones((len(indices), 1)), indices, var.shape)],
            lr=0.1 * 0.5 ** (t / 1000),
            momentum=0.9,
            weight_decay=0.01,
        )
    opt.flush()
    assert_close(var, reference.vars[0], 1e-12)


@pytest.mark.parametrize("changing", ["lr", "rho", "momentum"])
def test_any_hyperparameter_may_change_alone(changing):
    numbers = {"lr": 0.1, "rho": 0.9, "momentum": 0.9}
    rho, momentum = lambda: numbers["rho"], lambda: numbers["momentum"]
    opt, var = RMSprop(lambda: numbers["lr"], rho, momentum, weight_decay=0.5), np.ones((3, 2))
    reference = Reference([var], momentum=True)
    for t, value in enumerate([0.9, 0.2, 0.2, 0.7, 0.9, 0.1, 0.5]):
        numbers[changing] = value
        indices = [0, 1, 2] if t == 0 else [1] if t == 4 else [2]
        values = np.ones((len(indices), 2))
        opt.apply_gradients([(IndexedSlices(values, indices), var)])
        reference.step([densified(values, indices, var.shape)], weight_decay=0.5, **numbers)
    opt.flush()
    assert_close(var, reference.vars[0], 1e-12)
    assert_close(opt.get_slot(var, "rms"), reference.rms[0], 1e-12)


@pytest.mark.parametrize("decay", [{"rho": 0.0}, {"momentum": 0.0}, {"rho": 1.0}, {"momentum": 1.0}])
def test_factors_at_the_bounds(decay):
    numbers = {"rho": 0.5, "momentum": 0.5} | decay
    opt = RMSprop(0.1, rho=numbers["rho"], momentum=lambda: numbers["momentum"])
    var = np.ones((3, 2))
    reference = Reference([var], momentum=True)
    for indices in ([0, 1], [2], [], [0, 2], [1]):
        values = np.ones((len(indices), 2))
        opt.apply_gradients([(IndexedSlices(values, indices), var)])
        reference.step([densified(values, indices, var.shape)], lr=0.1, **numbers)
    opt.flush()
    assert_close(var, reference.vars[0], 1e-12)


def test_a_call_without_a_gradient_for_a_variable_is_no_step_of_it():
    opt = RMSprop(0.1, momentum=0.9)
    a, b = np.ones((3, 2)), np.ones((3, 2))
    reference = Reference([a, b], momentum=True)
    for t in range(6):
        grad = IndexedSlices(np.ones((1, 2)), [t % 3])
        dense = densified(np.ones((1, 2)), [t % 3], a.shape)
        opt.apply_gradients([(grad, a)] if t % 2 else [(grad, a), (grad, b)])
        reference.step([dense, None if t % 2 else dense], lr=0.1, momentum=0.9)
    opt.flush()
    assert_close(a, reference.vars[0], 1e-12)
    assert_close(b, reference.vars[1], 1e-12)


def test_only_the_flushed_variables_are_flushed():
    opt = RMSprop(0.1, momentum=0.9)
    a, b = np.ones((3, 2)), np.ones((3, 2))
    for indices in ([0], [1], [2]):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), indices), var) for var in (a, b)])
    before = b.copy()
    opt.flush(a)
    assert (b == before).all()
    opt.flush()
    assert (a == b).all()
    assert (b != before).any()


def test_clocks_start_anew_before_they_overflow(monkeypatch):
    monkeypatch.setattr("numba_rmsprop.state.slots.CLOCK_LIMIT", 5)
    opt = RMSprop(0.1, momentum=0.9)
    var = np.ones((3, 2))
    reference = Reference([var], momentum=True)
    for t in range(17):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [t % 3]), var)])
        reference.step([densified(np.ones((1, 2)), [t % 3], var.shape)], lr=0.1, momentum=0.9)
    assert slots_of(opt, var).steps <= 5
    opt.flush()
    assert_close(var, reference.vars[0], 1e-12)


def test_a_full_history_is_flushed(monkeypatch):
    monkeypatch.setattr("numba_rmsprop.state.skipped_steps.MAX_RUNS", 4)
    opt = RMSprop(schedules.InverseTimeDecay(0.1, 1, 1.0), weight_decay=0.1)
    var = np.ones((3, 2))
    reference = Reference([var])
    for t in range(17):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [t % 3]), var)])
        reference.step([densified(np.ones((1, 2)), [t % 3], var.shape)], lr=0.1 / (1 + t), weight_decay=0.1)
        assert len(slots_of(opt, var).history.runs) < 4
    opt.flush()
    assert_close(var, reference.vars[0], 1e-12)
