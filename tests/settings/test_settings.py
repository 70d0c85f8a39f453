"""Settings: numbers and schedules of other libraries, configs of Keras, and misspelt names."""

import inspect
import json
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest

from numba_rmsprop import CheckpointManager, IndexedSlices, RMSprop, schedules
from numba_rmsprop.settings.option_names import ARGUMENTS

KERAS_3 = {
    "name": "rmsprop",
    "learning_rate": 0.01,
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "rho": 0.95,
    "momentum": 0.0,
    "epsilon": 1e-7,
    "centered": False,
}
TF_KERAS = {"jit_compile": True, "is_legacy_optimizer": False, "build_config": {"var_list": []}}


class Number:
    """Number as JAX, PyTorch and TensorFlow return it: an array without axes."""

    def __init__(self, value, dtype="float32", shape=()):
        self.value, self.dtype, self.shape = value, dtype, shape

    def __float__(self):
        return float(self.value)


class ForeignSchedule:
    """Schedule as in Keras and optax, whose rates are numbers of their own library."""

    def __call__(self, step):
        return Number(0.1 / (1 + step))


def stepped(opt):
    var = np.ones(3)
    opt.apply_gradients([(var.copy(), var)])
    opt.apply_gradients([(var.copy(), var)])
    return var.tobytes()


@pytest.mark.parametrize("make", [Number, lambda value: np.array(value), lambda value: Fraction(value)])
def test_numbers_of_other_libraries(make):
    names = ["learning_rate", "rho", "momentum", "epsilon", "decay", "weight_decay", "clipvalue", "clipnorm"]
    opt, same = RMSprop(**{name: make(0.5) for name in names}), RMSprop(**dict.fromkeys(names, 0.5))
    assert opt.get_config() == same.get_config()
    json.dumps(opt.get_config())
    assert stepped(opt) == stepped(same)
    opt.learning_rate = opt.rho = opt.clipnorm = make(0.25)
    opt.iterations = make(7)
    assert (opt.learning_rate, opt.rho, opt.clipnorm, opt.iterations) == (0.25, 0.25, 0.25, 7)
    assert schedules.CosineDecay(make(0.5), make(8.0)).get_config() == schedules.CosineDecay(0.5, 8.0).get_config()


def test_schedules_of_other_libraries():
    assert stepped(RMSprop(ForeignSchedule())) == stepped(RMSprop(lambda step: 0.1 / (1 + step)))
    assert stepped(RMSprop(0.1, rho=lambda: Number(0.5))) == stepped(RMSprop(0.1, rho=0.5))


@pytest.mark.parametrize(
    "wrong",
    [
        *(True, np.bool(True), "0.1", b"0.1", 1j, np.complex64(1), None, [0.1], np.ones(1), np.ones(2), np.ma.masked),
        *(Number(1, "torch.bool"), Number(1, "complex64"), Number(1, shape=(1,)), np.array("0.1")),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_things_that_are_no_number_are_refused(wrong):
    with pytest.raises(TypeError, match=r"^rho: expected a real number, got"):
        RMSprop(rho=wrong)
    with pytest.raises(TypeError, match=r"^learning_rate: expected a real number, got"):
        RMSprop(lambda: wrong).apply_gradients([(np.ones(3), np.ones(3))])


@pytest.mark.parametrize("config", [KERAS_3, KERAS_3 | TF_KERAS, {"class_name": "RMSprop", "config": KERAS_3}])
def test_configs_of_keras(config):
    opt = RMSprop.from_config(config)
    assert (opt.learning_rate, opt.rho, opt.weight_decay, opt.clipnorm) == (0.01, 0.95, 0.0, None)
    if "config" not in config:
        assert RMSprop(**config).get_config() == opt.get_config()


def test_serialized_schedules_of_keras():
    decay = {"name": "CosineDecay", "initial_learning_rate": 0.1, "decay_steps": 10, "alpha": 0.0}
    written = {
        "module": "keras.optimizers.schedules",
        "class_name": "CosineDecay",
        "config": decay | {"warmup_target": None, "warmup_steps": 0},
        "registered_name": None,
    }
    opt = RMSprop.from_config(KERAS_3 | {"learning_rate": written})
    assert opt.learning_rate == schedules.CosineDecay(0.1, 10, name="CosineDecay")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"loss_scale_factor": 128.0}, "expected loss_scale_factor=None.*got 128.0; divide the gradients by it"),
    ],
)
def test_features_that_only_keras_has_are_refused(asked, message):
    for make in (lambda: RMSprop(**asked), lambda: RMSprop.from_config(KERAS_3 | asked)):
        with pytest.raises(TypeError, match=message):
            make()
    with pytest.raises(TypeError, match="config: expected that of an RMSprop, got 'Adam'"):
        RMSprop.from_config({"class_name": "Adam", "config": {}})


MEANT = {"learnig_rate": "learning_rate", "learning_rte": "learning_rate", "eps": "epsilon", "alpha": "rho"}


@pytest.mark.parametrize("name", MEANT)
def test_names_that_were_misspelt_or_are_those_of_other_libraries(name):
    message = f"got an unknown one, '{name}'; did you mean '{MEANT[name]}'"
    for make in (lambda: RMSprop(**{name: 0.5}), lambda: RMSprop.from_config({name: 0.5})):
        with pytest.raises(TypeError, match=message):
            make()
    opt = RMSprop()
    with pytest.raises(AttributeError, match=f"^RMSprop has no attribute '{name}'; did you mean '{MEANT[name]}'"):
        setattr(opt, name, 0.5)
    assert name not in vars(opt)


def test_unknown_names_without_a_likely_correction():
    with pytest.raises(TypeError, match=r"expected arguments of learning_rate, rho, .*got an unknown one, 'colour'$"):
        RMSprop(colour=1)
    opt = RMSprop()
    opt.label = "run 7"
    assert opt.label == "run 7"


def test_attributes_of_subclasses():
    class Own(RMSprop):
        momentums: list[float]
        alpha = 0.0

        def __init__(self, **settings):
            self.rhos = [0.5]
            super().__init__(**settings)
            self.momentums, self.beta_2, self.alpha = [0.9], 0.99, 1.0

    opt = Own(rho=0.5)
    assert (opt.rhos, opt.momentums, opt.beta_2, opt.alpha) == ([0.5], [0.9], 0.99, 1.0)
    with pytest.raises(AttributeError, match=r"^Own has no attribute 'learning_rat'; did you mean 'learning_rate'"):
        opt.learning_rat = 0.5


def test_arguments_without_names():
    message = "expected at most 6 arguments without a name, learning_rate, rho, .*name, got 7; give the others by name"
    with pytest.raises(TypeError, match=message):
        RMSprop(0.1, 0.9, 0.0, 1e-7, False, "RMSprop", "lazy")
    parameters = inspect.signature(RMSprop).parameters.values()
    assert {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ["rho", "momentum", "epsilon", "decay"])
def test_schedules_are_for_the_learning_rate(name):
    decay = schedules.CosineDecay(0.5, 10)
    for made in (lambda: RMSprop(**{name: decay}), lambda: RMSprop(momentum=0.5).__setattr__(name, lambda step: 0.5)):
        with pytest.raises(
            TypeError, match=f"{name}: expected a number or a callable without arguments, got .*schedule"
        ):
            made()


class Defaulted(RMSprop):
    def __init__(self, size=3, rho=0.7):
        self.size = size
        super().__init__(0.5, rho, momentum=0.9)


class Sized(RMSprop):
    def __init__(self, size):
        self.size = size
        super().__init__(0.5)


def test_subclasses_with_constructors_of_their_own_are_loaded(tmp_path):
    var, path = np.ones(3), tmp_path / "state.safetensors"
    opt = Defaulted(5)
    opt.learning_rate = 0.25
    opt.apply_gradients([(var.copy(), var)])
    opt.save(path)
    loaded = Defaulted.load(path, [var])
    assert loaded.get_config() == opt.get_config()
    assert (type(loaded), loaded.size, loaded.iterations) == (Defaulted, 3, 1)
    with pytest.raises(
        TypeError, match=r"Sized: its constructor wants 'size', which is not in the config. Override get_co"
    ):
        Sized.from_config(RMSprop().get_config())


def test_one_array_in_place_of_a_list(tmp_path):
    table, opt = np.ones((100, 2)), RMSprop()
    opt.build(table)
    opt.apply_gradients([(table.copy(), table)])
    opt.save(tmp_path / "state.safetensors")
    again = np.empty_like(table)
    assert RMSprop.load(tmp_path / "state.safetensors", again).iterations == 1
    assert again.tobytes() == table.tobytes()
    with pytest.raises(TypeError, match=r"got 100 items of an array; pass a list of pairs"):
        opt.apply_gradients((table, table))


def test_iterations_from_weights():
    opt = RMSprop()
    for given in (np.array(7), np.array(7.0), np.int64(7), Number(7)):
        opt.iterations = given
        assert opt.iterations == 7
    opt.iterations = np.array(2**62 + 1)
    assert opt.iterations == 2**62 + 1
    for wrong in (np.array([7]), np.array(True), True, "7", None, math.nan, Number(7.5)):
        with pytest.raises(ValueError, match="iterations: expected a whole number"):
            opt.iterations = wrong


def test_warnings_point_to_the_line_of_the_user():
    a, b = np.ones(3), np.ones(3)
    opt = RMSprop()
    for call in (
        lambda: opt.apply_gradients([(a, a), (None, b)]),
        lambda: opt.minimize(lambda: (0.0, [a, None]), [a, b], jac=True),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [one.filename for one in caught] == [__file__]


def test_short_descriptions(tmp_path):
    opt = RMSprop(schedules.CosineDecay(0.1, 10), rho=lambda: 0.5, clipnorm=1.0)
    opt.build([np.ones(3)])
    rate = "CosineDecay(initial_learning_rate=0.1, decay_steps=10, "
    assert repr(opt).startswith(f"<RMSprop(learning_rate={rate}")
    assert repr(opt).endswith("rho=<lambda>, clipnorm=1.0): 1 variable, 0 steps>")
    assert repr(RMSprop(0.1)) == "<RMSprop(learning_rate=0.1): 0 variables, 0 steps>"
    slices = IndexedSlices(np.ones((2, 4), np.float32), [1, 1], (9, 4))
    assert repr(slices) == "<IndexedSlices: values float32 (2, 4), 2 indices, dense_shape (9, 4)>"
    assert repr(CheckpointManager(tmp_path)) == f"<CheckpointManager('{tmp_path}', keep=3, full_every=1)>"
