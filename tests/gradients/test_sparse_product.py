"""Products that are never formed: the bits of their entries written out, and the dense algorithm's numbers."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from reference import Reference, assert_close

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct

ROWS, COLUMNS = 12, 3
FORMATS = ("csr", "csc", "coo", "bsr", "lil", "dok", "dia")
VARIANTS = [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}]


def bags_of(seed, *, count=4, weighted=False, dtype=np.float32):
    """Return values, indices, offsets and weights of bags, of which some are empty, with rows that repeat."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 9))
    offsets = np.sort(np.append(rng.integers(0, n + 1, count - 1), 0))
    weights = rng.standard_normal(n).astype(dtype) if weighted else None
    return rng.standard_normal((count, COLUMNS)).astype(dtype), rng.integers(0, ROWS, n), offsets, weights


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weighted", [False, True])
@given(data=st.data())
def test_the_bits_of_the_entries_written_out(variant, weighted, data):
    clips = data.draw(st.sampled_from([{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5, "clipvalue": 0.4}]))
    mode = data.draw(st.sampled_from(["exact", "lazy"]))
    ours, theirs = (RMSprop(0.1, sparse_update=mode, **variant, **clips) for _ in range(2))
    var, other = (np.ones((ROWS, COLUMNS), np.float32) for _ in range(2))
    for seed in data.draw(st.lists(st.integers(0, 500), min_size=1, max_size=6)):
        product = SparseProduct.from_bags(*bags_of(seed, weighted=weighted))
        ours.apply_gradients([(product, var)])
        theirs.apply_gradients([(product.to_slices(), other)])
        assert var.tobytes() == other.tobytes()
    assert [a.tobytes() for a in ours.get_weights()] == [a.tobytes() for a in theirs.get_weights()]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_every_sparse_format_is_the_transposed_product(form, kind):
    dense = np.zeros((4, 6))
    dense[[0, 0, 3, 3], [1, 4, 0, 1]] = [1, -2, 3, 0.5]
    matrix, values = getattr(scipy.sparse, f"{form}_{kind}")(dense), np.random.default_rng(0).standard_normal((4, 2))
    var = np.ones((6, 2))
    RMSprop(0.1, momentum=0.5).apply_gradients([(SparseProduct(matrix, values), var)])
    reference = Reference([np.ones((6, 2))], momentum=True)
    reference.step([dense.T @ values], lr=0.1, momentum=0.5)
    assert_close(var, reference.vars[0], 1e-12)


def test_entries_written_out():
    product = SparseProduct.from_entries(np.arange(4.0).reshape(2, 2), [5, 5, 1], [1, 0, 1], [2, 1, -1])
    slices = product.to_slices()
    assert slices.values.tolist() == [[4, 6], [0, 1], [-2, -3]]
    assert slices.indices.tolist() == [5, 5, 1]


def test_duplicates_within_a_matrix_and_zeros_that_are_stored():
    matrix = scipy.sparse.csr_array((np.array([1.0, 2.0, 0.0]), np.array([3, 3, 1]), np.array([0, 2, 3])), (2, 5))
    opt, var = RMSprop(0.1, weight_decay=1.0, sparse_update="lazy"), np.ones((5, 1))
    opt.apply_gradients([(SparseProduct(matrix, np.ones((2, 1))), var)])
    reference = Reference([np.ones((5, 1))])
    reference.step([matrix.toarray().T @ np.ones((2, 1))], lr=0.1, weight_decay=1.0, touched=[[1, 3]])
    assert_close(var, reference.vars[0], 1e-12)


@pytest.mark.parametrize("dtype", [bool, np.int64])
def test_matrices_of_integers(dtype):
    matrix = scipy.sparse.csr_array(np.eye(3, 4, dtype=dtype))
    var = np.ones((4, 2), np.float32)
    RMSprop(0.1).apply_gradients([(SparseProduct(matrix, np.ones((3, 2), np.float32)), var)])
    assert (var[:3] < 1).all()
    assert (var[3] == 1).all()


@pytest.mark.parametrize("shape", [(7,), (7, 2, 2)])
def test_variables_of_other_shapes(shape):
    rng = np.random.default_rng(0)
    product = SparseProduct.from_bags(rng.standard_normal((2, *shape[1:])), [6, 0, 6], [0, 1], [1.0, 2.0, 3.0])
    for var in (np.ones(shape), np.ones([2 * n for n in shape])[tuple(slice(None, None, 2) for _ in shape)]):
        expected = np.ones(shape)
        RMSprop(0.1).apply_gradients([(product.to_slices(), expected)])
        RMSprop(0.1).apply_gradients([(product, var)])
        assert (var == expected).all()


def test_the_mean_of_bags():
    values, indices, offsets = np.ones((3, 2)), [0, 1, 2, 2, 3], [0, 3, 3]
    var, expected = np.ones((4, 2)), np.ones((4, 2))
    RMSprop(0.1).apply_gradients([(SparseProduct.from_bags(values, indices, offsets, mode="mean"), var)])
    shares = np.array([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    grads = IndexedSlices(np.repeat(shares[:, None], 2, axis=1), indices)
    RMSprop(0.1).apply_gradients([(grads, expected)])
    np.testing.assert_allclose(var, expected, rtol=1e-12)


def test_the_same_bits_at_any_number_of_threads(threads, launches):
    rng = np.random.default_rng(0)
    indices, offsets = rng.zipf(1.3, 3000) % 500, np.arange(0, 3000, 7)
    values, weights = rng.standard_normal((len(offsets), 5)), rng.standard_normal(3000)
    product = SparseProduct.from_bags(values, indices, offsets, weights)
    var, other = np.ones((500, 5)), np.ones((500, 5))
    RMSprop(clipnorm=1.0).apply_gradients([(product, var)])
    order = np.argsort(indices, kind="stable")  # rows in another order, the entries of each in the same one
    moved = SparseProduct.from_entries(values, indices[order], product.sources[order], weights[order])
    RMSprop().apply_gradients([(product, other)])
    alone = np.ones((500, 5))
    RMSprop().apply_gradients([(moved, alone)])
    assert other.tobytes() == alone.tobytes()
    sums = RMSprop().gather_sum(var, indices, offsets, weights)
    expected = np.add.reduceat(var[indices] * weights[:, None], offsets)
    np.testing.assert_allclose(sums, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_rows_of_any_width(dtype):
    """Rows are added up in registers, some columns at a time: the bits are those of one entry after the other."""
    rng = np.random.default_rng(0)
    indices, offsets = rng.integers(0, 6, 40), np.array([0, 1, 12, 12])
    for columns in (1, 7, 8, 15, 16, 18, 31, 33, 63, 64, 65, 80, 130):
        values, table = (rng.standard_normal((n, columns)).astype(dtype) for n in (4, 6))
        product = SparseProduct.from_bags(values, indices, offsets, rng.standard_normal(40).astype(dtype))
        slices = product.to_slices()
        rows, sums = np.unique(indices), np.zeros((6, columns), dtype)
        for k, row in enumerate(indices):
            sums[row] = slices.values[k] if k == np.argmax(indices == row) else sums[row] + slices.values[k]
        alone = table.copy()
        RMSprop(0.1).apply_gradients([(IndexedSlices(sums[rows], rows), alone)])
        for grad in (product, slices):
            var = table.copy()
            RMSprop(0.1).apply_gradients([(grad, var)])
            assert var.tobytes() == alone.tobytes()
        expected = np.zeros((4, columns), dtype)
        for k, bag in enumerate(product.sources):
            entry = table[indices[k]] * product.weights[k]
            expected[bag] = entry if k == offsets[bag] else expected[bag] + entry
        assert RMSprop().gather_sum(table, indices, offsets, product.weights).tobytes() == expected.tobytes()


def test_a_gradient_in_the_memory_of_its_variable():
    var, expected = np.arange(1.0, 13.0).reshape(6, 2), np.arange(1.0, 13.0).reshape(6, 2)
    RMSprop(0.1).apply_gradients([(IndexedSlices(expected[[0, 0, 1]], [0, 5, 0]), expected)])
    RMSprop(0.1).apply_gradients([(SparseProduct.from_entries(var[:2], [0, 5, 0], [0, 0, 1]), var)])
    assert (var == expected).all()


def test_what_is_not_finite_is_named():
    values = np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, np.inf]])
    opt, var = RMSprop(check_finite=True), np.ones((9, 2))
    with pytest.raises(FloatingPointError, match=r"got inf at \[4, 1\] \(indices\[2\]\)"):
        opt.apply_gradients([(SparseProduct.from_bags(values, [3, 5, 4], [0, 2, 2]), var)])
    assert (var == 1).all()
    large = np.full((1, 2), 1e300)
    with pytest.raises(FloatingPointError, match=r"got inf at \[7, 0\]"):
        opt.apply_gradients([(SparseProduct.from_bags(large, [7], [0], [1e300]), var)])
    many = SparseProduct.from_bags(np.append(np.ones((1, 2)), values[1:2], axis=0), [6] * 5000, [0, 4999])
    with pytest.raises(FloatingPointError, match=r"got nan at \[6, 0\] \(indices\[4999\]\)"):
        opt.apply_gradients([(many, var)])
    opt.apply_gradients([(SparseProduct.from_bags(values, [3, 5], [0, 2, 2]), var)])  # the NaN is that of an empty bag
    assert np.isfinite(var).all()


def test_a_delta_holds_the_rows_of_a_product(tmp_path):
    opt, var = RMSprop(0.1), np.ones((50, 2))
    opt.build([var])
    opt.apply_gradients([(SparseProduct.from_bags(np.ones((1, 2)), [3], [0]), var)])
    opt.save(tmp_path / "all")
    opt.apply_gradients([(SparseProduct.from_bags(np.ones((2, 2)), [7, 9, 7], [0, 1]), var)])
    opt.save_delta(tmp_path / "delta")
    loaded = np.zeros((50, 2))
    RMSprop.load([tmp_path / "all", tmp_path / "delta"], [loaded])
    assert loaded.tobytes() == var.tobytes()


REFUSED = {
    "offsets that fall": (lambda v: SparseProduct.from_bags(v, [1, 2, 3], [0, 2, 1]), r"offsets\[2\] is 1; .* 2"),
    "offsets beyond": (lambda v: SparseProduct.from_bags(v, [1, 2], [0, 1, 3]), r"offsets\[2\] is 3; .* at most .* 2"),
    "offsets not from 0": (lambda v: SparseProduct.from_bags(v, [1, 2], [1, 1, 2]), r"offsets\[0\] is 1; expected 0"),
    "last offset": (
        lambda v: SparseProduct.from_bags(v, [1, 2], [0, 1, 1, 1], include_last_offset=True),
        r"offsets\[3\] is 1; expected the number of indices, 2",
    ),
    "no offset": (lambda v: SparseProduct.from_bags(v, [1], [], include_last_offset=True), "at least the last one"),
    "no bags": (lambda v: SparseProduct.from_bags(v[:0], [1], []), "expected a bag for 1 indices"),
    "no offsets": (lambda v: SparseProduct.from_bags(v, [1, 2]), "offsets: expected where each bag begins"),
    "offsets of two axes": (lambda v: SparseProduct.from_bags(v, [1, 2], [[0], [1]]), "offsets: expected shape"),
    "offsets that are no integers": (lambda v: SparseProduct.from_bags(v, [1], [0.0]), "offsets: expected integers"),
    "fewer weights": (
        lambda v: SparseProduct.from_bags(v, [1, 2], [0, 1, 1], [1.0]),
        r"weights: expected shape \(2,\)",
    ),
    "weights of another dtype": (
        lambda v: SparseProduct.from_bags(v, [1], [0, 1, 1], np.ones(1, np.float32)),
        "weights: expected dtype float64, got float32",
    ),
    "weighted mean": (lambda v: SparseProduct.from_bags(v, [1], [0, 1, 1], [1.0], "mean"), "weights: expected None"),
    "mode": (lambda v: SparseProduct.from_bags(v, [1], [0, 1, 1], mode="max"), "mode: expected one of"),
    "fewer values": (lambda v: SparseProduct.from_bags(v, [1], [0, 1]), r"values .*: expected shape \(2, ...\)"),
    "a source that is none": (lambda v: SparseProduct.from_entries(v, [1], [3]), r"sources\[0\] is 3; .* source < 3"),
    "a negative source": (lambda v: SparseProduct.from_entries(v, [1, 1], [0, -1]), r"sources\[1\] is -1"),
    "fewer sources": (lambda v: SparseProduct.from_entries(v, [1, 2], [0]), "sources of SparseProduct: expected one"),
    "no matrix": (lambda v: SparseProduct(np.eye(3), v), "expected a scipy.sparse array, got numpy.ndarray"),
    "a vector": (lambda v: SparseProduct(scipy.sparse.coo_array(np.ones(3)), v), r"\(examples, rows\), got \(3,\)"),
    "a matrix of another dtype": (
        lambda v: SparseProduct(scipy.sparse.eye_array(3, 9, dtype=np.float32), v),
        r"matrix of SparseProduct: expected dtype float64, got float32; convert them, with .astype\(float64\)",
    ),
    "fewer columns": (lambda v: SparseProduct(scipy.sparse.eye_array(3, 8), v), "a column for each of 9 rows, got 8"),
    "fewer examples": (lambda v: SparseProduct(scipy.sparse.eye_array(2, 9), v), r"expected shape \(2, ...\)"),
    "an index beyond": (lambda v: SparseProduct.from_bags(v, [1, 9], [0, 1, 1]), r"indices\[1\] is 9; .* index < 9"),
    "rows of another length": (lambda v: SparseProduct.from_bags(v[:, :1], [1], [0, 1, 1]), r"shape \(3, 2\), got"),
    "values of another dtype": (
        lambda v: SparseProduct.from_bags(v.astype(np.float32), [1], [0, 1, 1]),
        "expected dtype float64, got float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named_and_nothing_is_written(case):
    make, message = REFUSED[case]
    opt, var = RMSprop(0.1), np.ones((9, 2))
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        opt.apply_gradients([(make(np.ones((3, 2))), var)])
    assert (var == 1).all()
    assert opt.iterations == 0


def test_arrays_that_were_changed_since_are_refused():
    product = SparseProduct.from_entries(np.ones((2, 2)), [1, 2], np.array([0, 1], np.int32))
    product.sources[1] = 2
    opt, var, other = RMSprop(), np.ones((9, 2)), np.ones(3)
    with pytest.raises(IndexError, match="sources were changed: make the product anew"):
        opt.apply_gradients([(product, var)])
    for name in ("indices", "sources", "weights"):
        changed = SparseProduct.from_entries(np.ones((2, 2)), np.array([1, 2]), np.array([0, 1], np.int32), np.ones(2))
        object.__setattr__(changed, name, getattr(changed, name).reshape(2, 1))
        with pytest.raises(ValueError, match=r"expected arrays of one shape \(n,\)"):
            opt.apply_gradients([(np.ones(3), other), (changed, var)])
        assert (other == 1).all()
    with pytest.raises(ValueError, match="0-d variable has no rows"):
        opt.apply_gradients([(SparseProduct.from_bags(np.ones(1), [0], [0]), np.array(1.0))])
    assert (var == 1).all()
    assert repr(product) == "<SparseProduct: 2 entries, values float64 (2, 2)>"
    assert "of 9 rows" in repr(SparseProduct(scipy.sparse.eye_array(2, 9), np.ones((2, 2))))


# Reading


@given(seed=st.integers(0, 500), weighted=st.booleans(), steps=st.integers(0, 3))
def test_sums_of_bags_are_those_of_current_rows(seed, weighted, steps):
    opt, var = RMSprop(0.1, momentum=0.9), np.random.default_rng(seed).standard_normal((ROWS, COLUMNS))
    for step in range(steps):
        opt.apply_gradients([(SparseProduct.from_bags(*bags_of(seed + step + 1, dtype=np.float64)), var)])
    _, indices, offsets, weights = bags_of(seed, weighted=weighted, dtype=np.float64)
    found = opt.gather_sum(var, indices, offsets, weights)
    opt.flush()
    expected = np.zeros((len(offsets), COLUMNS))
    bag = np.searchsorted(offsets, np.arange(len(indices)), side="right") - 1
    np.add.at(expected, bag, var[indices] * (1.0 if weights is None else weights[:, None]))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_forms_of_bags():
    var, opt = np.arange(10.0).reshape(5, 2), RMSprop()
    expected = np.array([[6, 8], [0, 0], [2, 3]])
    assert (opt.gather_sum(var, [0, 3, 1], [0, 2, 2]) == expected).all()
    assert (opt.gather_sum(var, [0, 3, 1], [0, 2, 2, 3], include_last_offset=True) == expected).all()
    assert (opt.gather_sum(var, [[0, 3], [1, 1]]) == [[6, 8], [4, 6]]).all()
    assert (opt.gather_sum(var, [0, 3, 1], [0, 2, 2], mode="mean") == [[3, 4], [0, 0], [2, 3]]).all()
    assert (opt.gather_sum(np.arange(5.0), [0, 3, 1], [0, 2, 2]) == [3, 0, 1]).all()
    out = np.empty((3, 2))
    assert opt.gather_sum(var, [0, 3, 1], [0, 2, 2], out=out) is out
    assert opt.gather_sum(var, [], []).shape == (0, 2)
    read_only = var.copy()
    read_only.flags.writeable = False
    assert (opt.gather_sum(read_only, [0, 3, 1], [0, 2, 2]) == expected).all()
    assert (opt.gather_sum(np.asfortranarray(var), [0, 3, 1], [0, 2, 2]) == expected).all()


def test_a_sparse_matrix_times_rows_that_are_behind():
    opt, var = RMSprop(0.1, momentum=0.9), np.ones((6, 2), np.float32)
    for row in (0, 1, 0):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2), np.float32), [row]), var)])
    matrix = scipy.sparse.random_array((4, 6), density=0.5, rng=np.random.default_rng(0), dtype=np.float32)
    found = opt.multiply(matrix, var)
    opt.flush()
    np.testing.assert_allclose(found, matrix @ var, rtol=1e-6)
    with pytest.raises(ValueError, match="a column for each of 6 rows of the variable, got 5"):
        opt.multiply(matrix.tocsr()[:, :5], var)
    with pytest.raises(TypeError, match=r"matrix: expected a scipy\.sparse array"):
        opt.multiply(np.eye(6), var)
    with pytest.raises(IndexError, match=r"indices\[1\] is 6"):
        opt.gather_sum(var, [0, 6], [0])
    with pytest.raises(ValueError, match="out: expected a C-contiguous array"):
        opt.gather_sum(var, [0, 1], [0], out=np.empty((2, 2), np.float32))


def test_weights_where_the_sums_go_and_where_rows_are_caught_up():
    opt, var = RMSprop(0.1, momentum=0.9), np.ones((6, 2))
    for row in (0, 1):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), var)])
    weights = var.reshape(-1)[:2]  # of row 0, which is behind
    before = weights.copy()
    found = opt.gather_sum(var, [0, 0], [0], weights)
    np.testing.assert_allclose(found[0], var[0] * before.sum())
    other = np.full((6, 2), 5.0)
    out, expected = np.ones((2, 2)), np.full((2, 2), 5.0)
    assert (opt.gather_sum(other, [3, 3], [0, 1], out.reshape(-1)[:2], out=out) == expected).all()
    read_only = np.ones(2)
    read_only.flags.writeable = False
    assert (opt.gather_sum(other, [3, 3], [0, 1], read_only) == expected).all()
    with pytest.raises(TypeError, match="must be a NumPy array"):
        opt.gather_sum([[1.0]], [0], [0])


def test_a_strided_table_of_three_axes_is_summed_when_it_is_behind():
    opt, var = RMSprop(0.1, momentum=0.9), np.ones((8, 4, 4))[::2, ::2, ::2]
    for row in (0, 1):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 2, 2)), [row]), var)])
    found = opt.gather_sum(var, [0, 1, 0], [0, 2])
    opt.flush()
    np.testing.assert_allclose(found, [var[0] + var[1], var[0]])


def test_a_loss_that_is_scaled_takes_a_product():
    var, expected = np.ones((6, 2)), np.ones((6, 2))
    matrix = scipy.sparse.eye_array(3, 6, format="csr")
    product = SparseProduct(matrix, np.ones((3, 2)))
    RMSprop(0.1).minimize(lambda: 0.0, [var], grad_loss=2.0, jac=lambda: [product])
    RMSprop(0.1).apply_gradients([(SparseProduct(matrix, np.full((3, 2), 2.0)), expected)])
    assert (var == expected).all()


def test_rows_that_another_optimizer_has_left_behind_are_caught_up():
    var = np.ones((6, 2))
    first, second = RMSprop(0.1, momentum=0.9), RMSprop()
    for row in (0, 1):
        first.apply_gradients([(IndexedSlices(np.ones((1, 2)), [row]), var)])
    found = second.gather_sum(var, [0, 1], [0])
    first.flush()
    np.testing.assert_allclose(found[0], var[0] + var[1])
