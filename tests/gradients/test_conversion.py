"""Kinds of gradients: dense, indexed, every format of scipy.sparse; and those that are refused."""

import numpy as np
import pytest
import scipy.sparse
from optimizer_internals import state_of
from reference import Reference, assert_close
from strategies import SPARSE_KINDS, unsorted_csr

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct

FORMATS = ("csr", "csc", "coo", "bsr", "lil", "dok", "dia")


def step(grad, var):
    RMSprop(0.1).apply_gradients([(grad, var)])
    return var


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_sparse_format(form, kind, dtype):
    dense = np.zeros((5, 4), dtype)
    dense[[0, 3, 3], [1, 0, 2]] = [1, 2, 3]
    grad = getattr(scipy.sparse, f"{form}_{kind}")(dense)
    before = grad.copy().toarray()
    expected = step(dense, np.ones((5, 4), dtype))
    assert (step(grad, np.ones((5, 4), dtype)) == expected).all()
    assert (grad.toarray() == before).all()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_one_dimensional_variables_take_a_row_or_a_column(form, shape):
    dense = np.array([0, 1, 0, 0, 2, 0.0])
    grad = getattr(scipy.sparse, f"{form}_array")(dense.reshape(shape))
    assert (step(grad, np.ones(6)) == step(dense, np.ones(6))).all()


@pytest.mark.parametrize("form", ["csr", "coo"])
def test_one_dimensional_sparse_arrays(form):
    dense = np.array([0, 1, 0, 0, 2, 0.0])
    grad = getattr(scipy.sparse, f"{form}_array")(dense)
    assert (step(grad, np.ones(6)) == step(dense, np.ones(6))).all()


def test_sparse_arrays_of_three_axes():
    dense = np.zeros((3, 2, 2))
    dense[1, 0, 1], dense[2, 1, 1] = 1, 2
    for var in (np.ones((3, 2, 2)), np.ones((6, 4, 4))[::2, ::2, ::2]):
        step(scipy.sparse.coo_array(dense), var)
        assert (var == step(dense, np.ones((3, 2, 2)))).all()


def test_sparse_gradients_are_not_changed():
    data, rows, columns = np.arange(1.0, 6.0), np.array([1, 0, 1, 1, 0]), np.array([2, 0, 2, 0, 0])
    for grad in (unsorted_csr(data, rows, columns, (3, 4)), scipy.sparse.coo_array((data, (rows, columns)), (3, 4))):
        arrays = [grad.data, *((grad.indices, grad.indptr) if grad.format == "csr" else grad.coords)]
        before = [array.copy() for array in arrays]
        opt, var = RMSprop(0.1, clipnorm=0.5), np.ones((3, 4))
        opt.apply_gradients([(grad, var)])
        assert [a.tobytes() for a in arrays] == [b.tobytes() for b in before]
        assert grad.nnz == 5
        reference = Reference([np.ones((3, 4))])
        reference.step([grad.toarray()], lr=0.1, clipnorm=0.5)
        assert_close(var, reference.vars[0], 1e-12)


def test_a_stored_zero_touches_its_row():
    opt, var = RMSprop(0.1, weight_decay=1.0, sparse_update="lazy"), np.ones((3, 2))
    opt.apply_gradients([(scipy.sparse.csr_array(([0.0], ([1], [0])), (3, 2)), var)])
    np.testing.assert_allclose(var, [[1, 1], [0.9, 0.9], [1, 1]])


def test_empty_indices_are_a_step():
    opt, var = RMSprop(0.1), np.ones((3, 2))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [0]), var)])
    assert opt.apply_gradients([(IndexedSlices(np.empty((0, 2)), []), var)]) == 2
    assert opt.apply_gradients([(scipy.sparse.csr_array((3, 2)), var)]) == 3
    np.testing.assert_allclose(opt.get_slot(var, "rms")[0], 0.1 * 0.9**2)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_every_integer_type_of_indices(dtype):
    var = step(IndexedSlices(np.ones((2, 1)), np.array([0, 2], dtype)), np.zeros((3, 1)))
    assert (var != 0).ravel().tolist() == [True, False, True]


def test_lists_and_numbers_are_gradients():
    assert step([1.0, 2.0], np.zeros(2, np.float32))[0] < 0
    assert step(1.0, np.array(0.0)) < 0
    assert step(IndexedSlices([[1.0]], [1]), np.zeros((2, 1)))[1, 0] < 0


def test_read_only_and_strided_gradients():
    grad = np.arange(24.0).reshape(3, 8)[:, ::2]
    expected = step(grad.copy(), np.ones((3, 4)))
    grad.flags.writeable = False
    assert (step(grad, np.ones((3, 4))) == expected).all()
    assert (step(IndexedSlices(grad, [0, 1, 2]), np.ones((3, 4))) == expected).all()


def test_unaligned_gradients():
    raw = np.zeros(8 * 6 + 1, np.uint8)
    grad = raw[1:].view(np.float64)
    grad[:] = 1
    assert not grad.flags.aligned
    assert (step(grad, np.ones(6)) == step(np.ones(6), np.ones(6))).all()


@pytest.mark.parametrize("columns", [2, 3000])  # gradients of small variables are copied in any case
def test_gradients_in_the_memory_of_the_variable(columns):
    # a step must not read what it has just written
    def cases(table):
        yield table[::-1, ::-1]
        yield IndexedSlices(table[:5], np.arange(1, 6))
        yield scipy.sparse.csr_array((table.reshape(-1)[:4], [1, 0, 1, 0], [0, 0, 0, 0, 1, 2, 4]), (6, columns))

    start = 1.0 + np.arange(6.0 * columns).reshape(6, columns)
    for i, apart in enumerate(cases(start.copy())):
        table = start.copy()
        step(list(cases(table))[i], table)
        assert (table == step(apart, start.copy())).all()


VAR = np.ones((3, 2), np.float32)
GOOD = np.ones((3, 2), np.float32)
ROW = np.ones((1, 2), np.float32)
BAD = {
    "wrong shape": (np.ones((2, 3), np.float32), ValueError, r"expected shape \(3, 2\), got \(2, 3\)"),
    "no broadcasting": (np.ones((1, 2), np.float32), ValueError, r"expected shape \(3, 2\)"),
    "float64 for float32": (np.ones((3, 2)), TypeError, "expected dtype float32, got float64"),
    "integers": (np.ones((3, 2), int), TypeError, "expected dtype float32, got int64"),
    "complex": (np.ones((3, 2), np.complex64), TypeError, "expected dtype float32, got complex64"),
    "other byte order": (np.ones((3, 2), ">f4"), TypeError, "expected dtype float32, got >f4"),
    "objects": (np.full((3, 2), None), TypeError, "got object"),
    "a string": ("gradient", TypeError, "expected an array"),
    "masked": (np.ma.ones((3, 2), np.float32), TypeError, "masked array; fill it first"),
    "sparse, wrong shape": (scipy.sparse.csr_array((2, 3), dtype=np.float32), ValueError, r"got \(2, 3\)"),
    "sparse, wrong dtype": (scipy.sparse.csr_array((3, 2)), TypeError, "expected dtype float32, got float64"),
    "too large": (IndexedSlices(ROW, [3]), IndexError, r"indices\[0\] is 3; expected 0 <= index < 3"),
    "negative": (
        IndexedSlices(np.ones((3, 2), np.float32), [1, -1, 7]),
        IndexError,
        r"indices\[1\] is -1; expected 0 <= index < 3",
    ),
    "beyond int64": (IndexedSlices(ROW, np.array([2**63], np.uint64)), IndexError, "is 9223372036854775808"),
    "slices, wrong row": (IndexedSlices(np.ones((1, 3), np.float32), [0]), ValueError, r"values of shape \(1, 2\)"),
    "slices, dense_shape": (IndexedSlices(ROW, [0], (4, 2)), ValueError, r"dense_shape \(3, 2\), got \(4, 2\)"),
    "slices, wrong dtype": (IndexedSlices(np.ones((1, 2)), [0]), TypeError, "expected dtype float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_gradients_leave_every_byte(case):
    grad, error, message = BAD[case]
    opt, var, other = RMSprop(0.1, momentum=0.9), VAR.copy(), np.ones(4, np.float32)
    opt.apply_gradients([(np.ones(4, np.float32), other), (IndexedSlices(ROW, [1]), var)])
    before = state_of(opt, [var, other])
    with pytest.raises(error, match=message) as caught:
        opt.apply_gradients([(np.ones(4, np.float32), other), (grad, var)])
    assert "variable 1 (float32, shape (3, 2))" in str(caught.value)
    assert state_of(opt, [var, other]) == before


@pytest.mark.parametrize("case", BAD)
def test_a_refused_first_call_leaves_no_slots(case):
    grad, error, _ = BAD[case]
    opt = RMSprop(0.1)
    with pytest.raises(error):
        opt.apply_gradients([(grad, VAR.copy())])
    assert len(opt.weights) == 1


def test_slices_for_a_variable_without_rows():
    with pytest.raises(ValueError, match="a 0-d variable has no rows"):
        step(IndexedSlices([1.0], [0]), np.array(1.0))


@pytest.mark.parametrize(
    ("values", "indices", "error", "message"),
    [
        (np.ones((2, 3)), [0], ValueError, r"expected shape \(1, ...\), a row for each index, got \(2, 3\)"),
        (np.ones((2, 3)), [[0, 1]], ValueError, r"expected shape \(n,\), got \(1, 2\)"),
        (np.ones((2, 3)), [0.0, 1.0], TypeError, "expected integers, got float64"),
        (np.ones((2, 3)), [True, False], TypeError, "expected integers, got bool"),
        (1.0, [0], ValueError, "a row for each index"),
        (np.ma.ones((1, 3)), [0], TypeError, "got a masked array"),
    ],
)
def test_malformed_slices(values, indices, error, message):
    with pytest.raises(error, match=message):
        IndexedSlices(values, indices)


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_wrong_index_arrays(form):
    # SciPy checks them only when it makes the array
    grad = scipy.sparse.coo_array(([1.0, 2.0], ([0, 2], [0, 1])), (3, 2)).asformat(form)
    (grad.coords[0] if form == "coo" else grad.indices)[1] = 1000
    with pytest.raises(IndexError, match=r"variable 0 \(float64, shape \(3, 2\)\).*indices\[1\].*1000"):
        step(grad, np.ones((3, 2)))


def test_wrong_columns_of_lil_and_bsr_arrays():
    lists = scipy.sparse.lil_array((3, 2))
    lists[0, 1] = 1.0
    lists.rows[0] = [10**7]
    blocks = scipy.sparse.bsr_array(np.ones((4, 4)), blocksize=(2, 2))
    blocks.indices[1] = 10**6
    for grad, var in ((lists, np.ones((3, 2))), (blocks, np.ones((4, 4)))):
        with pytest.raises(IndexError, match=r"array is 10+, out of range"):
            step(grad, var)


@pytest.mark.parametrize("form", ["csr", "csc", "bsr"])
def test_the_first_column_that_there_is_not(form):
    grad = scipy.sparse.coo_array(np.eye(3)).asformat(form)
    grad.indices[2] = 3
    with pytest.raises(IndexError, match=f"indices.2. of the {form} array is 3, out of range"):
        step(grad, np.ones((3, 3)))


def test_an_indptr_for_more_rows_than_there_are():
    grad = scipy.sparse.csr_array(np.eye(2, 3))
    grad.indptr = np.array([0, 1, 2, 2, 2], np.int32)
    with pytest.raises(ValueError, match="indptr of the csr array does not fit"):
        step(grad, np.ones((2, 3)))


def test_sparse_arrays_without_rows():
    assert step(scipy.sparse.coo_array((0, 2, 2)), np.ones((0, 2, 2))).shape == (0, 2, 2)


def test_empty_views_of_one_array_do_not_overlap():
    base = np.ones((3, 2))
    opt = RMSprop()
    assert opt.apply_gradients([(np.ones((0, 2)), base[:0]), (np.ones((0, 2)), base[1:1])]) == 1


@pytest.mark.parametrize("indptr", [[0, 5, 1, 2], [0, 1, 1, 9], [1, 1, 1, 2]])
def test_wrong_indptr(indptr):
    grad = scipy.sparse.csr_array(([1.0, 2.0], ([0, 2], [0, 1])), (3, 2))
    grad.indptr[:] = indptr
    with pytest.raises(ValueError, match="indptr of the csr array does not fit"):
        step(grad, np.ones((3, 2)))


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_fewer_values_than_indices(form):
    grad = scipy.sparse.coo_array(([1.0, 2.0], ([0, 2], [0, 1])), (3, 2)).asformat(form)
    grad.data = grad.data[:1]
    with pytest.raises(ValueError, match=f"indptr of the {form} array does not fit its indices and data"):
        step(grad, np.ones((3, 2)))


@pytest.mark.parametrize("kind", ["dense", *SPARSE_KINDS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_finite(kind, bad):
    dense = np.array([[1.0, 0.0], [0.0, bad]])
    if kind == "dense":
        grad = dense
    elif kind == "rows":
        grad = IndexedSlices(dense, [0, 1])
    elif kind == "product":
        grad = SparseProduct.from_entries(dense, [0, 1], [0, 1])
    else:
        grad = getattr(scipy.sparse, kind if "_" in kind else f"{kind}_array")(dense)
    opt, other, var = RMSprop(0.1, momentum=0.9, check_finite=True), np.ones(3), np.ones((2, 2))
    opt.apply_gradients([(np.ones(3), other), (np.ones((2, 2)), var)])
    before = [array.tobytes() for array in (other, var, *opt.get_weights())]
    message = rf"gradient of variable 1 \(float64, shape \(2, 2\)\): expected finite .*got {bad} at \[1, 1\]"
    with pytest.raises(FloatingPointError, match=message):
        opt.apply_gradients([(np.ones(3), other), (grad, var)])
    assert [array.tobytes() for array in (other, var, *opt.get_weights())] == before


@pytest.mark.parametrize(
    ("grad", "shape", "place"),
    [
        (np.float64("nan"), (), r"\[\]"),
        (np.array([0.0, np.nan]), (2,), r"\[1\]"),
        (IndexedSlices([1.0, np.inf], [3, 2]), (4,), r"\[2\] \(indices\[1\]\)"),
        (IndexedSlices([[[1, 2], [3, 4]], [[1, 2], [np.nan, 4]]], [3, 2]), (4, 2, 2), r"\[2, 1, 0\] \(indices\[1\]\)"),
        (scipy.sparse.coo_array(([np.nan], ([2],)), (4,)), (4,), r"\[2\] \(indices\[0\]\)"),
        (scipy.sparse.coo_array(([1, np.nan], ([0, 2], [1, 0], [1, 1])), (3, 2, 2)), (3, 2, 2), r"\[2, 0, 1\]"),
        (
            scipy.sparse.csr_array(([1, np.inf], [0, 1], [0, 1, 1, 2, 2]), (4, 2)),
            (4, 2),
            r"\[2, 1\] \(stored entry 1\)",
        ),
    ],
    ids=range(7),
)
def test_check_finite_names_the_place_in_the_variable(grad, shape, place):
    with pytest.raises(FloatingPointError, match=rf"got (nan|inf) at {place}"):
        RMSprop(check_finite=True).apply_gradients([(grad, np.ones(shape))])


def test_check_finite_looks_at_stored_elements_only():
    grad = scipy.sparse.csr_array(([1.0, np.nan], [0, 1], [0, 1, 2]), (2, 2))
    grad.indptr[-1] = 1
    assert RMSprop(check_finite=True).apply_gradients([(grad, np.ones((2, 2)))]) == 1


def test_more_entries_than_kernels_can_chain(monkeypatch):
    for module in ("indexed_slices", "conversion"):
        monkeypatch.setattr(f"numba_rmsprop.gradients.{module}.MAX_ENTRIES", 3)
    with pytest.raises(ValueError, match="expected at most 3, got 4"):
        IndexedSlices(np.ones((4, 2)), [0, 1, 1, 0])
    var = np.ones(9)
    with pytest.raises(ValueError, match="expected at most 3 entries, got 4"):
        RMSprop().apply_gradients([(scipy.sparse.coo_array(([1.0] * 4, ([0, 1, 2, 3],)), shape=(9,)), var)])
    assert (var == 1).all()


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
