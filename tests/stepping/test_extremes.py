"""Extreme numbers, counters and sizes, and arrays that a caller has broken."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from optimizer_internals import has_marked_rows, let_steps_pass, row_clocks, shift_clocks, slots_of, state_of
from reference import Reference, assert_close, densified
from strategies import DTYPES, TOLERANCE, VARIANTS, unsorted_csr

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.state.slots import CLOCK_LIMIT

SHAPE = (5, 3)
BAD = [np.nan, np.inf, -np.inf]


def optimizer(momentum, centered, **settings):
    return RMSprop(0.1, momentum=0.9 * momentum, centered=centered, **settings)


def gradient_with(bad, kind, dtype):
    """Return a gradient with ``bad`` added to two elements, as it is passed and as a dense array."""
    rng = np.random.default_rng(0)
    if kind == "dense":
        dense = rng.standard_normal(SHAPE).astype(dtype)
        dense[1, 2] += bad
        dense[4, 0] += bad
        return dense, dense
    rows, columns = np.array([3, 1, 3, 0, 3]), np.array([0, 2, 0, 1, 1])
    if kind == "rows":
        values = rng.standard_normal((5, 3)).astype(dtype)
        values[1, 2] += bad
        values[2, 0] += bad  # one of three entries of a row
        return IndexedSlices(values, rows), densified(values, rows, SHAPE)
    values = rng.standard_normal(5).astype(dtype)
    values[1:3] += bad
    return unsorted_csr(values, rows, columns, SHAPE), densified(values, (rows, columns), SHAPE)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the reference
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["dense", "rows", "csr"])
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_reach_only_their_elements(bad, kind, momentum, centered, dtype):
    results = []
    for value in (0.0, bad):
        opt, var = optimizer(momentum, centered), np.ones(SHAPE, dtype)
        reference = Reference([var], momentum=momentum, centered=centered)
        steps = [
            gradient_with(0.0, "dense", dtype),
            gradient_with(value, kind, dtype),
            gradient_with(0.0, "rows", dtype),
        ]
        for grad, dense in [*steps, (IndexedSlices(np.ones((1, 3), dtype), [2]), None)]:
            dense = densified(np.ones((1, 3)), [2], SHAPE) if dense is None else dense
            opt.apply_gradients([(grad, var)])
            reference.step([dense], lr=0.1, momentum=0.9)
        opt.flush()
        expected = {"rms": reference.rms[0], "momentum": reference.mom[0], "mg": reference.mg[0]}
        results.append((var, {name: opt.get_slot(var, name) for name in opt.get_slot_names()}))
    (clean, clean_slots), (var, slots) = results
    for name, array, without, wanted in [
        ("var", var, clean, reference.vars[0]),
        *((name, slots[name], clean_slots[name], expected[name]) for name in slots),
    ]:
        finite = np.isfinite(wanted)
        assert 0 < np.sum(~finite) <= 2, name
        assert (np.isfinite(array) == finite).all(), name
        assert (np.isnan(array) == np.isnan(wanted)).all(), name
        assert array[finite].tobytes() == without[finite].tobytes(), name


SIZES = {
    np.float32: [1e-45, 1e-38, 1e-22, 1e-10, 1e10, 1e18, 1e25, 1e38],
    np.float64: [5e-324, 1e-308, 1e-160, 1e-30, 1e30, 1e150, 1e200, 1e300],
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")  # of the reference
@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_and_huge_gradients(kind, momentum, centered, dtype):
    """Equal NumPy's arithmetic of the same dtype, where a square overflows or vanishes too."""
    sizes = np.array(SIZES[dtype] + [-size for size in SIZES[dtype]], dtype)[:, np.newaxis]
    opt, var = optimizer(momentum, centered), np.ones(sizes.shape, dtype)
    lr, rho, rest, m, eps = (dtype(number) for number in (0.1, 0.9, 1 - 0.9, 0.9, 1e-7))
    rms, mg, mom, expected = (np.full_like(var, start) for start in (0, 0, 0, 1))
    for _ in range(3):
        grad = IndexedSlices(sizes, np.arange(len(sizes))) if kind == "rows" else sizes
        opt.apply_gradients([(grad, var)])
        rms = rho * rms + rest * sizes**2
        mg = rho * mg + rest * sizes
        v = np.maximum(rms - mg**2, 0) if centered else rms
        step = lr * sizes / (np.sqrt(v + eps) if momentum else np.sqrt(v) + eps)
        mom = m * mom + step
        expected = expected - (mom if momentum else step)
    found = {"rms": rms, "momentum": mom, "mg": mg}
    # what is left of a denormal is rounded to whole steps of the smallest one
    near = {"rtol": 20 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).smallest_subnormal}
    np.testing.assert_allclose(var, expected, **near)
    for name in opt.get_slot_names():
        np.testing.assert_allclose(opt.get_slot(var, name), found[name], **near, err_msg=name)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.01}], ids=str)
@pytest.mark.parametrize(("momentum", "centered"), VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gradients_for_ever(settings, momentum, centered, dtype):
    """A gap of a million steps gives what dense steps with gradient 0 give, when rms has vanished in both."""
    dense, sparse = (optimizer(momentum, centered, **settings) for _ in range(2))
    var, other = np.ones(SHAPE, dtype), np.ones(SHAPE, dtype)
    rows = IndexedSlices(np.arange(1, 16, dtype=dtype).reshape(SHAPE), np.arange(5))
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(rows, array)])
    before = None
    for t in range(10_000):
        dense.apply_gradients([(np.zeros(SHAPE, dtype), var)])
        if t % 250 == 0:
            now = [array.tobytes() for array in (var, *dense.get_weights()[1:])]
            if now == before:  # no later step changes anything
                break
            before = now
    let_steps_pass(sparse, 10_000)
    for gap in (0, 1_000_000):
        let_steps_pass(sparse, gap)
        gathered = sparse.gather(other, np.arange(5))
        assert_close(gathered, var, 20 * TOLERANCE[dtype], "gathered", 1.0)
        sparse.flush()
        for name in sparse.get_slot_names():
            for opt, array in ((dense, var), (sparse, other)):
                left = opt.get_slot(array, name)
                # rounding to nearest keeps what is a few times the smallest number from vanishing
                assert (np.abs(left) <= 8 * np.finfo(dtype).smallest_subnormal).all(), name
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(rows, array)])
        opt.flush()
    assert_close(other, var, 20 * TOLERANCE[dtype], "after another step", 1.0)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # where the kernels run as plain Python
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy's, where nothing is compiled
def test_an_infinite_rms_does_not_become_nan_in_a_gap():
    """The square of a finite gradient may overflow: this step is then 0, and so are all later ones."""
    dense, sparse = RMSprop(0.1), RMSprop(0.1)
    var, other = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    huge = IndexedSlices(np.full((1, 3), 1e30, np.float32), [2])
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(huge, array)])
    for _ in range(3_000):
        dense.apply_gradients([(np.zeros(SHAPE, np.float32), var)])
    let_steps_pass(sparse, 3_000)
    for opt, array in ((dense, var), (sparse, other)):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 3), np.float32), [2]), array)])
    assert (other == var).all()
    assert (sparse.get_slot(other, "rms") == dense.get_slot(var, "rms")).all()


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


INTEGERS = [f"{order}{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8) for order in "<>"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_of_every_integer_dtype_and_byte_order(dtype):
    var, expected = np.zeros((130, 2)), np.zeros((130, 2))
    indices = np.array([0, 127, 3, 127], dtype)
    opt, same, values = RMSprop(0.1, momentum=0.9), RMSprop(0.1, momentum=0.9), np.arange(8.0).reshape(4, 2)
    for _ in range(2):
        opt.apply_gradients([(IndexedSlices(values, indices), var)])
        same.apply_gradients([(IndexedSlices(values, indices.astype(np.int64)), expected)])
    assert opt.gather(var, indices).tobytes() == same.gather(expected, [0, 127, 3, 127]).tobytes()
    assert var.tobytes() == expected.tobytes()
    with pytest.raises(IndexError, match=r"indices\[1\] is 127; expected 0 <= index < 100"):
        opt.apply_gradients([(IndexedSlices(values, indices), np.zeros((100, 2)))])


REFUSED = (ValueError, IndexError, TypeError)
FORMS = ("csr", "csc", "coo", "bsr", "lil", "dia", "dok")


def mutable(grad):
    """Return the attributes in which a sparse array stores its elements."""
    stored = {"csr": ["data", "indices", "indptr"], "coo": ["data", "row", "col"], "dia": ["data", "offsets"]}
    stored |= {"csc": stored["csr"], "bsr": stored["csr"], "lil": ["rows", "data"], "dok": ["_dict"]}
    return stored[grad.format]


numbers = st.one_of(st.integers(-3, 12), st.sampled_from([2**31 - 1, -(2**31), 2**31, 2**40, 2**63 - 1, -(2**63)]))
DTYPES_OF_ALL_KINDS = ["i4", "i8", "u8", ">i4", "f8", ">f8", "f4", "c16", "?", "O", "m8[s]"]


@st.composite
def broken(draw, form):
    """Return a function that returns a sparse array with one attribute changed behind SciPy's back.

    Not the array itself: Hypothesis would print it, and SciPy may raise at that."""
    dense = np.array([[1.0, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 4], [5, 0, 0, 6]])
    grad = scipy.sparse.bsr_array(dense, blocksize=(2, 2)) if form == "bsr" else scipy.sparse.coo_array(dense)
    grad = grad.asformat(form)
    name = draw(st.sampled_from(mutable(grad)))
    if form == "dok":
        grad.setdefault((draw(numbers), draw(numbers)), draw(st.sampled_from([1.0, "a", None])))
        return lambda: grad
    array = getattr(grad, name).copy()
    if form == "lil":
        row = draw(st.integers(0, 3))
        array[row] = draw(st.one_of(st.lists(numbers, max_size=5), st.just([None]), st.just([[1]])))
        array = array[: draw(st.integers(3, 4))]
    else:
        change = draw(st.sampled_from(["element", "dtype", "shorter", "longer", "axes"]))
        if change == "element":
            value = min(max(draw(numbers), -(2.0**62)), 2.0**62)
            array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
            array.flat[draw(st.integers(0, array.size - 1))] = value
        elif change == "dtype":
            array = array.astype(draw(st.sampled_from(DTYPES_OF_ALL_KINDS)))
        elif change == "axes":
            array = draw(st.sampled_from([array[np.newaxis], array[..., np.newaxis], array.reshape(-1), array.sum()]))
        else:
            array = array[:-1] if change == "shorter" else np.concatenate([array, array[-1:]])
    try:
        setattr(grad, name, array)
    except REFUSED:
        hypothesis.reject()
    return lambda: grad


def trained():
    """Return an optimizer between steps, its variables, and a function that returns all of their bytes."""
    opt, var, other = RMSprop(0.1, momentum=0.9), np.ones((4, 4)), np.ones(3)
    opt.apply_gradients([(np.ones(3), other), (IndexedSlices(np.ones((2, 4)), [1, 1]), var)])
    opt.apply_gradients([(np.ones(3), other), (IndexedSlices(np.ones((1, 4)), [2]), var)])
    return opt, var, other, lambda: (state_of(opt, [var, other]), has_marked_rows(opt, var))


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_broken_sparse_arrays_are_refused_before_anything_is_written(form, data):
    grad = data.draw(broken(form))()
    opt, var, other, state = trained()
    before = state()
    try:
        opt.apply_gradients([(np.ones(3), other), (grad, var)])
    except REFUSED:
        assert state() == before
    else:
        assert opt.iterations == 3
        assert not has_marked_rows(opt, var)


@given(data=st.data())
def test_slices_that_changed_after_they_were_made(data):
    opt, var, other, state = trained()
    grad = IndexedSlices(np.ones((3, 4)), np.array([0, 3, 0]))
    before = state()
    if data.draw(st.booleans()):
        grad.indices[data.draw(st.integers(0, 2))] = min(data.draw(numbers), 2**63 - 1)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy 2.5 and later advise against it
            grad.values.shape = data.draw(st.sampled_from([(3, 2, 2), (4, 3), (12,), (2, 6), (3, 4)]))
    try:
        opt.apply_gradients([(np.ones(3), other), (grad, var)])
    except REFUSED:
        assert state() == before
    else:
        assert grad.values.shape == (3, 4)
        assert ((grad.indices >= 0) & (grad.indices < 4)).all()


arrays_of_all_kinds = st.one_of(
    st.sampled_from([None, "a", 3, -1, 1.5, np.nan, [], [[1], [1, 2]], {}, object()]),
    st.builds(
        np.ones, st.sampled_from([(), (3,), (4, 4), (1, 4), (16,)]), st.sampled_from(["f4", "f8", "i8", "c16", "O"])
    ),
)


@given(data=st.data())
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(data):
    opt, _, _, state = trained()
    opt.flush()
    weights, before = opt.get_weights(), state()
    for _ in range(data.draw(st.integers(1, 2))):
        change = data.draw(st.sampled_from(["replace", "drop", "insert"]))
        at = data.draw(st.integers(0, len(weights) - 1))
        if change == "replace":
            weights[at] = data.draw(arrays_of_all_kinds)
        elif change == "drop":
            weights.pop(at)
        else:
            weights.insert(at, data.draw(arrays_of_all_kinds))
    try:
        opt.set_weights(weights)
    except REFUSED:
        assert state() == before


values_of_all_kinds = st.one_of(
    st.sampled_from(
        [None, "a", "", -1, 2.0, 1e400, np.nan, [], {}, {"class_name": "X"}, {"class_name": 3, "config": 0}]
    ),
    st.floats(),
    st.text(max_size=3),
    st.dictionaries(st.sampled_from(["class_name", "config", "function"]), st.one_of(st.text(max_size=3), st.none())),
)


@given(name=st.sampled_from([*RMSprop().get_config(), "lr", "colour"]), value=values_of_all_kinds)
def test_configs_that_are_no_configs_are_refused(name, value):
    try:
        opt = RMSprop.from_config(RMSprop().get_config() | {name: value})
    except REFUSED:
        return
    opt.get_config()


def test_a_short_soak():
    program = Path(__file__).parents[1] / "support" / "soak.py"
    done = subprocess.run([sys.executable, program, "--rows", "100_000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] >= 100_000
