"""Calls of minimize_many: refused arguments, threads, forks, interrupts, and memory."""

import gc
import os
import pickle
import threading
import tracemalloc
import weakref

import numba
import numpy as np
import pytest
from processes import can_fork, results
from small_fits import PLAIN, bits, needs_jit, no_data, parabola, problem, valley

from numba_rmsprop import Shared, minimize_many
from numba_rmsprop.fitting.workers import run_workers

# On one worker, since each compiles the same functions anew.
pytestmark = pytest.mark.xdist_group("many")


def writes_to_x(x, row):
    x[0] = -1.0
    return 0.0


def leaves_one(x, row, out):
    out[0] = 1.0


def adds(x, row, out):
    for j in range(out.size):
        out[j] += 1.0


def writes_too_many(x, row, out):
    for j in range(3):
        out[j] = 1.0


def moves_x(x, row, out):
    out[:] = 1.0
    x[0] += 1.0


def writes_none(x, row, out):
    pass


X0 = np.ones((3, 2))
REFUSED = [
    ({"fun": lambda x: x[0]}, TypeError, r"fun: expected a function that can be called as fun\(x, row\)"),
    (
        {"fun": lambda x, row: x * 2},
        TypeError,
        "fun: expected a function that returns a real number, got array",
    ),
    ({"fun": lambda x, row: x[0] + 1j}, TypeError, "fun: expected a function that returns a real number, got complex"),
    ({"fun": lambda x, row: None}, TypeError, "fun: expected a function that returns a real number, got NoneType"),
    ({"fun": lambda x, row: "0.0"}, TypeError, "fun: expected a function that returns a real number, got str"),
    ({"fun": writes_to_x}, ValueError, "fun: expected a function that leaves x as it is"),
    ({"jac": lambda x, row: 0.0}, TypeError, r"jac: expected a function that can be called as jac\(x, row, out\)"),
    ({"jac": leaves_one}, ValueError, r"jac: expected every element of out to be set.*got out\[1\] left as it was"),
    ({"jac": writes_none}, ValueError, r"jac: expected every element of out to be set.*got out\[0\] left as it was"),
    ({"jac": adds}, ValueError, r"jac: .*got out\[0\] left as it was, or added to"),
    ({"jac": moves_x}, ValueError, "jac: expected a function that leaves x as it is"),
    ({"jac": "2-point"}, ValueError, "jac: expected a compiled function, \"complex\" or None, got '2-point'"),
    ({"fun": lambda x, row: abs(x[0]) ** 2, "jac": "complex"}, ValueError, "fun: expected a complex number"),
    ({"fun": lambda x, row: x[0].real * x[1], "jac": "complex"}, ValueError, "fun: expected an analytic .*parameter 0"),
    ({"x0": np.zeros(3)}, ValueError, r"x0: expected shape \(fits, parameters\), .*got shape \(3,\)"),
    ({"x0": np.zeros((0, 2))}, ValueError, r"x0: expected shape .* with one of each at least, got shape \(0, 2\)"),
    ({"x0": np.zeros((2, 0))}, ValueError, r"x0: expected shape .* got shape \(2, 0\)"),
    ({"x0": [[1.0, np.nan]]}, ValueError, r"x0\[0, 1\]: expected a finite number"),
    ({"x0": [[1.0], [1.0, 2.0]]}, ValueError, "x0: expected an array of numbers"),
    ({"x0": [[1.0, 2j]]}, TypeError, "x0: expected float32, float64 or integers, got complex128"),
    ({"x0": X0 > 0}, TypeError, "x0: expected float32, float64 or integers, got bool"),
    ({"x0": np.ma.masked_less(X0, 0)}, TypeError, "x0: expected an array without a mask"),
    ({"data": np.ones(3)}, TypeError, "data: expected a tuple of arrays, got ndarray"),
    ({"data": (np.ones(3), np.ones(2))}, ValueError, r"data\[1\]: expected a first axis of 3, .*got shape \(2,\)"),
    ({"data": (np.ones(4),)}, ValueError, r"data\[0\]: expected a first axis of 3, .*got shape \(4,\)"),
    ({"data": (np.float64(1.0),)}, ValueError, r"data\[0\]: expected a first axis of 3, .*got shape \(\)"),
    ({"data": (np.ones(3, object),)}, TypeError, r"data\[0\]: expected an array of numbers .*got object"),
    ({"data": (Shared("ab"),)}, TypeError, r"data\[0\]: expected an array of numbers .*got <U2"),
    ({"data": (np.ones(3, np.float16),)}, TypeError, r"data\[0\]: expected an array of numbers .*got float16"),
    ({"data": (Shared(np.ma.masked_less(X0, 0)),)}, TypeError, r"data\[0\]: expected an array without a mask"),
    ({"bounds": (0, 0.5)}, ValueError, r"x0\[0, 0\]: expected a value within the bounds, got np.float64\(1.0\)"),
    ({"bounds": ([0, 2], [9, 1])}, ValueError, r"bounds, lower\[0, 1\]: expected lower <= upper"),
    ({"bounds": (np.nan, 1)}, ValueError, r"bounds, lower\[0, 0\]: expected lower <= upper"),
    ({"bounds": 3}, ValueError, r"bounds: expected \(lower, upper\) or scipy.optimize.Bounds, got 3"),
    ({"bounds": (np.ones(3), 2)}, ValueError, "bounds, lower: expected a number, or an array of shape"),
    ({"bounds": (1j, 2)}, ValueError, "bounds, lower: expected a number, or an array of shape"),
    ({"x_scale": [1.0, -1.0]}, ValueError, r"x_scale\[0, 1\]: expected a finite number above 0"),
    ({"x_scale": np.inf}, ValueError, "x_scale.*: expected a finite number above 0"),
    ({"x_scale": "jac"}, ValueError, "x_scale: expected a number, an array or \"x0\", got 'jac'"),
    ({"maxiter": 10.0}, TypeError, "maxiter: expected an integer, got 10.0"),
    ({"maxiter": True}, TypeError, "maxiter: expected an integer, got True"),
    ({"maxiter": -1}, ValueError, "maxiter: expected an integer of at least 0, got -1"),
    ({"maxiter": 2**70, "learning_rate": 0.1}, ValueError, "maxiter: expected an integer below 2\\*\\*63"),
    ({"patience": 0}, ValueError, "patience: expected an integer of at least 1, got 0"),
    ({"gtol": -1.0}, ValueError, "gtol: expected 0 or more"),
    ({"ftol": np.nan}, ValueError, "ftol: expected a finite number, got nan"),
    ({"ftol": "small"}, TypeError, "ftol: expected a real number, got 'small'"),
    ({"learning_rate": -0.1}, ValueError, "learning_rate: expected 0 <= learning_rate"),
    ({"learning_rate": lambda step: np.nan}, ValueError, "learning_rate: expected 0 <= learning_rate"),
    ({"rho": 2.0}, ValueError, "rho: expected 0 <= rho <= 1"),
    ({"rho": lambda: 0.9}, TypeError, "rho: expected a number, the same for all steps"),
    ({"global_clipnorm": 1.0}, TypeError, "global_clipnorm: expected one of learning_rate, .*got an unknown argument"),
    ({"tol": 1.0}, TypeError, "tol: expected one of learning_rate, .*got an unknown argument"),
]


@pytest.mark.parametrize(("changed", "error", "message"), REFUSED, ids=[case[2][:50] for case in REFUSED])
def test_refused_before_any_fit(changed, error, message, no_fit_may_start):
    arguments = {"fun": square, "x0": X0, "data": (np.ones(3),)} | changed
    for name in ("fun", "jac"):
        if callable(arguments.get(name)) and arguments[name] is not square:
            arguments[name] = numba.njit(arguments[name])
    with pytest.raises(error, match=message):
        minimize_many(**arguments)


@numba.njit
def square(x, row):
    return x[0] * x[0] + x[1] * x[1]


@needs_jit
def test_refused_compiled_functions(no_fit_may_start):
    for name in ("fun", "jac"):
        for wrong, error, message in (
            (lambda x, row: 0.0, TypeError, "compiled by numba.njit.*got one that is not; put @numba.njit above it"),
            (3, TypeError, "compiled by numba.njit.*got 3"),
            (numba.njit(parallel=True)(square.py_func), ValueError, "one thread, got one compiled with parallel=True"),
        ):
            with pytest.raises(error, match=f"{name}: expected a function .*{message}"):
                minimize_many(**{"fun": square, "x0": X0} | {name: wrong})
    with pytest.raises(ValueError, match="jac: expected 2 elements of out, as many as x has, got one written at 2"):
        minimize_many(square, X0, jac=numba.njit(writes_too_many))
    with pytest.raises(TypeError, match=r"fun: Numba cannot compile it for the arguments .*shape \(2,\), \(float64\)"):
        minimize_many(numba.njit(lambda x, row: row.name), X0, (np.ones(3),))
    with pytest.raises(TypeError, match=r"cannot be compiled for these arguments: No definition for .*complex128"):
        minimize_many(numba.njit(lambda x, row: x[0] if x[0] > 0 else -x[0]), X0, jac="complex")


def raises_half_way(x, row, out):
    out[0] = 2.0 * x[0]
    if row[0] > 1:
        raise ValueError("half way")
    out[1] = 2.0 * x[1]


def test_a_jac_that_raises_at_the_first_start_ends_that_fit():
    found = minimize_many(square, X0, (np.array([2.0, 0.0, 0.0]),), jac=numba.njit(raises_half_way), maxiter=3)
    assert (found.status == 4).tolist() == [True, False, False]
    np.testing.assert_array_equal(found.x[0], X0[0])


def test_complex_steps_are_checked_at_the_size_of_the_parameters(no_fit_may_start):
    """The function varies within 1e-9, so its differences over a step of 1e-5 mean nothing."""
    nano = numba.njit(lambda x, row: np.cos(x[0] / 1e-9))
    with pytest.raises(AssertionError, match="a fit has started"):
        minimize_many(nano, [[1e-9]], jac="complex", x_scale="x0")


def test_an_exception_keeps_no_data_alive():
    y = np.full(3, 1e7)
    found = minimize_many(parabola, np.zeros((3, 1)), (y,))
    assert found.status.tolist() == [4, 4, 4]
    kept = weakref.ref(y)
    gc.disable()
    try:
        del y
        assert kept() is None
    finally:
        gc.enable()


def test_threads_do_not_change_bits(threads):
    x0, data = problem(7, 3)
    numba.set_num_threads(1)
    expected = [bits(minimize_many(valley, x0[:k], [d[:k] for d in data], jac="complex")) for k in (2, 7)]
    numba.set_num_threads(threads)
    assert [bits(minimize_many(valley, x0[:k], [d[:k] for d in data], jac="complex")) for k in (2, 7)] == expected


def test_calls_from_several_threads_at_once():
    def call(k):
        found[k] = bits(minimize_many(valley, *problems[k], jac="complex", maxiter=100))

    problems, found = [problem(20, 3, seed) for seed in range(4)], {}
    expected = [bits(minimize_many(valley, *each, jac="complex", maxiter=100)) for each in problems]
    callers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [found[k] for k in range(4)] == expected


def test_a_progress_bar_ends_at_its_total(capsys):
    for fits in (1, 5):
        for _ in range(10):  # a bar that misses the end does so now and then
            minimize_many(no_data, np.zeros((fits, 1)), maxiter=3, progress=True)
            lines = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
            assert lines[-1].startswith("minimize_many: 100%")
            assert f" {fits}/{fits} " in lines[-1]
    minimize_many(no_data, np.zeros((5, 1)), maxiter=3)
    assert capsys.readouterr() == ("", "")


def test_little_memory_beside_inputs_and_results():
    fits = 1000 if PLAIN else 100_000
    x0, shared = np.ones((fits, 1)), np.ones(100_000)
    minimize_many(one_shared, x0[:2], (Shared(shared),), x_scale="x0", maxiter=1)
    tracemalloc.start()
    try:
        found = minimize_many(one_shared, x0, (Shared(shared),), x_scale="x0", maxiter=1)
        beyond = tracemalloc.get_traced_memory()[1] - sum(
            np.asarray(found[name]).nbytes for name in ("x", "fun", "nit")
        )
    finally:
        tracemalloc.stop()
    assert beyond < 600_000


@numba.njit
def one_shared(x, row):
    return (x[0] - row[0][-1]) ** 2


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one process")
def test_an_interrupt_returns_what_has_been_found():
    told, same_handler, begun = results("interrupt_fits.py", 1)
    assert told == [[0, 0, 99, 99, 99], [True, True, True, False, False], True, [0, 99]]
    assert same_handler
    assert begun == [1, 1, 1, 0, 0]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one process")
def test_a_second_interrupt_does_not_wait():
    assert results("interrupt_fits.py", 10**12) == ["KeyboardInterrupt", True, [1, 1, 1, 0, 0]]


def test_workers_end_where_nobody_waits_for_them_any_more():
    stop, ended = np.zeros((1, 8), np.int64), threading.Event()

    class Bar:
        n = 0

        def update(self, _):
            raise KeyboardInterrupt

    def work(_):
        while stop[0, 0] == 0 and not ended.wait(0.001):
            pass

    try:
        with pytest.raises(KeyboardInterrupt):
            run_workers(work, 2, stop, Bar(), lambda: 0)
        assert stop[0, 0] == 1
    finally:
        ended.set()


@can_fork
def test_forks_before_and_while_fits_run():
    assert results("fork_while_fitting.py") == [0] * 6 + [True]


def test_a_result_can_be_printed_and_pickled():
    found = minimize_many(no_data, np.ones((2, 1)), maxiter=3)
    assert "maxiter" in str(found)
    again = pickle.loads(pickle.dumps(found))
    assert again.message == found.message == {1: "Stopped after maxiter steps without meeting a tolerance."}
