"""Parallel launches: the same bits at any number of threads and without a launch, and threads that take turns."""

import threading

import numba
import numpy as np
import pytest
import scipy.sparse
from strategies import VARIANTS

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.runtime.launching import launch_lock

BIG = not numba.config.DISABLE_JIT
ROWS = 3003 if BIG else 63
"""Neither these nor the lines of the first variable can be shared out evenly."""


def train(momentum, centered, clips, sparse_update="exact"):
    rng = np.random.default_rng(0)
    dtype = np.float32
    variables = [np.ones(10 * ROWS + 1, dtype), np.ones((ROWS, 5), dtype), np.ones((ROWS, 5), dtype)]
    opt = RMSprop(
        0.01,
        momentum=0.9 * momentum,
        centered=centered,
        epsilon=1e-3,
        weight_decay=0.01,
        sparse_update=sparse_update,
        **clips,
    )
    gathered = []
    for _ in range(5):
        indices = np.minimum(rng.zipf(1.3, ROWS) - 1, ROWS - 1)
        grads = [
            rng.standard_normal(variables[0].shape).astype(dtype),
            IndexedSlices(rng.standard_normal((ROWS, 5)).astype(dtype), indices),
            scipy.sparse.random_array((ROWS, 5), density=0.05, rng=rng, dtype=dtype, format="csr"),
        ]
        opt.apply_gradients(list(zip(grads, variables, strict=True)))
        gathered.append(opt.gather(variables[1], indices).tobytes())
    return [*gathered, *(array.tobytes() for array in [*opt.weights, *variables])]


@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("clips", [{}, {"clipvalue": 0.1, "clipnorm": 0.3}, {"global_clipnorm": 0.3}], ids=str)
def test_the_same_bits_at_any_number_of_threads(momentum, centered, clips):
    expected = None
    for count in (1, 2, 4):
        numba.set_num_threads(count)
        bits = train(momentum, centered, clips)
        expected = expected or bits
        assert bits == expected


@pytest.mark.parametrize(("mode", "clips"), [("exact", {}), ("lazy", {}), ("exact", {"global_clipnorm": 0.3})], ids=str)
def test_a_launch_gives_the_bits_of_a_serial_loop(monkeypatch, mode, clips):
    bits = []
    for limit in (0, 10**9):
        monkeypatch.setattr("numba_rmsprop.runtime.launching.SERIAL_ITEMS", limit)
        bits.append(train(momentum=True, centered=False, clips=clips, sparse_update=mode))
    assert bits[0] == bits[1]


def test_steps_gathers_and_flushes_of_several_threads_take_turns():
    opt, table, alone = RMSprop(0.1, momentum=0.9), np.ones((40, 3)), np.ones((40, 3))
    grads = [IndexedSlices(np.ones((1, 3)), [t % 40]) for t in range(400)]
    single = RMSprop(0.1, momentum=0.9)
    for grad in grads:
        single.apply_gradients([(grad, alone)])
    single.flush()
    opt.apply_gradients([(grads[0], table)])

    def read():
        for t in range(200):
            opt.gather(table, [t % 40, 3])
            opt.flush()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for grad in grads[1:]:
        opt.apply_gradients([(grad, table)])
    for reader in readers:
        reader.join()
    opt.flush()
    np.testing.assert_allclose(table, alone, rtol=1e-12)


def test_threads_that_share_an_optimizer_take_turns(launches):
    opt = RMSprop(0.1)
    tables = [np.ones((50, 4)) for _ in range(4)]
    opt.build(tables)

    def work(table):
        for t in range(50):
            opt.apply_gradients([(IndexedSlices(np.ones((2, 4)), [t % 50, 7]), table)])

    workers = [threading.Thread(target=work, args=(table,)) for table in tables]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert opt.iterations == 200
    opt.flush()
    assert all((table == tables[0]).all() for table in tables)


@pytest.mark.parametrize("call", ["apply_gradients", "gather", "flush", "save"])
def test_calls_wait_while_another_thread_launches(call, tmp_path):
    opt, table = RMSprop(0.1, momentum=0.9), np.ones((4, 2))
    for row in range(4):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), table)])
    arguments = {
        "apply_gradients": ([(np.ones((4, 2)), table)],),
        "gather": (table, [0, 1]),
        "save": (tmp_path / "opt",),
    }
    worker = threading.Thread(target=getattr(opt, call), args=arguments.get(call, ()))
    with launch_lock:
        worker.start()
        worker.join(0.1)
        waits = worker.is_alive()
    worker.join()
    assert waits


def test_steps_of_many_threads_take_turns():
    """Each step uses the rate of its own number, though threads ask for it before their turn."""

    def rate(step):
        asked.append(step)
        barrier.wait(timeout=60) if len(asked) <= 4 else None  # all four ask for the rate of the first step
        return 2.0**-step

    def train():
        for _ in range(10):
            opt.apply_gradients([(np.ones(3), var)])

    asked, barrier = [], threading.Barrier(4)
    opt, var = RMSprop(rate, rho=0.0, epsilon=0.0, epsilon_in_sqrt=False), np.zeros(3)
    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opt.iterations == 40
    assert asked.count(0) == 4
    assert (var == -sum(2.0**-step for step in range(40))).all()
