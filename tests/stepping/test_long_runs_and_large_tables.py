"""More steps than 32 bits can count, tables of more than 2**31 elements, and a short soak."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from optimizer_internals import let_steps_pass, row_clocks, shift_clocks, slots_of
from reference import assert_close, densified
from strategies import DTYPES, TOLERANCE, VARIANTS

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.state.slots import CLOCK_LIMIT

SHAPE = (5, 3)


def optimizer(momentum, centered, **settings):
    return RMSprop(0.1, momentum=0.9 * momentum, centered=centered, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("csr", [False, True])
def test_more_steps_than_clocks_can_count(dtype, momentum, centered, csr):
    near, far = (optimizer(momentum, centered, weight_decay=0.01, epsilon=1e-3) for _ in range(2))
    tables = np.ones(SHAPE, dtype), np.ones(SHAPE, dtype)
    rng = np.random.default_rng(0)
    for t in range(40):
        if t == 10:
            shift_clocks(far, CLOCK_LIMIT - slots_of(far, tables[1]).steps - 5)
        rows = [0, 1, 1] if t in (0, 39) else [1 + t % 3]
        values = rng.standard_normal((len(rows), 3)).astype(dtype)
        for opt, table in zip((near, far), tables, strict=True):
            grad = densified(values, rows, SHAPE).astype(dtype) if csr else IndexedSlices(values, rows)
            opt.apply_gradients([(scipy.sparse.csr_array(grad) if csr else grad, table)])
            assert 0 <= slots_of(opt, table).steps < CLOCK_LIMIT
            assert (row_clocks(opt, table) >= 0).all()
        gathered = [opt.gather(table, [3, 0, 4]) for opt, table in zip((near, far), tables, strict=True)]
        assert_close(gathered[1], gathered[0], TOLERANCE[dtype], "gathered", 1.0)
    assert slots_of(far, tables[1]).steps < 40
    assert_close(tables[1], tables[0], TOLERANCE[dtype], "var", 1.0)
    for name in near.get_slot_names():
        assert_close(far.get_slot(tables[1], name), near.get_slot(tables[0], name), 10 * TOLERANCE[dtype], name)


def test_a_row_that_no_step_touches_while_the_clocks_can_count():
    opt, long, table, other = RMSprop(0.1, momentum=0.9), RMSprop(0.1, momentum=0.9), np.ones(SHAPE), np.ones(SHAPE)
    for one, array in ((opt, table), (long, other)):
        one.apply_gradients([(IndexedSlices(np.ones((5, 3)), np.arange(5)), array)])
    let_steps_pass(opt, CLOCK_LIMIT - 4)
    let_steps_pass(long, 100_000)
    for _ in range(6):
        for one, array in ((opt, table), (long, other)):
            one.apply_gradients([(IndexedSlices(np.ones((1, 3)), [2]), array)])
    for one in (opt, long):
        one.flush()
    assert_close(table, other, 1e-12)
    assert (opt.get_slot(table, "rms")[0] == 0).all()


def test_dense_steps_past_what_clocks_can_count():
    opt, table = RMSprop(0.1), np.ones(SHAPE)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 3)), [2]), table)])
    let_steps_pass(opt, CLOCK_LIMIT - 3)
    for _ in range(5):
        opt.apply_gradients([(np.ones(SHAPE), table)])
        assert slots_of(opt, table).steps < CLOCK_LIMIT
    assert np.isfinite(table).all()


def test_iterations_beyond_32_bits(tmp_path):
    seen = []
    opt, table = RMSprop(lambda t: seen.append(t) or 0.1, decay=1e-12), np.ones(SHAPE)
    opt.iterations = 2**31 - 1
    grad = IndexedSlices(np.ones((1, 3)), [2])
    assert [opt.apply_gradients([(grad, table)]) for _ in range(3)] == [2**31, 2**31 + 1, 2**31 + 2]
    assert {2**31 - 1, 2**31, 2**31 + 1} <= set(seen)
    weights = opt.get_weights()
    assert weights[0].dtype == np.int64
    opt.set_weights([np.int64(2**40), *weights[1:]])
    assert opt.apply_gradients([(grad, table)]) == 2**40 + 1
    constant = RMSprop(0.1)
    constant.iterations = 2**40
    constant.apply_gradients([(grad, table)])
    constant.save(tmp_path / "state.safetensors")
    assert RMSprop.load(tmp_path / "state.safetensors", [table]).iterations == 2**40 + 1


@pytest.fixture
def huge_table(tmp_path):
    """Make arrays in sparse files, of which only the touched pages take up space."""
    path = tmp_path / "table"

    def make(shape):
        try:
            return np.memmap(path, np.float32, "w+", shape=shape)
        except OSError as error:
            pytest.skip(f"no file of this size here: {error}")

    yield make
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"sparse_update": "lazy", "clipnorm": 1.0}], ids=str)
@pytest.mark.parametrize("shape", [(2**31 // 64 + 1000, 64), (2**31 + 1000,)], ids=str)
def test_tables_of_more_than_two_to_the_31_elements(huge_table, shape, settings):
    table, opt, same = huge_table(shape), RMSprop(0.1, **settings), RMSprop(0.1, **settings)
    last = shape[0] - 1
    rows = np.array([0, 1, 2**31 // 64 - 1, 2**31 // 64, 2**31 // 64 + 1, shape[0] // 2, last - 1, last])
    small, rng = np.zeros((8, *shape[1:]), np.float32), np.random.default_rng(0)
    for t in range(4):
        places = [7, 6, 7, 0, 3, 2] if t % 2 else [4, 7, 5, 1]
        values = rng.standard_normal((len(places), *shape[1:])).astype(np.float32)
        try:
            opt.apply_gradients([(IndexedSlices(values, rows[places]), table)])
        except MemoryError as error:
            pytest.skip(f"no memory to reserve here: {error}")
        same.apply_gradients([(IndexedSlices(values, places), small)])
        wanted = [7, 0, 3, 3, 6, 2]
        assert opt.gather(table, rows[wanted]).tobytes() == same.gather(small, wanted).tobytes()
    same.flush()
    opt.gather(table, rows)  # and not flush, which reads every clock
    assert table[rows].tobytes() == small.tobytes()
    if settings:  # without momentum and in exact mode, gather leaves the slots behind
        slots, expected = slots_of(opt, table).arrays, slots_of(same, small).arrays
        for name in opt.get_slot_names():
            assert slots[name][rows].tobytes() == expected[name].tobytes()
    with pytest.raises(IndexError, match=f"is {shape[0]}; expected 0 <= index < {shape[0]}"):
        opt.gather(table, [shape[0]])


def test_a_short_soak():
    program = Path(__file__).parents[1] / "support" / "soak.py"
    done = subprocess.run([sys.executable, program, "--rows", "100_000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] >= 100_000
