"""Schedules: Keras's formulas, arguments and configs; the expected values were worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from all_schedules import ALL
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_rmsprop import RMSprop, schedules
from numba_rmsprop.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (ExponentialDecay(0.1, 10, 0.5), {0: 0.1, 5: 0.1 * 0.5**0.5, 10: 0.05, 25: 0.1 * 0.5**2.5}),
        (ExponentialDecay(0.1, 10, 0.5, staircase=True), {9: 0.1, 10: 0.05, 29: 0.025}),
        (PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.1]), {0: 1.0, 10: 1.0, 11: 0.5, 20: 0.5, 21: 0.1}),
        (PiecewiseConstantDecay([], [0.3]), {0: 0.3, 100: 0.3}),
        (PolynomialDecay(0.1, 10, 0.0), {0: 0.1, 5: 0.05, 10: 0.0, 50: 0.0}),
        (PolynomialDecay(0.1, 10), {10: 0.0001}),
        (PolynomialDecay(0.1, 10, 0.02, power=2.0), {5: 0.08 / 4 + 0.02}),
        (PolynomialDecay(0.1, 10, 0.0, cycle=True), {0: 0.1, 10: 0.0, 11: 0.1 * 9 / 20, 15: 0.025, 20: 0.0}),
        (InverseTimeDecay(0.1, 10, 0.5), {0: 0.1, 10: 0.1 / 1.5, 15: 0.1 / 1.75}),
        (InverseTimeDecay(0.1, 10, 0.5, staircase=True), {9: 0.1, 19: 0.1 / 1.5}),
        (CosineDecay(0.1, 10), {0: 0.1, 5: 0.05, 10: 0.0, 99: 0.0}),
        (CosineDecay(0.1, 10, 0.2), {0: 0.1, 5: 0.06, 10: 0.02}),
        (CosineDecay(0.1, 10, 0.1, warmup_target=0.5, warmup_steps=4), {0: 0.1, 1: 0.2, 4: 0.5, 9: 0.275, 14: 0.05}),
        (CosineDecayRestarts(0.1, 10), {0: 0.1, 5: 0.05, 10: 0.1, 20: 0.05, 30: 0.1, 50: 0.05}),
        (CosineDecayRestarts(0.1, 10, t_mul=1.0, m_mul=0.5), {5: 0.05, 10: 0.05, 20: 0.025}),
        (CosineDecayRestarts(0.1, 10, m_mul=0.5, alpha=0.2), {10: 0.1 * (0.8 * 0.5 + 0.2)}),
    ],
    ids=str,
)
def test_values(schedule, values):
    for step, value in values.items():
        assert schedule(step) == pytest.approx(value, abs=1e-15), step


@pytest.mark.parametrize("t_mul", [1.5, 2.0, 3.0, 7.0])
def test_restarts_happen_at_their_step(t_mul):
    first = 2**8
    schedule = CosineDecayRestarts(1.0, first, t_mul)
    start = 0.0
    for period in range(8):
        assert schedule(start) == pytest.approx(1.0, abs=1e-12), period
        start += first * t_mul**period


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_configs_are_json_and_inverse(schedule):
    config = json.loads(json.dumps(schedule.get_config()))
    again = type(schedule).from_config(config)
    assert again == schedule
    assert all(math.isclose(again(step), schedule(step)) for step in range(60))
    opt = RMSprop.from_config(json.loads(json.dumps(RMSprop(schedule).get_config())))
    assert opt.learning_rate == schedule


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_schedules_are_frozen(schedule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.name = "other"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialDecay(0.1, 0, 0.5), "ExponentialDecay: expected decay_steps > 0, got 0"),
        (lambda: PolynomialDecay(0.1, -1), "PolynomialDecay: expected decay_steps > 0, got -1"),
        (lambda: InverseTimeDecay(0.1, 0, 0.5), "expected decay_steps > 0"),
        (lambda: CosineDecay(0.1, 0), "expected decay_steps > 0"),
        (lambda: CosineDecayRestarts(0.1, 0), "expected first_decay_steps > 0"),
        (lambda: CosineDecayRestarts(0.1, 10, 0.5), "expected t_mul >= 1, got 0.5"),
        (lambda: PiecewiseConstantDecay([1], [0.1]), "one boundary fewer than values, got 1 boundaries and 1 values"),
        (lambda: PiecewiseConstantDecay([2, 1], [1, 2, 3]), "expected rising boundaries"),
    ],
)
def test_refused_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@dataclasses.dataclass(frozen=True)
class Sawtooth(LearningRateSchedule):
    period: int

    def __call__(self, step):
        return 0.1 * (step % self.period)


class Handmade(LearningRateSchedule):
    def __call__(self, step):
        return 0.1


def test_schedules_of_the_user():
    config = json.loads(json.dumps(RMSprop(Sawtooth(5)).get_config()))
    assert RMSprop.from_config(config, {"Sawtooth": Sawtooth}).learning_rate == Sawtooth(5)
    message = r"learning_rate: expected a class of numba_rmsprop\.schedules or a key of custom"
    with pytest.raises(ValueError, match=message):
        RMSprop.from_config(config)
    with pytest.raises(NotImplementedError, match="Handmade is not a dataclass, so it must define get_config itself"):
        RMSprop(Handmade()).get_config()


def test_numbers_of_numpy_become_pythons_in_configs():
    for schedule in (
        ExponentialDecay(np.float32(0.5), np.int64(10), np.float64(0.5)),
        PiecewiseConstantDecay(np.array([1, 2]), np.array([0.5, 0.25, 0.125], np.float32)),
    ):
        config = json.loads(json.dumps(schedule.get_config()))
        assert type(schedule).from_config(config)(2) == schedule(2)


def test_only_schedules_are_read_from_our_module():
    config = RMSprop().get_config() | {"learning_rate": {"class_name": "dataclass", "config": {}}}
    with pytest.raises(ValueError, match="got 'dataclass'"):
        RMSprop.from_config(config)


def test_functions_come_back_through_custom_objects():
    def warm(step):
        return min(1.0, step / 10)

    config = json.loads(json.dumps(RMSprop(warm, rho=lambda: 0.5).get_config()))
    assert config["learning_rate"] == {"function": "warm"}
    half = lambda: 0.5  # noqa: E731
    for names in ({"warm": warm, "<lambda>": half}, {"learning_rate": warm, "rho": half}):
        opt = RMSprop.from_config(config, names)
        assert (opt.learning_rate, opt.rho) == (warm, half)
    with pytest.raises(ValueError, match="rho was the function '<lambda>', which a config cannot hold"):
        RMSprop.from_config(config, {"warm": warm})


def test_every_public_schedule_is_tested():
    public = {
        c
        for c in vars(schedules).values()
        if isinstance(c, type) and issubclass(c, LearningRateSchedule) and c.__module__ == schedules.__name__
    }
    assert public - {LearningRateSchedule} == {type(schedule) for schedule in ALL}


@pytest.mark.parametrize(
    "make",
    [
        lambda wrong: schedules.ExponentialDecay(0.1, 10, wrong),
        lambda wrong: schedules.PiecewiseConstantDecay([1, 2], [0.1, wrong, 0.3]),
        lambda wrong: schedules.PolynomialDecay(wrong, 10),
        lambda wrong: schedules.InverseTimeDecay(0.1, 10, wrong),
        lambda wrong: schedules.CosineDecay(0.1, 10, warmup_target=wrong),
        lambda wrong: schedules.CosineDecayRestarts(0.1, 10, alpha=wrong),
    ],
)
@pytest.mark.parametrize("wrong", ["0.5", [0.5], np.ones(2), 1j], ids=str)
def test_things_that_are_no_number_are_refused(make, wrong):
    """A list multiplied by a number of steps would fill the memory."""
    with pytest.raises(TypeError, match="expected a number for"):
        make(wrong)
    assert make(np.float32(0.5))(3) == make(np.array(0.5, np.float32))(3)


lengths = st.one_of(st.integers(1, 10**6), st.floats(0.1, 1e6), st.sampled_from([5e-324, 1e308, 60_000 / 700, 0.7]))
rates = st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1e-310, 1e300]))
parts = st.floats(0, 1)
names = st.none()
LENGTHS = ("decay_steps", "first_decay_steps", "boundaries")
MAKERS = {
    ExponentialDecay: st.builds(ExponentialDecay, rates, lengths, parts, st.booleans()),
    PiecewiseConstantDecay: st.builds(lambda a, b, c: PiecewiseConstantDecay([a], [b, c]), lengths, rates, rates),
    PolynomialDecay: st.builds(PolynomialDecay, rates, lengths, rates, st.floats(0, 10), st.booleans()),
    InverseTimeDecay: st.builds(InverseTimeDecay, rates, lengths, rates, st.booleans()),
    CosineDecay: st.builds(CosineDecay, rates, lengths, parts, names, st.one_of(names, rates), st.floats(0, 1e6)),
    CosineDecayRestarts: st.builds(
        CosineDecayRestarts,
        rates,
        lengths,
        st.one_of(st.floats(1, 3), st.sampled_from([1 + 2**-52, 1 + 1e-9, 1e19, 1e300])),
        parts,
        parts,
    ),
}


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_every_step_has_a_rate_within_the_range(kind, data):
    schedule = data.draw(MAKERS[kind])
    ends = [getattr(schedule, name, None) for name in ("initial_learning_rate", "end_learning_rate", "warmup_target")]
    ends += [*getattr(schedule, "values", ()), 0.0 if kind is not PolynomialDecay else None]
    ends = [end for end in ends if end is not None]
    length = next(getattr(schedule, name) for name in LENGTHS if hasattr(schedule, name))
    length = length[0] if isinstance(length, tuple) else length
    near = st.integers(0, 10**4).map(lambda times: round(min(times * length, 2.0**62)))
    for _ in range(10):
        rate = schedule(data.draw(st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 100), near)))
        assert isinstance(rate, (int, float))
        assert min(ends) <= rate <= max(ends)


@pytest.mark.parametrize(("length", "step"), [(60_000 / 700, 1800), (0.7, 49), (54.7, 547)])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_cycles_of_a_length_that_is_no_whole_number(length, step, power):
    schedule = PolynomialDecay(0.1, length, end_learning_rate=0.0, power=power, cycle=True)
    assert 0 <= schedule(step) < 1e-7
    opt, var = RMSprop(schedule), np.ones(3)
    opt.iterations = step
    assert opt.apply_gradients([(var, var)]) == step + 1


@pytest.mark.parametrize("growth", [2**-52, 1e-9, 1e-4])
def test_periods_that_hardly_grow(growth):
    hardly, never = CosineDecayRestarts(0.1, 10, 1 + growth), CosineDecayRestarts(0.1, 10, 1.0)
    assert all(math.isclose(hardly(step), never(step), rel_tol=100 * growth, abs_tol=1e-9) for step in range(0, 30, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialDecay(0.1, 10, -0.5), "expected decay_rate >= 0, got -0.5"),
        (lambda: InverseTimeDecay(0.1, 10, -0.5), "expected decay_rate >= 0, got -0.5"),
        (lambda: PolynomialDecay(0.1, 10, power=-1), "expected power >= 0, got -1"),
        (lambda: CosineDecay(0.1, 10, warmup_target=1.0, warmup_steps=-1), "expected warmup_steps >= 0, got -1"),
        (lambda: CosineDecayRestarts(0.1, 10, m_mul=-1.0), "expected m_mul >= 0, got -1.0"),
        (lambda: ExponentialDecay(math.nan, 10, 0.5), "expected a finite number for initial_learning_rate, got nan"),
        (lambda: CosineDecay(0.1, math.inf), "expected a finite number for decay_steps, got inf"),
    ],
)
def test_arguments_that_give_no_rate_at_some_step_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
