"""Rows that are scaled to a largest norm, or to norm 1, after the steps that write them."""

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.runtime import launching

NORMS = {0.7: (0.0, 0.7), "unit": (1.0, 1.0)}


def bounded(rows, low, high):
    """Return rows with norms within bounds, but for those that are 0 or not finite."""
    norms = np.sqrt((rows.reshape(len(rows), -1) ** 2).sum(axis=1))
    factors = np.ones(len(rows))
    scaled = np.isfinite(norms) & (norms > 0)
    factors[scaled] = np.clip(norms[scaled], low, high) / norms[scaled]
    return rows * factors.reshape(-1, *[1] * (rows.ndim - 1))


CASES = [
    *(
        (kind, dtype, norm, {})
        for kind in ("rows", "csr", "dense")
        for dtype in ("float64", "float32")
        for norm in NORMS
    ),
    ("rows", "float32", 0.7, {"weight_decay": 0.1}),
    ("rows", "float64", "unit", {"use_ema": True, "ema_momentum": 0.5}),
]


@pytest.mark.parametrize(("kind", "dtype", "norm", "options"), CASES)
def test_a_sparse_step_is_the_dense_one_with_all_rows_scaled(kind, dtype, norm, options):
    table = bounded(np.random.default_rng(0).standard_normal((12, 19)), *NORMS[norm]).astype(dtype)
    expected, opt, plain = table.copy(), RMSprop(0.3, row_norm=norm, **options), RMSprop(0.3, **options)
    for step in range(9):
        rng = np.random.default_rng(step)
        rows, values = rng.integers(0, 12, 5), rng.standard_normal((5, 19)).astype(dtype)
        dense = np.zeros((12, 19), dtype)
        np.add.at(dense, rows, values)
        grad = {"rows": IndexedSlices(values, rows), "csr": scipy.sparse.csr_array(dense), "dense": dense}[kind]
        opt.apply_gradients([(grad, table)])
        plain.apply_gradients([(dense, expected)])
        expected[...] = bounded(expected, *NORMS[norm])
    opt.flush()
    tolerance = {"float64": 1e-12, "float32": 2e-6}[dtype]
    np.testing.assert_allclose(table, expected, rtol=tolerance, atol=tolerance)
    if options.get("use_ema"):
        np.testing.assert_allclose(opt.average(table), plain.average(expected), rtol=tolerance, atol=tolerance)


def test_rows_that_no_step_writes_stay_as_they_are():
    table = np.full((4, 3), 5.0)
    opt = RMSprop(0.1, row_norm=1.0)
    opt.apply_gradients([(IndexedSlices(np.ones((2, 3)), [2, 2]), table)])
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), [75**0.5, 75**0.5, 1, 75**0.5])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("norm", [1.0, 0.3, "unit"])
def test_a_row_that_comes_twice_is_scaled_once(norm, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    computed = np.float64 if dtype == np.float64 else np.float32
    for seed in range(30):
        rng = np.random.default_rng(seed)
        start, grads = rng.standard_normal((6, 5)).astype(dtype), rng.integers(-3, 4, (8, 5)).astype(computed)
        rows = rng.integers(0, 6, 8)
        once, indices = np.zeros((6, 5), computed), np.unique(rows)
        np.add.at(once, rows, grads)
        found = []
        for grad in (IndexedSlices(grads, rows), IndexedSlices(once[indices], indices)):
            table = start.copy()
            RMSprop(0.1, row_norm=norm).apply_gradients([(grad, table)])
            found.append(table.tobytes())
        assert found[0] == found[1]


def test_lazy_rows_may_have_momentum():
    table = np.full((4, 3), 5.0)
    opt = RMSprop(0.1, momentum=0.9, weight_decay=0.1, sparse_update="lazy", row_norm="unit")
    for row in (2, 1, 2):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 3)), [row]), table)])
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), [75**0.5, 1, 1, 75**0.5])


def test_norms_by_the_names_of_variables():
    names = {"tables": np.full((3, 2), 4.0), "layer": np.full((3, 2), 4.0), "bias": np.full(2, 4.0)}
    opt = RMSprop(0.0, row_norm={"tables": "unit", "bias": 1.0})
    opt.build(names)
    opt.apply_gradients([(np.ones_like(var), var) for var in names.values()])
    np.testing.assert_allclose(names["tables"], 0.5**0.5)
    assert names["layer"].tolist() == [[4, 4]] * 3
    assert names["bias"].tolist() == [4, 4]  # one axis: its elements are no rows
    assert RMSprop.from_config(opt.get_config()).row_norm == {"tables": "unit", "bias": 1.0}
    with pytest.warns(UserWarning, match=r"no variable fits row_norm\['tables'\]"):
        RMSprop(row_norm={"tables": 1.0}).apply_gradients([(np.ones((2, 2)), np.ones((2, 2)))])


@pytest.mark.parametrize("rows", [None, [0, 2, 2]])
def test_strided_rows_of_three_axes(rows):
    base, alone = np.full((6, 4, 3), 2.0), np.full((3, 2, 3), 2.0)
    table = base[::2, ::2]
    grad = np.ones((3, 2, 3)) if rows is None else IndexedSlices(np.ones((3, 2, 3)), rows)
    for var in (table, alone):
        RMSprop(0.1, row_norm=0.5).apply_gradients([(grad, var)])
    assert table.tobytes() == alone.tobytes()
    np.testing.assert_allclose(np.linalg.norm(table[0]), 0.5)
    assert (base[1] == 2).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_large_small_and_infinite_rows(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    large = float(ml_dtypes.finfo(dtype).max) / 2
    small = float(ml_dtypes.finfo(dtype).smallest_normal)
    table = np.zeros((5, 9), dtype)
    table[0], table[1], table[2, 3], table[3, 4] = large, small, np.inf, np.nan
    opt = RMSprop(0.0, row_norm="unit")
    with np.errstate(all="ignore"):
        opt.apply_gradients([(np.ones(table.shape, np.float64 if dtype == np.float64 else np.float32), table)])
    found = table.astype(np.float64)
    tolerance = {2: 1e-2, 4: 1e-6, 8: 1e-14}[dtype.itemsize]
    np.testing.assert_allclose(found[:2], 1 / 3, rtol=tolerance)
    assert not np.isfinite(found[2:4]).all(axis=1).any()
    assert (found[4] == 0).all()


def test_the_same_bits_on_any_number_of_threads(monkeypatch):
    found = []
    for items in (1, 1 << 60):
        monkeypatch.setattr(launching, "SERIAL_ITEMS", items)
        table = np.random.default_rng(0).standard_normal((5000, 6))
        opt = RMSprop(0.1, row_norm=1.0)
        opt.apply_gradients([(IndexedSlices(np.ones((4000, 6)), np.arange(4000) % 2500), table)])
        opt.apply_gradients([(np.ones((5000, 6)), table)])
        found.append(table.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"row_norm": 0}, ValueError, "row_norm: expected 'unit' or a finite number above 0, got 0.0"),
        ({"row_norm": np.inf}, ValueError, "row_norm: expected 'unit' or a finite number above 0, got inf"),
        ({"row_norm": "max"}, ValueError, "row_norm: expected 'unit' or the largest norm of a row, got 'max'"),
        ({"row_norm": {"a": -1}}, ValueError, r"row_norm\['a'\]: expected 'unit' or a finite number above 0, got -1.0"),
        ({"row_norm": {3: 1.0}}, TypeError, "row_norm: expected a mapping of names of variables to norms, got"),
        (
            {"row_norm": 1.0, "momentum": 0.9},
            ValueError,
            "row_norm: expected None with momentum in exact mode, got 1.0",
        ),
        ({"row_norm": "unit", "weight_decay": 0.1}, ValueError, "row_norm: expected None with weight_decay in exact"),
        (
            {"row_norm": 1.0, "use_ema": True, "ema_overwrite_frequency": 2},
            ValueError,
            "row_norm: expected None with ema_overwrite_frequency in exact mode, got 1.0",
        ),
    ],
)
def test_norms_that_there_are_not(options, error, message):
    with pytest.raises(error, match=message):
        RMSprop(**options)
