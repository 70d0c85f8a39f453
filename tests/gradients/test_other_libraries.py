"""Arrays, sparse tensors and numbers of other libraries: taken by their protocols, or refused by their type."""

import array
from collections import namedtuple
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from numba_rmsprop import IndexedSlices, RMSprop
from numba_rmsprop.distributed import Uniform
from numba_rmsprop.distributed.initial_values import fill_shard
from numba_rmsprop.distributed.row_layout import Layout
from numba_rmsprop.distributed.table_arguments import checked_indices, checked_values
from numba_rmsprop.gradients.conversion import as_known
from numba_rmsprop.schedules import ExponentialDecay, PiecewiseConstantDecay

DENSE = np.array([[0, 0], [3, 4], [0, 0], [5, 0]], np.float32)

VALUES, ROWS = DENSE[[3, 1]], np.array([3, 1])


@dataclass
class Readable:
    """Array of another library that NumPy can read."""

    numbers: Any

    def __array__(self, dtype=None, copy=None):
        return np.array(self.numbers, dtype)


@dataclass
class Exchanged:
    """Array that only DLPack can read."""

    numbers: Any

    def __dlpack__(self, **options):
        return self.numbers.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.numbers.__dlpack_device__()


@dataclass
class Slices:
    """Stand-in for tf.IndexedSlices and tf.SparseTensor."""

    values: Any
    indices: Any
    dense_shape: Any


@dataclass
class Scattered:
    """Stand-in for an array of the package sparse."""

    matrix: Any

    def to_scipy_sparse(self):
        return self.matrix


class Unreadable:
    """Array with a dtype that NumPy can only wrap as an object, such as jax's BCOO."""

    dtype, shape = np.dtype(np.float32), (4, 2)


class OnADevice:
    dtype, shape = np.dtype(np.float32), (4, 2)

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("use .get() first")


def step(grad, var=None):
    var = np.ones((4, 2), np.float32) if var is None else var
    opt = RMSprop(0.1)
    opt.apply_gradients([(grad, var)])
    opt.apply_gradients([(grad, var)])
    return var


FOREIGN = {
    "__array__": Readable(DENSE),
    "DLPack": Exchanged(DENSE),
    "tf.IndexedSlices": Slices(Readable(VALUES), Readable(ROWS), Readable([4, 2])),
    "tf.IndexedSlices without a shape": Slices(Exchanged(VALUES), ROWS, None),
    "tf.SparseTensor": Slices(Readable(DENSE[DENSE != 0]), Readable(np.argwhere(DENSE)), Readable([4, 2])),
    "sparse.COO": Scattered(scipy.sparse.coo_array(DENSE)),
    "memmap-like": DENSE.view(np.memmap),
    "matrix": np.asmatrix(DENSE),
    "lists": DENSE.tolist(),
    "a buffer": memoryview(DENSE),
    "objects": Readable(DENSE.astype(object)),
    "fractions": [[Fraction(int(number)) for number in row] for row in DENSE],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_arrays_of_other_libraries_are_gradients(kind):
    assert (step(FOREIGN[kind]) == step(DENSE)).all()


@pytest.mark.parametrize("kind", FOREIGN)
def test_known_types_run_no_foreign_code(kind):
    known = as_known(FOREIGN[kind], "gradient")
    assert type(known) in (np.ndarray, IndexedSlices, list) or scipy.sparse.issparse(known)
    assert as_known(known, "gradient") is known or type(known) is list


def test_numbers_of_any_kind_are_gradients_of_numbers():
    expected = step(2.0, np.array(1.0))
    for number in (2, True + 1, Fraction(2), np.float64(2), np.array(2.0), Readable(2.0), [[2.0]][0][0]):
        assert step(number, np.array(1.0)) == expected
    assert step(array.array("f", [1, 2]), np.ones(2))[0] < 1


REFUSED = {
    "on a device": (OnADevice(), "got .*test_other_libraries.OnADevice.*: use .get.. first"),
    "unreadable": (Unreadable(), "expected an array, IndexedSlices.*, got .*test_other_libraries.Unreadable"),
    "objects": (Readable(np.full((4, 2), None)), "got .*test_other_libraries.Readable"),
    "a set": ({1.0}, "expected an array, IndexedSlices.* or a scipy.sparse array, got set"),
    "an object": (object(), "got object"),
    "text": ("gradient", "got str"),
    "text in lists": ([["1", "2"]] * 4, "got list"),
    "None in lists": ([[None, 1.0]] * 4, "got list"),
    "ragged lists": ([[1.0], [1.0, 2.0]], "got list"),
    "wrong slices": (Slices(VALUES, [0.5, 1.5], None), "as .*libraries.Slices: indices of .*expected integers"),
    "no conversion": (Scattered(None), "got .*test_other_libraries.Scattered"),
    "another dtype": (Readable(DENSE.astype(float)), "expected dtype float32, got float64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unreadable_gradients_are_refused_by_type(case):
    grad, message = REFUSED[case]
    var = np.ones((4, 2), np.float32)
    with pytest.raises(TypeError, match=rf"gradient of variable 0 \(float32, shape \(4, 2\)\).*{message}"):
        RMSprop(0.1).apply_gradients([(grad, var)])
    assert (var == 1).all()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_tensors_of_torch_are_gradients():
    torch = pytest.importorskip("torch")
    dense = torch.from_numpy(DENSE)
    coo = dense.to_sparse(1)
    entries = torch.tensor([[3.0, 4], [2, 0], [3, 0]])
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 3, 3]]), entries, (4, 2), check_invariants=True)
    outside = torch.sparse_coo_tensor(torch.tensor([[1, 4, 3]]), entries, (4, 2), check_invariants=False)
    for grad in (dense, coo, dense.to_sparse(), twice, dense.to_sparse_csr(), coo.requires_grad_()):
        assert (step(grad) == step(DENSE)).all()
    with pytest.raises(TypeError, match=r"got torch\.Tensor; convert it first, .*requires grad"):
        step(dense.clone().requires_grad_())
    with pytest.raises(TypeError, match=r"torch.sparse_csc; pass grad\.to_dense\(\)"):
        step(dense.to_sparse_csc())
    with pytest.raises(IndexError, match=r"indices\[1\] is 4; expected 0 <= index < 4"):
        step(outside)


@dataclass
class Frame(Readable):
    def to_numpy(self):
        return self.numbers


class Tensor(Readable):
    __module__ = "torch"


@pytest.mark.parametrize(
    ("var", "message"),
    [
        (Tensor(DENSE), r"got Tensor. numba_rmsprop.torch.RMSprop steps PyTorch's parameters"),
        (Frame(DENSE), r"got Frame; .*x.to_numpy\(copy=True\)"),
        (Readable(DENSE), r"got Readable; pass one array, array = np.array\(x\)"),
        (np.asmatrix(DENSE), r"got matrix; pass np.asarray\(x\), which shares its memory"),
        (np.ma.array(DENSE), r"got MaskedArray; .*x.filled\(0\)"),
        ([1.0, 2.0], "got list$"),
    ],
)
def test_wrong_variables_are_refused_with_advice(var, message):
    with pytest.raises(TypeError, match=message):
        RMSprop().apply_gradients([(DENSE, var)])
    for use in (RMSprop().flush, lambda var: RMSprop().gather(var, [0]), lambda var: RMSprop().build([var])):
        with pytest.raises(TypeError, match=f"must be a NumPy array.*{message}"):
            use(var)


MASKED = np.ma.array([1, 0], mask=[True, False])

MASKED_FLOATS = np.ma.array(np.ones((2, 2)), mask=np.eye(2))


def built():
    opt, var = RMSprop(0.1), np.ones((2, 2))
    opt.build([var])
    return opt, var


def matrix(name):
    grad = scipy.sparse.csr_array(np.eye(2))
    setattr(grad, name, np.ma.array(getattr(grad, name)))
    return grad


def diagonals():
    grad = scipy.sparse.dia_array(np.eye(2))
    grad.offsets = np.ma.array(grad.offsets)
    return grad


def coordinates():
    grad = scipy.sparse.coo_array(np.eye(2))
    grad.coords = (MASKED, grad.coords[1])
    return grad


MASKS = {
    "gradient": lambda opt, var: opt.apply_gradients([(MASKED_FLOATS, var)]),
    "gradient in a list": lambda opt, var: opt.apply_gradients([(list(MASKED_FLOATS), var)]),
    "values": lambda opt, var: IndexedSlices(MASKED_FLOATS, [0, 1]),
    "indices": lambda opt, var: IndexedSlices(np.ones((2, 2)), MASKED),
    "indices in a list": lambda opt, var: IndexedSlices(np.ones((1, 2)), [MASKED][:1]),
    "dense_shape": lambda opt, var: IndexedSlices(np.ones((2, 2)), [0, 1], MASKED),
    "foreign values": lambda opt, var: opt.apply_gradients([(Slices(MASKED_FLOATS, [0, 1], None), var)]),
    "data of a matrix": lambda opt, var: opt.apply_gradients([(matrix("data"), var)]),
    "indices of a matrix": lambda opt, var: opt.apply_gradients([(matrix("indices"), var)]),
    "indptr of a matrix": lambda opt, var: opt.apply_gradients([(matrix("indptr"), var)]),
    "offsets": lambda opt, var: opt.apply_gradients([(diagonals(), var)]),
    "coords": lambda opt, var: opt.apply_gradients([(coordinates(), var)]),
    "gather": lambda opt, var: opt.gather(var, MASKED),
    "set_weights": lambda opt, var: opt.set_weights([1, MASKED_FLOATS]),
    "number of iterations": lambda opt, var: opt.set_weights([np.ma.array(1, mask=True), np.ones((2, 2))]),
    "add_slot": lambda opt, var: opt.add_slot(var, "best", MASKED_FLOATS),
    "initializer": lambda opt, var: opt.add_slot(var, "best", lambda shape, dtype: MASKED_FLOATS),
    "add_weight": lambda opt, var: opt.add_weight("ages", (2,), initializer=MASKED),
    "loss": lambda opt, var: opt.minimize(lambda: MASKED_FLOATS, [var]),
    "grad_loss": lambda opt, var: opt.minimize(lambda: 1.0, [var], grad_loss=np.ma.array(1.0)),
    "gradients of a loss": lambda opt, var: opt.minimize(lambda: 1.0, [var], jac=lambda: MASKED_FLOATS, grad_loss=2.0),
    "boundaries": lambda opt, var: PiecewiseConstantDecay(MASKED, [1.0, 0.5, 0.1]),
    "rate": lambda opt, var: ExponentialDecay(np.ma.array(0.1, mask=True), 10, 0.5),
    "rows of a table": lambda opt, var: checked_indices(MASKED, 2),
    "values of a table": lambda opt, var: checked_values(
        MASKED_FLOATS, np.arange(2), (2, 2), np.dtype(float), finite=False
    ),
    "rows of first values": lambda opt, var: Uniform(0.0, 1.0, columns=2)(MASKED),
    "first values": lambda opt, var: fill_shard(var, Layout(2, 1), 0, lambda rows: MASKED_FLOATS),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_is_never_dropped(case):
    opt, var = built()
    with pytest.raises(TypeError, match=r"mask.*fill it first"):
        MASKS[case](opt, var)
    assert (var == 1).all()
    assert not opt.get_weights()[1].any()
    assert opt.get_slot_names() == ["rms"]


def test_initial_values_want_a_list_of_row_numbers():
    with pytest.raises(TypeError, match="indices: expected integers, got float64"):
        Uniform(0.0, 1.0, columns=2)(np.array([0.5]))
    with pytest.raises(ValueError, match=r"indices: expected shape \(n,\), got \(1, 1\)"):
        Uniform(0.0, 1.0, columns=2)(np.array([[0]]))


class Lazy:
    """Pair that makes its gradient when it is unpacked."""

    def __init__(self, value, var):
        self.value, self.var = value, var

    def __len__(self):
        return 2

    def __iter__(self):
        yield np.full(self.var.shape, self.value)
        yield self.var


class LazyTuple(tuple):
    def __iter__(self):
        yield np.full(self[1].shape, self[0])
        yield self[1]


def test_a_pair_is_a_tuple_or_a_list():
    opt, var, named = RMSprop(0.1, rho=0.0), np.zeros(3), namedtuple("Pair", "gradient variable")
    for pair in ((np.ones(3), var), [np.ones(3), var], named(np.ones(3), var)):
        assert opt.apply_gradients([pair]) == opt.apply_gradients(iter([pair])) - 1
    np.testing.assert_allclose(var, -0.6, rtol=1e-5)
    for pairs in (
        [Lazy(1.0, var)],
        [{1.0: 1, 2.0: 2}],
        ["ab"],
        [iter((np.ones(3), var))],
        np.ones((3, 2)),
        (np.ones(3), var),
        {"a": 1},
    ):
        with pytest.raises(
            TypeError, match=r"\[0\]: expected a pair \(gradient, variable\), got .*; pass a list of pairs"
        ):
            opt.apply_gradients(pairs)
    assert opt.iterations == 6


@pytest.mark.parametrize("n", [3, 3000])
def test_gradients_that_a_pair_makes_live_until_the_step(n):
    lazy, plain = (RMSprop(0.1, rho=0.0, epsilon=0.0) for _ in range(2))
    ours, theirs = ([np.zeros(n) for _ in range(4)] for _ in range(2))
    for t in range(4):
        values = [1.0 + t, -2.0, 3.0, -4.0 - t]
        lazy.apply_gradients([LazyTuple((g, var)) for g, var in zip(values, ours, strict=True)])
        plain.apply_gradients([(np.full(n, g), var) for g, var in zip(values, theirs, strict=True)])
    for a, b in zip([*ours, *lazy.weights], [*theirs, *plain.weights], strict=True):
        assert (a == b).all()
