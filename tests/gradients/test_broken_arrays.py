"""Sparse arrays, slices, weights and configs that a program has broken: refused before anything is written."""

import warnings

import hypothesis
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from optimizer_internals import has_marked_rows, state_of

from numba_rmsprop import IndexedSlices, RMSprop

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
def test_a_config_is_refused_or_makes_an_optimizer_of_its_own_config(name, value):
    try:
        opt = RMSprop.from_config(RMSprop().get_config() | {name: value})
    except REFUSED:
        return
    assert RMSprop.from_config(opt.get_config()).get_config() == opt.get_config()
