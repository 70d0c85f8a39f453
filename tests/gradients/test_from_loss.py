"""Gradients of a loss: from the loss itself, from a jacobian, or from finite differences."""

import numpy as np
import pytest
import scipy.sparse

from numba_rmsprop import IndexedSlices, RMSprop


def test_kinds_of_losses_and_jacobians_agree():
    target = np.array([1.0, 2.0, 3.0])
    results = []
    for make in (
        lambda x: (lambda: np.sum((x - target) ** 2), None),
        lambda x: (lambda y: np.sum((y - target) ** 2), None),
        lambda x: (lambda: (np.sum((x - target) ** 2), [2 * (x - target)]), True),
        lambda x: (lambda y: (np.sum((y - target) ** 2), 2 * (y - target)), True),
        lambda x: (lambda: np.sum((x - target) ** 2), lambda: 2 * (x - target)),
        lambda x: (lambda: np.sum((x - target) ** 2), lambda *variables: [2 * (variables[0] - target)]),
        lambda x: (lambda: (x - target) ** 2, None),  # several losses are summed, as in TensorFlow
    ):
        x, opt = np.zeros(3), RMSprop(0.1)
        loss, jac = make(x)
        assert [opt.minimize(loss, [x], jac=jac) for _ in range(20)] == list(range(1, 21))
        results.append(x)
    for x in results:
        np.testing.assert_allclose(x, results[2], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_finite_differences(dtype):
    a, b = np.array([[1.0, -2.0], [0.5, 1e3]], dtype)[:, ::-1], np.array(0.25, dtype)
    before = a.tobytes(), b.tobytes()
    ga, gb = RMSprop().get_gradients(lambda: np.sum(np.sin(a)) + float(b) ** 3, [a, b])
    # a central difference is good to about eps ** (2/3); sin(1000) varies faster than the step there
    tolerance = 30 * np.finfo(dtype).eps ** (2 / 3)
    np.testing.assert_allclose(ga[:, 1], np.cos(a[:, 1].astype(np.float64)), atol=tolerance)
    np.testing.assert_allclose(gb, 3 * 0.25**2, atol=tolerance)
    assert (ga.dtype, gb.shape) == (dtype, ())
    assert before == (a.tobytes(), b.tobytes())


def test_a_loss_that_fails_leaves_the_variables():
    x = np.array([1.0, 2.0])

    def loss():
        if x[1] != 2.0:
            raise ArithmeticError("no")
        return 0.0

    with pytest.raises(ArithmeticError):
        RMSprop().minimize(loss, x)
    assert x.tolist() == [1.0, 2.0]


def test_sparse_gradients():
    for grad in (IndexedSlices(np.ones((1, 2)), [1]), scipy.sparse.csr_array(([1.0, 1.0], ([1, 1], [0, 1])), (3, 2))):
        x = np.ones((3, 2))
        RMSprop(0.1).minimize(lambda grad=grad: (0.0, [grad]), [x], jac=True)
        assert (x != 1).any(axis=1).tolist() == [False, True, False]


def test_grad_loss_multiplies():
    for jac in (None, lambda x: [2 * x]):
        x = np.array([3.0])
        opt = RMSprop(0.1, rho=0.0)
        opt.minimize(lambda x: x[0] ** 2, [x], grad_loss=2.0, jac=jac)
        np.testing.assert_allclose(opt.get_slot(x, "rms"), (2 * 2 * 3) ** 2, rtol=1e-8)
    x, y = np.array([3.0, 4.0]), np.array([1.0, 1.0])
    gradients = [None, IndexedSlices(np.ones(1), [0]), scipy.sparse.csr_array([[0.0, 1.0]])]
    z = np.zeros(2)
    opt = RMSprop(0.1, rho=0.0)
    with pytest.warns(UserWarning, match="no gradient"):
        opt.minimize(lambda: 0.0, [x, y, z], grad_loss=3.0, jac=lambda: gradients)
    assert opt.get_slot(y, "rms").tolist() == [9, 0]
    assert opt.get_slot(z, "rms").tolist() == [0, 9]
    single = np.ones(2, np.float32)
    opt.minimize(lambda: 0.0, single, grad_loss=2.0, jac=lambda: [[1.0, 2.0]])
    assert opt.get_slot(single, "rms").tolist() == [4, 16]
    w = np.array([1.0, 2.0])
    opt.minimize(lambda: w**2, [w], grad_loss=np.array([1.0, 0.0]))
    np.testing.assert_allclose(opt.get_slot(w, "rms"), [4, 0], rtol=1e-8)


def test_variables_may_come_from_a_callable():
    x = np.array([1.0])
    assert RMSprop().minimize(lambda: x[0] ** 2, lambda: [x]) == 1


def test_the_loss_sees_current_rows():
    opt, table = RMSprop(0.1, momentum=0.9), np.ones((3, 1))
    for row in ([0], [1], [2]):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 1)), row), table)])
    stale, seen = table.copy(), []
    opt.minimize(lambda: (seen.append(table.copy()), [np.zeros((3, 1))]), table, jac=True)
    assert (seen[0][:2] != stale[:2]).all()


def test_get_updates_takes_a_step():
    x = np.array([1.0])
    opt = RMSprop(0.1)
    assert opt.get_updates(lambda: x[0] ** 2, [x]) == [1]
    assert x < 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda o, x: o.minimize(lambda: 0.0, [np.zeros(1001)]),
            ValueError,
            r"1001 elements; expected at most 1000. Pass",
        ),
        (lambda o, x: o.minimize(3.0, [x]), TypeError, "loss: expected a callable.*got float"),
        (
            lambda o, x: o.minimize(lambda: 0.0, [x], jac=True),
            TypeError,
            r"expected \(value, gradients\), since jac=True",
        ),
        (lambda o, x: o.minimize(lambda: 0.0, [x], jac="2-point"), TypeError, "jac: expected True, a callable or None"),
        (lambda o, x: o.minimize(lambda: 0.0, [x], jac=lambda: [x, x]), ValueError, "expected 1 gradients.*got 2"),
        (lambda o, x: o.minimize(lambda: 0.0, [x], [1.0, 2.0], jac=lambda: [x]), ValueError, "grad_loss: expected a"),
        (lambda o, x: o.minimize(lambda: 0.0, [[1.0]]), TypeError, r"var_list\[0\] must be a NumPy array"),
        (lambda o, x: o.get_gradients(lambda: 0.0, [x], jac=lambda: [None]), ValueError, r"params\[0\].*got None"),
    ],
)
def test_refused_calls(call, error, message):
    opt, x = RMSprop(), np.array([1.0])
    with pytest.raises(error, match=message):
        call(opt, x)
    assert (x.tolist(), opt.iterations) == ([1.0], 0)
