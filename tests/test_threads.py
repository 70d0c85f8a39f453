"""The same bits at any number of threads, and with a launch or without."""

import threading

import numba
import numpy as np
import pytest
import scipy.sparse
from strategies import VARIANTS

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.threads import launch_lock

BIG = not numba.config.DISABLE_JIT
ROWS = 3000 if BIG else 60


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
        monkeypatch.setattr("numba_rmsprop.threads.SERIAL_ITEMS", limit)
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


def test_calls_of_two_threads_do_not_interleave():
    first_is_inside, second_came_too = threading.Event(), threading.Event()

    def rate():
        if first_is_inside.is_set():
            second_came_too.set()
        else:
            first_is_inside.set()
            overlapping.append(second_came_too.wait(0.5))  # in vain, while the second call has to wait for this one
        return 0.1

    overlapping = []
    opt = RMSprop(rate)
    calls = [threading.Thread(target=opt.apply_gradients, args=([(np.ones(3), np.ones(3))],)) for _ in range(2)]
    calls[0].start()
    first_is_inside.wait()
    calls[1].start()
    for call in calls:
        call.join()
    assert overlapping == [False]
    assert opt.iterations == 2
