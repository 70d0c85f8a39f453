"""Nesterov's momentum, bias correction and where the mean square starts: against what optax made of the same steps."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from reference import Reference, assert_close

from numba_rmsprop import IndexedSlices, RMSprop

OPTAX = json.loads((Path(__file__).parents[1] / "support/optax_trajectories.json").read_text("utf-8"))
GRADIENTS = np.array(OPTAX["gradients"])
CORRECTED = {"momentum": 0.9, "nesterov": True, "bias_correction": True, "initial_scale": 0.5}


def name_of(case):
    return ", ".join(f"{name}={value}" for name, value in case["options"].items() if value)


def is_mere_rounding(options):
    """Return whether the variance after the first step is 0 but for rounding, by whose root a step is divided."""
    at_0 = options["initial_scale"] == 0 and not options["eps_in_sqrt"]
    return options["centered"] and options["bias_correction"] and at_0


def optimizer(options, **others):
    options = options | {"epsilon_in_sqrt": options["eps_in_sqrt"], "momentum": options["momentum"] or 0.0}
    del options["eps_in_sqrt"]
    return RMSprop(OPTAX["learning_rate"], OPTAX["rho"], epsilon=OPTAX["epsilon"], **options, **others)


def rows_of(grad):
    rows = np.flatnonzero(grad.any(axis=1))
    return IndexedSlices(grad[rows], rows)


@pytest.mark.parametrize("kind", ["dense", "sparse", "csr"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", OPTAX["cases"], ids=name_of)
def test_as_optax(case, dtype, kind):
    var, opt = (np.arange(8.0).reshape(4, 2) / 4).astype(dtype), optimizer(case["options"])
    tolerance = {"float64": 1e-9, "float32": 3e-5}[dtype]
    if is_mere_rounding(case["options"]):
        tolerance = {"float64": 1e-4, "float32": 0.1}[dtype]
    for grad, expected in zip(GRADIENTS.astype(dtype), case[dtype], strict=True):
        form = {"dense": np.array, "sparse": rows_of, "csr": scipy.sparse.csr_array}[kind]
        opt.apply_gradients([(form(grad), var)])
        opt.flush()
        assert np.isfinite(var).all()
        if not np.isnan(expected).any():  # optax takes the root of a variance below 0
            np.testing.assert_allclose(var, expected, rtol=tolerance, atol=tolerance)


def test_every_variable_counts_its_own_steps():
    first, second, third = (np.ones(3), np.ones(3), np.ones((3, 2)))
    opt = RMSprop(0.1, 0.9, **CORRECTED, epsilon=1e-3)
    reference = Reference([first, second, third], **CORRECTED | {"momentum": True})
    for step in range(6):
        grads = [np.full(3, step + 1.0), np.full(3, step - 2.5), np.full((3, 2), 2.0 + step)]
        if step < 2:
            grads[1] = grads[2] = None
        if step == 4:
            grads[0] = None
        with_gradients = zip(grads, (first, second, third), strict=True)
        opt.apply_gradients([(grad, var) for grad, var in with_gradients if grad is not None])
        reference.step(grads, lr=0.1, rho=0.9, momentum=0.9, epsilon=1e-3)
    for var, expected in zip((first, second, third), reference.vars, strict=True):
        assert_close(var, expected, 1e-12)


def test_the_product_goes_on_after_set_weights_copies_and_files(tmp_path):
    var, opt = np.ones((4, 2)), RMSprop(0.1, 0.9, **CORRECTED)
    grad = IndexedSlices(np.ones((1, 2)), [2])
    for _ in range(3):
        opt.apply_gradients([(grad, var)])
    opt.save(tmp_path / "file")
    loaded, fresh = np.ones((4, 2)), np.ones((4, 2))
    runs = [(RMSprop.load(tmp_path / "file", [loaded]), loaded)]
    runs.append(copy.deepcopy((opt, var)))
    opt.set_weights(opt.get_weights())
    restored = RMSprop(0.1, 0.9, **CORRECTED)
    restored.build([fresh])
    restored.set_weights(opt.get_weights())
    fresh[...] = var
    runs.append((restored, fresh))
    opt.apply_gradients([(grad, var)])
    for one, its in runs:
        one.apply_gradients([(grad, its)])
        np.testing.assert_allclose(its, var, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True}, "nesterov: expected False without momentum, got True; give momentum"),
        ({"initial_scale": -1.0}, "initial_scale: expected 0 <= initial_scale <= "),
        ({"initial_scale": 1e39}, "initial_scale: expected 0 <= initial_scale <= "),
        ({"initial_scale": np.nan}, "initial_scale: expected 0 <= initial_scale"),
    ],
)
def test_options_that_there_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        RMSprop(**options)


def test_a_copy_that_steps_some_of_the_variables_leaves_the_original_its_products():
    first, second, alone = np.ones(3), np.ones(3), np.ones(3)
    opt, other = RMSprop(0.1, bias_correction=True), RMSprop(0.1, bias_correction=True)
    opt.apply_gradients([(np.ones(3), first), (np.ones(3), second)])
    opt.apply_gradients([(np.ones(3), first), (np.ones(3), second)])
    copy.copy(opt).apply_gradients([(np.ones(3), first)])
    opt.apply_gradients([(np.ones(3), first), (np.ones(3), second)])
    for _ in range(3):
        other.apply_gradients([(np.ones(3), alone)])
    assert second.tobytes() == alone.tobytes()
    assert opt.known.slots[0].rho_product == pytest.approx(0.9**4)


def test_a_subclass_may_fix_an_option_in_its_body():
    class Fixed(RMSprop):
        bias_correction = True
        nesterov = True
        weight_decay = 0.1

    var, other = np.ones(3), np.ones(3)
    Fixed(0.1, momentum=0.9).apply_gradients([(np.ones(3), var)])
    options = {"bias_correction": True, "nesterov": True, "weight_decay": 0.1}
    RMSprop(0.1, momentum=0.9, **options).apply_gradients([(np.ones(3), other)])
    assert var.tobytes() == other.tobytes()


def test_nothing_is_averaged_with_rho_1():
    var, opt = np.ones(3), RMSprop(rho=1.0, bias_correction=True)
    with pytest.raises(ValueError, match="rho: expected less than 1 with bias_correction=True, got 1"):
        opt.apply_gradients([(np.ones(3), var)])
    assert (var.tolist(), opt.iterations) == ([1, 1, 1], 0)
    opt.rho = 0.9
    opt.apply_gradients([(np.ones(3), var)])
    opt.rho = 1.0
    opt.apply_gradients([(np.ones(3), var)])
    np.testing.assert_allclose(var, 1 - 0.002, rtol=1e-6)


def test_files_of_runs_without_a_product_are_refused(tmp_path):
    var, opt = np.ones(3), RMSprop()
    opt.apply_gradients([(np.ones(3), var)])
    opt._values = opt._values | {"bias_correction": True}
    opt.save(tmp_path / "file")
    RMSprop.load(tmp_path / "file", [var])
    opt.known.slots[0].product[()] = 2.0
    opt.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"has a product of rho of 2\.0, which no training run brings about"):
        RMSprop.load(tmp_path / "file", [var])
