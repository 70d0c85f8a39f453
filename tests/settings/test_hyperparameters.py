"""Hyperparameters of RMSprop: numbers, callables and schedules, checked and settable."""

import functools

import numpy as np
import pytest

from numba_rmsprop import RMSprop, schedules


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"momentun": 0.9}, TypeError, "momentun"),
        ({"momentum": 1.5}, ValueError, r"momentum: expected 0 <= momentum <= 1, got 1.5"),
        ({"momentum": -0.1}, ValueError, "momentum: expected 0 <= momentum <= 1, got -0.1"),
        ({"momentum": np.nan}, ValueError, "momentum: expected"),
        ({"momentum": "0.9"}, TypeError, "momentum: expected a real number, got '0.9'"),
        ({"rho": 1.1}, ValueError, "rho: expected 0 <= rho <= 1"),
        ({"rho": True}, TypeError, "rho: expected a real number, got True"),
        ({"epsilon": -1e-7}, ValueError, "epsilon: expected 0 <= epsilon, finite, got -1e-07"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate: expected"),
        ({"learning_rate": np.inf}, ValueError, "learning_rate: expected"),
        ({"learning_rate": None}, TypeError, "learning_rate: expected a real number, got None"),
        ({"decay": -0.1}, ValueError, "decay: expected 0 <= decay"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay: expected"),
        ({"clipvalue": -1.0}, ValueError, "clipvalue: expected 0 <= clipvalue"),
        ({"clipnorm": -1.0}, ValueError, "clipnorm: expected 0 <= clipnorm"),
        ({"global_clipnorm": -1.0}, ValueError, "global_clipnorm: expected 0 <= global_clipnorm"),
        ({"clipnorm": 1.0, "global_clipnorm": 1.0}, ValueError, "expected clipnorm or global_clipnorm, got both"),
        ({"sparse_update": "eager"}, ValueError, r"sparse_update: expected one of \('exact', 'lazy'\), got 'eager'"),
        ({"name": 3}, TypeError, "name: expected a string, got 3"),
    ],
)
def test_refused_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        RMSprop(**arguments)


def test_numbers_of_numpy_are_numbers():
    opt = RMSprop(np.float32(0.5), rho=np.array(0.25), momentum=np.int64(1))
    assert (opt.learning_rate, opt.rho, opt.momentum) == (0.5, 0.25, 1.0)


def test_lr_is_another_name_of_learning_rate():
    opt = RMSprop(lr=0.5)
    assert opt.learning_rate == opt.lr == 0.5
    opt.lr = 0.25
    assert opt.learning_rate == 0.25


@pytest.mark.parametrize("name", ["learning_rate", "lr", "rho", "epsilon", "decay", "momentum"])
def test_hyperparameters_are_settable_and_checked(name):
    opt = RMSprop(momentum=0.5)
    setattr(opt, name, 0.25)
    assert getattr(opt, name) == 0.25
    with pytest.raises(ValueError, match="expected 0 <="):
        setattr(opt, name, -1)
    assert getattr(opt, name) == 0.25


def test_momentum_cannot_come_later():
    opt = RMSprop()
    opt.momentum = 0.0
    message = r"momentum: expected 0, since the optimizer was made without momentum, got 0\.9"
    with pytest.raises(ValueError, match=message):
        opt.momentum = 0.9


def test_momentum_cannot_go():
    """A momentum set later would be lost in the config, and so in a checkpoint."""
    opt = RMSprop(momentum=0.9)
    opt.momentum = lambda: 0.0
    with pytest.raises(ValueError, match=r"expected a callable or more than 0, since .* made with momentum, got 0\.0"):
        opt.momentum = 0.0


@pytest.mark.parametrize("rate", [0.5, lambda: 0.5, lambda step: 0.5, schedules.ExponentialDecay(0.5, 1, 1.0)])
def test_every_kind_of_learning_rate(rate):
    var = np.array(1.0)
    RMSprop(rate, rho=0.0, epsilon=0.0).apply_gradients([(1.0, var)])
    assert var == 0.5


def test_hyperparameters_given_as_callables_are_evaluated_at_each_step():
    calls = []

    def counting(name, value):
        return lambda: calls.append(name) or value

    names = {"learning_rate": 0.1, "rho": 0.9, "momentum": 0.5, "epsilon": 1e-7, "decay": 0.1}
    opt = RMSprop(**{name: counting(name, value) for name, value in names.items()})
    var = np.ones(3)
    for _ in range(3):
        opt.apply_gradients([(np.ones(3), var)])
    assert sorted(calls) == sorted(3 * list(names))


def test_a_callable_that_returns_nonsense_is_refused_before_anything_is_written():
    var = np.ones(3)
    opt = RMSprop(0.1, momentum=lambda: 2.0)
    with pytest.raises(ValueError, match=r"momentum: expected 0 <= momentum <= 1, got 2\.0"):
        opt.apply_gradients([(np.ones(3), var)])
    assert (var == 1).all()
    assert opt.iterations == 0


def test_what_was_fixed_at_construction_cannot_be_set():
    opt = RMSprop()
    for name in ("weight_decay", "centered", "sparse_update"):
        with pytest.raises(AttributeError):
            setattr(opt, name, getattr(opt, name))


def test_clips_are_settable_and_checked():
    opt = RMSprop(clipnorm=1.0)
    opt.clipvalue = 0.5
    with pytest.raises(ValueError, match="expected clipnorm or global_clipnorm, got both"):
        opt.global_clipnorm = 1.0
    with pytest.raises(ValueError, match="clipnorm: expected 0 <= clipnorm"):
        opt.clipnorm = -1.0
    assert (opt.clipvalue, opt.clipnorm, opt.global_clipnorm) == (0.5, 1.0, None)


def test_learning_rates_that_do_not_tell_their_arguments():
    rates = iter([0.5, 0.25])
    var = np.array(1.0)
    RMSprop(functools.partial(next, rates), rho=0.0, epsilon=0.0).apply_gradients([(1.0, var)])
    assert var == 0.5


def test_epsilon_none_is_the_default():
    assert RMSprop(epsilon=None).epsilon == RMSprop().epsilon


class Rate:
    def __call__(self, step=None):
        return 0.1 / (1 + step)


def keyword_only(*, step=5):
    return 0.1 / (1 + step)


def with_other_arguments(scale=0.1, step=5):
    return scale / (1 + step)


@pytest.mark.parametrize(
    "rate",
    [
        lambda step=5: 0.1 / (1 + step),
        Rate(),
        Rate().__call__,
        keyword_only,
        with_other_arguments,
        lambda t: 0.1 / (1 + t),
    ],
)
def test_a_learning_rate_that_can_take_the_step_is_called_with_it(rate):
    opt, var = RMSprop(rate, rho=0.0, epsilon=0.0), np.zeros(1)
    for _ in range(3):
        opt.apply_gradients([(np.ones(1), var)])
    np.testing.assert_allclose(var, -0.1 * (1 + 1 / 2 + 1 / 3))


def test_a_learning_rate_that_may_want_the_step_is_refused():
    message = "learning_rate: a callable whose argument 't' has a default may want the step or not"
    with pytest.raises(TypeError, match=message):
        RMSprop(lambda t=0: 0.1 / (1 + t))
    opt = RMSprop(0.5)
    with pytest.raises(TypeError, match=message):
        opt.learning_rate = lambda t=0.1: t
    assert opt.learning_rate == 0.5
    opt.learning_rate = lambda: 0.25
    assert opt.apply_gradients([(np.ones(1), np.ones(1))]) == 1
