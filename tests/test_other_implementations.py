"""The cases with which tf.keras, Keras 3, PyTorch and optax test their RMSprop.

Expected numbers come from each library's published formula, by hand or in NumPy; nothing is imported from them.
"""

import json

import numpy as np
import pytest
import scipy.sparse
from reference import Reference, assert_close, densified
from strategies import DTYPES, TOLERANCE, VARIANTS

from numba_rmsprop import IndexedSlices, RMSprop, schedules

# With rho 1 the mean square stays 0, and with epsilon 1 the divisor is 1: what is left is plain gradient descent.
DESCENT = {"rho": 1.0, "epsilon": 1.0}


def pair(dtype=np.float64):
    return [np.array([1, 2], dtype), np.array([3, 4], dtype)]


def check(opt, variables, reference, tolerance=1e-12):
    kinds = {"rms": reference.rms, "momentum": reference.mom, "mg": reference.mg}
    assert opt.get_slot_names() == ["rms", *["momentum"] * reference.with_momentum, *["mg"] * reference.centered]
    for i, var in enumerate(variables):
        assert_close(var, reference.vars[i], tolerance, f"var {i}")
        for name in opt.get_slot_names():
            assert_close(opt.get_slot(var, name), kinds[name][i], tolerance, f"{name} {i}")


@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_three_steps_by_hand(momentum, centered):
    # rho 3/4 and the gradients 4, 2, -2 keep the mean square at 4, while the mean goes 1, 5/4, 7/16
    var, opt = np.array([10.0]), RMSprop(0.5, 0.75, momentum=0.5 * momentum, epsilon=0.0, centered=centered)
    total = mom = 0.0
    for grad, mean in ((4.0, 1.0), (2.0, 5 / 4), (-2.0, 7 / 16)):
        opt.apply_gradients([(np.array([grad]), var)])
        mom = 0.5 * grad / (4 - mean**2 * centered) ** 0.5 + 0.5 * mom * momentum
        total += mom
        assert_close(var, [10 - total], 1e-12)
    if not centered:
        assert (var[0], opt.get_slot(var, "rms")[0]) == (8 if momentum else 9, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["dense", "exact", "lazy"])
@pytest.mark.parametrize(("lr", "momentum", "epsilon"), [(0.05, 0.0, 1e-3), (0.01, 0.9, 1e-5)])
@pytest.mark.parametrize("centered", [False, True])
def test_keras_three_steps(dtype, kind, lr, momentum, epsilon, centered):
    # The sparse steps touch the same rows each time and the others have no state yet: exact and lazy agree.
    variables, grads = pair(dtype), [np.array([0.1, 0], dtype), np.array([0, 0.01], dtype)]
    given = [g if kind == "dense" else IndexedSlices(g[[i]], [i], (2,)) for i, g in enumerate(grads)]
    opt = RMSprop(lr, 0.9, momentum, epsilon, centered, sparse_update="lazy" if kind == "lazy" else "exact")
    reference = Reference(variables, momentum=momentum > 0, centered=centered)
    for _ in range(3):
        opt.apply_gradients(zip(given, variables, strict=True))
        reference.step(grads, lr=lr, momentum=momentum, epsilon=epsilon)
        check(opt, variables, reference, TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [[0], [0, 0, 0]])
@pytest.mark.parametrize("centered", [False, True])
def test_keras_minimizes_through_gathered_rows(rows, centered):
    # The loss is (sum of row · x)². With rho 0 a step is the sign of the gradient; centered, the variance of a single
    # gradient is 0, and epsilon 1 leaves the gradient itself.
    var, x = np.array([[1.0, 2.0], [5.0, 5.0]]), np.array([4.0, 5.0])
    opt = RMSprop(1.0, rho=0.0, epsilon=float(centered), centered=centered)

    def loss():
        prediction = np.sum(opt.gather(var, rows) @ x)
        return prediction**2, IndexedSlices(2 * prediction * np.tile(x, (len(rows), 1)), rows)

    opt.minimize(loss, [var], jac=True)
    assert_close(var, [[1, 2] - (2 * 14 * len(rows) ** 2 * x if centered else np.ones(2)), [5, 5]], 1e-12)


@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_keras_repeated_indices_equal_their_sum(momentum, centered):
    results = []
    for values, rows in (([[0.1], [0.5], [0.1]], [1, 0, 1]), ([[0.2], [0.5]], [1, 0])):
        var, opt = np.array([[1.0], [2.0], [3.0]]), RMSprop(3.0, momentum=0.9 * momentum, centered=centered)
        for _ in range(3):
            opt.apply_gradients([(IndexedSlices(values, rows), var)])
        results.append([array.tobytes() for array in (*opt.weights, var)])
    assert results[0] == results[1]


def test_keras_callables():
    # momentum is given, if only as a callable that returns 0: so epsilon stands under the root
    rate, variables, grads = [2.0], pair(), [np.full(2, 0.1), np.full(2, 0.01)]
    opt = RMSprop(lambda: rate[0], lambda: 0.9, lambda: 0.0, lambda: 1.0)
    opt.apply_gradients(zip(grads, variables, strict=True))
    first, second = 0.2 / 1.001**0.5, 0.02 / 1.00001**0.5
    assert_close(variables, [[1 - first, 2 - first], [3 - second, 4 - second]], 1e-12)
    rate[0] = 20.0
    opt.apply_gradients(zip(grads, variables, strict=True))
    first, second = first + 2 / 1.0019**0.5, second + 0.2 / 1.000019**0.5
    assert_close(variables, [[1 - first, 2 - first], [3 - second, 4 - second]], 1e-12)


@pytest.mark.parametrize("rate", [{"lr": 0.01, "decay": 0.5}, {"lr": schedules.InverseTimeDecay(0.01, 1, 0.5)}])
def test_keras_learning_rate_decay(rate):
    variables, grads = pair(), [np.array([0.1, 0.2]), np.array([0.01, 0.2])]
    opt, reference = RMSprop(**rate), Reference(variables)
    for t in range(4):
        opt.apply_gradients(zip(grads, variables, strict=True))
        reference.step(grads, lr=0.01 / (1 + 0.5 * t))
    check(opt, variables, reference)


def test_keras_construction():
    made = RMSprop(lr=1.0), RMSprop(learning_rate=0.1, lr=1.0), RMSprop(learning_rate=0.1)
    assert [opt.lr for opt in made] == [opt.learning_rate for opt in made] == [1.0, 1.0, 0.1]
    for name in ("momentum", "rho"):
        assert [getattr(RMSprop(**{name: edge}), name) for edge in (0, 1)] == [0, 1]
        for bad in (-0.1, 1.1, 2.5):
            with pytest.raises(ValueError, match=f"{name}: expected 0 <= {name} <= 1, got {bad}"):
                RMSprop(**{name: bad})


@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_keras_weights(momentum, centered):
    variables = [np.array(1.0), np.array([1.0, 2.0])]
    opt = RMSprop(1.0, momentum=0.2 * momentum, centered=centered)
    opt.minimize(lambda: variables[0] + np.sum(variables[1]), variables)
    kinds = ["rms", *["momentum"] * momentum, *["mg"] * centered]
    ids = [id(opt.get_slot(var, kind)) for kind in kinds for var in variables]
    assert [id(weight) for weight in opt.variables()[1:]] == ids
    assert (opt.weights[0], len(set(ids))) == (opt.iterations, 2 * len(kinds))

    twins, other = [var.copy() for var in variables], RMSprop.from_config(opt.get_config())
    other.build(twins)
    other.set_weights(opt.get_weights())
    for o, both in ((opt, variables), (other, twins)):
        o.apply_gradients(zip([0.5, [0.1, -0.1]], both, strict=True))
    assert [w.tobytes() for w in (*opt.weights, *variables)] == [w.tobytes() for w in (*other.weights, *twins)]


@pytest.mark.parametrize(
    ("clip", "first", "second"),
    [
        ({"clipvalue": 1.0}, [0, 1], [1]),
        ({"clipnorm": 1.0}, [1 - 0.5**0.5, 2 - 0.5**0.5], [1]),
        ({"clipnorm": 5.0}, [-2, -1], [-2]),
        ({"global_clipnorm": 2.0}, [1 - 6 / 34**0.5, 2 - 6 / 34**0.5], [2 - 8 / 34**0.5]),
    ],
)
@pytest.mark.parametrize("form", [np.array, lambda g: IndexedSlices(g, range(len(g))), scipy.sparse.coo_array])
def test_keras_clipping(clip, first, second, form):
    var0, var1 = np.array([1.0, 2.0]), np.array([2.0])
    opt = RMSprop(1.0, **DESCENT, **clip)
    opt.apply_gradients([(form(np.array([3.0, 3.0])), var0), (form(np.array([4.0])), var1)])
    assert_close(var0, first, 1e-12)
    assert_close(var1, second, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.5, "rho": 0.8, "momentum": 0.05, "epsilon": 1e-6, "centered": True, "name": "mine"},
        {"learning_rate": schedules.InverseTimeDecay(1.0, 10, 0.9, staircase=True), "decay": 0.5},
        {"learning_rate": schedules.PiecewiseConstantDecay([1], [0.5, 0.1]), "clipvalue": 0.4, "clipnorm": 0.5},
        {"lr": schedules.CosineDecay(0.3, 4, warmup_target=0.5, warmup_steps=2), "global_clipnorm": 0.1},
        {"sparse_update": "lazy", "epsilon_in_sqrt": True, "weight_decay": 0.25, "check_finite": True},
    ],
)
def test_keras_configs_make_the_same_optimizer(options):
    made = RMSprop(**options)
    again = RMSprop.from_config(json.loads(json.dumps(made.get_config())))
    assert again.get_config() == made.get_config()
    assert {name: getattr(again, name) for name in options} == options
    results = []
    for opt in (made, again):
        var = np.ones((4, 2))
        for t in range(5):
            opt.apply_gradients([(IndexedSlices([[0.5, -0.3]], [t % 4]), var)])
        results.append([array.tobytes() for array in (*opt.weights, var)])
    assert results[0] == results[1]


def test_keras_3_decays_weights_without_a_gradient():
    var, opt = np.array(2.0), RMSprop(1.0, weight_decay=0.004)
    for _ in range(3):
        opt.apply_gradients([(0.0, var)])
    assert_close(var, 2 * 0.996**3, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_formulas_of_peers(dtype, momentum, centered, inside, sparse):
    # Keras 3 and optax put epsilon inside, PyTorch outside; PyTorch's buffer gathers g / root and meets the learning
    # rate as it is applied, which is the same as long as the rate is constant.
    rng, mu = np.random.default_rng(0), 0.9 * momentum
    var = rng.standard_normal((4, 2)).astype(dtype)
    opt = RMSprop(0.01, 0.99, mu, 1e-3, centered, epsilon_in_sqrt=inside)
    expected, square, mean, buffer = var.astype(np.float64), 0, 0, 0
    for t in range(12):
        rows, values = [t % 4, t * t % 4], rng.standard_normal((2, 2)).astype(dtype)
        grad = densified(values, rows, var.shape)
        opt.apply_gradients([(IndexedSlices(values, rows) if sparse else grad.astype(dtype), var)])
        square, mean = 0.99 * square + 0.01 * grad**2, 0.99 * mean + 0.01 * grad
        variance = square - centered * mean**2
        root = np.sqrt(variance + 1e-3) if inside else np.sqrt(variance) + 1e-3
        buffer = mu * buffer + (0.01 if inside else 1) * grad / root
        expected = expected - (1 if inside else 0.01) * buffer
    opt.flush()
    assert_close(var, expected, TOLERANCE[dtype])
    assert_close(opt.get_slot(var, "rms"), square, TOLERANCE[dtype])


def test_a_learning_rate_of_0_does_not_stop_the_momentum():
    # as in Keras and optax; in PyTorch the learning rate multiplies the momentum, so var would stay at 0.5
    var, opt = np.array([1.0]), RMSprop(lambda step: [0.5, 0.0][step], 0.0, momentum=0.5, epsilon_in_sqrt=False)
    for _ in range(2):
        opt.apply_gradients([(np.array([3.0]), var)])
    np.testing.assert_allclose(var, 1 - 0.5 - 0.25, rtol=1e-7)  # to epsilon


@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_pytorch_zero_gradients_change_nothing(momentum, centered):
    var, opt = np.array([[1.0], [-2.0], [3.0]]), RMSprop(0.1, momentum=0.9 * momentum, centered=centered)
    for grad in (np.zeros((3, 1)), IndexedSlices(np.zeros((2, 1)), [1, 1]), scipy.sparse.csr_array((3, 1))):
        opt.apply_gradients([(grad, var)])
    assert var.tolist() == [[1], [-2], [3]]
    assert opt.iterations == 3
    assert not any(slot.any() for slot in opt.weights[1:])


@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_pytorch_parameters_of_size_0(momentum, centered, shape):
    empty, full = np.empty(shape), np.ones(2)
    opt = RMSprop(0.1, momentum=0.9 * momentum, centered=centered, global_clipnorm=1.0)
    for grad in (np.empty(shape), IndexedSlices(np.empty((0, *shape[1:])), []), scipy.sparse.coo_array(empty)):
        opt.apply_gradients([(grad, empty), (np.ones(2), full)])
    assert opt.gather(empty, []).shape == (0, *shape[1:])
    assert (full < 1).all()
    assert [slot.shape for slot in opt.weights[1::2]] == [shape] * (1 + momentum + centered)


def rosenbrock(point):
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2, np.array([2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)])


@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_pytorch_coordinates_of_rosenbrock_in_turn(momentum, centered):
    options = {"momentum": 0.9 * momentum, "centered": centered, "epsilon": 1e-3, "decay": 1e-3}
    sparse, dense = np.array([1.5, 1.5]), np.array([1.5, 1.5])
    opts = RMSprop(0.01, **options), RMSprop(0.01, **options)
    for t in range(2000):
        grad = rosenbrock(dense)[1] * [t % 2 == 0, t % 2 == 1]
        opts[0].apply_gradients([(IndexedSlices(grad[[t % 2]], [t % 2]), sparse)])
        opts[1].apply_gradients([(grad, dense)])
    opts[0].flush()
    assert_close(sparse, dense, 1e-12)
    assert rosenbrock(dense)[0] < 0.05


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
def test_optax_parabola(inside, momentum, centered):
    var, target = np.array([-1.0, 10.0, 1.0]), np.array([1.0, -1.0, 1.0])
    rate = schedules.ExponentialDecay(0.05 if momentum else 0.3, 50, 0.5)
    opt = RMSprop(rate, momentum=0.9 * momentum, centered=centered, epsilon_in_sqrt=inside, epsilon=1e-3)
    for _ in range(1000):
        opt.minimize(lambda: (np.sum((var - target) ** 2), 2 * (var - target)), var, jac=True)
    np.testing.assert_allclose(var, target, atol=1e-3)


@pytest.mark.parametrize("form", ["coo", "csr", "dok", "row", "column"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["exact", "lazy"])
def test_sparse_vectors(form, dtype, mode):
    rng = np.random.default_rng(0)
    var = rng.standard_normal(9).astype(dtype)
    opt = RMSprop(0.1, momentum=0.9, centered=True, epsilon=1e-3, clipnorm=1.0, sparse_update=mode)
    reference = Reference([var], momentum=True, centered=True)
    for _ in range(12):
        places = rng.integers(0, 9, rng.integers(0, 5))  # COO arrays keep the duplicates
        data = rng.standard_normal(len(places)).astype(dtype)
        dense = densified(
            data, places, 9
        )  # now: SciPy 1.17 adds up duplicates in ``data`` itself as it makes a 1-D CSR
        if form in ("row", "column"):
            coords = (places * 0, places) if form == "row" else (places, places * 0)
            grad = scipy.sparse.coo_array((data, coords), (1, 9) if form == "row" else (9, 1))
        else:
            grad = scipy.sparse.coo_array((data, (places,)), (9,)).asformat(form)
        opt.apply_gradients([(grad, var)])
        touched = [np.isin(np.arange(9), places)] if mode == "lazy" else None
        reference.step([dense], lr=0.1, momentum=0.9, epsilon=1e-3, clipnorm=1.0, touched=touched)
    opt.flush()
    check(opt, [var], reference, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(8,), (9, 9), (1, 10), (3, 3)])
def test_sparse_vectors_of_another_length(shape):
    with pytest.raises(ValueError, match=r"gradient of variable 0 \(float64, shape \(9,\)\): expected shape"):
        RMSprop().apply_gradients([(scipy.sparse.coo_array(np.ones(shape)), np.ones(9))])
