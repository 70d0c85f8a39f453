"""Schedules: Keras's formulas, arguments and configs. Expected values are worked out by hand from the documentation."""

import dataclasses
import json
import math

import numpy as np
import pytest

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

ALL = [
    ExponentialDecay(0.1, 10, 0.5, staircase=True, name="e"),
    PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.1]),
    PolynomialDecay(0.1, 10, 0.01, power=2.0, cycle=True),
    InverseTimeDecay(0.1, 10, 0.5, staircase=True),
    CosineDecay(0.1, 10, 0.1, warmup_target=0.2, warmup_steps=5),
    CosineDecayRestarts(0.1, 10, 3.0, 0.5, 0.1),
]


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
    with pytest.raises(NotImplementedError, match="Handmade is no dataclass, so it must define get_config itself"):
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
def test_what_is_no_number_is_refused(make, wrong):
    """A list times a number of steps would be a list of so many elements."""
    with pytest.raises(TypeError, match="expected a number for"):
        make(wrong)
    assert make(np.float32(0.5))(3) == make(np.array(0.5, np.float32))(3)
