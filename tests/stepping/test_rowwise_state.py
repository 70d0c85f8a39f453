"""Row-wise state: one mean square to a row."""

import numpy as np
import pytest
from small_tables import randn, rows_of, trained

from numba_rmsprop import IndexedSlices, RMSprop


def test_row_wise_state_has_one_number_for_each_row():
    var, conv, bias, number = randn(40, 19), randn(4, 3, 2), randn(5), np.array(2.0, np.float32)
    opt = RMSprop(0.02, state="rowwise", momentum=0.9)
    for step in range(3):
        opt.apply_gradients([(rows_of(step), var), *((np.ones_like(v), v) for v in (conv, bias, number))])
    shapes = [[opt.get_slot(v, slot).shape for v in (var, conv, bias, number)] for slot in ("rms", "momentum")]
    assert shapes == [[(40,), (4,), (5,), ()], [(40, 19), (4, 3, 2), (5,), ()]]


def test_row_wise_state_of_a_table_without_a_view_of_its_rows():
    var = randn(6, 5, 4)
    shaped = np.asfortranarray(var)
    opt, reference = RMSprop(0.02, state="rowwise", momentum=0.5), RMSprop(0.02, state="rowwise", momentum=0.5)
    for step in range(4):
        values = randn(3, 5, 4, seed=step)
        for one, table in ((opt, shaped), (reference, var)):
            one.apply_gradients([(IndexedSlices(values, [1, 5, 1]), table)])
            one.apply_gradients([(randn(6, 5, 4, seed=step), table)])
    opt.flush()
    reference.flush()
    assert np.ascontiguousarray(shaped).tobytes() == var.tobytes()
    assert opt.get_slot(shaped, "rms").tobytes() == reference.get_slot(var, "rms").tobytes()


@pytest.mark.parametrize("shape", [(7,), ()])
def test_a_row_of_one_element_is_elementwise(shape):
    var, other = np.full(shape, 2.0), np.full(shape, 2.0)
    for _ in range(3):
        RMSprop(state="rowwise").apply_gradients([(np.full(shape, 3.0), var)])
        RMSprop().apply_gradients([(np.full(shape, 3.0), other)])
    assert var.tobytes() == other.tobytes()


def test_empty_tables_take_row_wise_steps():
    for shape in ((0, 4), (3, 0)):
        var = np.ones(shape, np.float32)
        opt = RMSprop(state="rowwise", momentum=0.9)
        opt.apply_gradients([(np.ones(shape, np.float32), var)])
        indices = np.zeros(min(1, shape[0]), int)
        opt.apply_gradients([(IndexedSlices(np.ones((len(indices), shape[1]), np.float32), indices), var)])
        opt.flush()
        assert opt.get_slot(var, "rms").shape == shape[:1]


def test_infinite_gradients_spoil_their_row_alone():
    var = np.ones((3, 4), np.float32)
    grad = np.ones((2, 4), np.float32)
    grad[0, 1] = np.inf
    with np.errstate(invalid="ignore"):  # which matters where kernels are plain Python
        RMSprop(0.1, state="rowwise").apply_gradients([(IndexedSlices(grad, [0, 2]), var)])
    assert np.isnan(var[0, 1])
    assert (var[0, [0, 2, 3]] == 1).all()  # a finite number divided by an infinite root
    assert (var[1] == 1).all()
    assert (var[2] < 1).all()


def test_to_rowwise_goes_on_with_the_mean_of_each_row(tmp_path):
    var, other, empty = randn(40, 19), randn(40, 19), np.ones((3, 0), np.float32)
    opt, rowwise = trained(var, momentum=0.9), trained(other, momentum=0.9, state="rowwise")
    opt.build({"table": var, "empty": empty})
    opt.save(tmp_path / "file")
    opt.to_rowwise()
    assert (opt.state, opt.iterations, opt.known.slots[0].name) == ("rowwise", 6, "table")
    rowwise.flush()
    np.testing.assert_allclose(opt.get_slot(var, "rms"), rowwise.get_slot(other, "rms"), rtol=1e-5)
    assert opt.get_slot(empty, "rms").shape == (3,)
    with pytest.raises(ValueError, match="save_delta: expected a file to go on from"):
        opt.save_delta(tmp_path / "delta")
    opt.apply_gradients([(rows_of(7), var)])
    opt.save(tmp_path / "file")
    RMSprop.load(tmp_path / "file", {"table": var, "empty": empty})
    with pytest.raises(ValueError, match="centered"):
        RMSprop(centered=True).to_rowwise()


def test_a_mean_of_squares_may_be_as_large_as_a_square():
    var = np.ones((1, 2000), np.float32)
    opt = RMSprop(0.5, rho=0.0, state="rowwise")
    opt.apply_gradients([(np.full((1, 2000), 1.5e19, np.float32), var)])
    np.testing.assert_allclose(var, 0.5, rtol=1e-5)
