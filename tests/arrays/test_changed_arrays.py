"""Arrays that were changed in place, closed or made read-only after the optimizer first saw them."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
from optimizer_internals import refuse_closer_looks, remembered_call, slots_of

from numba_rmsprop import IndexedSlices, RMSprop


def resized(array):
    """Move the memory of an array, and let other arrays take its old place; return those."""
    return _moved(array, lambda shape: array.resize(shape, refcheck=False))


def with_new_state(array):
    """Do the same through ``__setstate__``."""

    def change(shape):
        state = np.full(shape, 3, array.dtype)
        array.__setstate__((1, state.shape, state.dtype, False, state.tobytes()))

    return _moved(array, change)


def _moved(array, change):
    shape, address, others = array.shape, array.ctypes.data, []
    while array.ctypes.data == address:
        for length in (40 * shape[0], shape[0]):
            change((length, *shape[1:]))
            others += [np.full(shape, 7, array.dtype) for _ in range(20)]
    return others


def assigned(name, value):
    def change(array):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy 2.4 and later advise against it
            setattr(array, name, value(array))

    return change


CHANGES = {
    "resized": (resized, "its address was"),
    "smaller": (lambda array: array.resize((len(array) - 1, *array.shape[1:]), refcheck=False), "its shape was"),
    "another state": (with_new_state, "its address was"),
    "shape": (assigned("shape", lambda array: array.shape[::-1]), "its shape was"),
    "strides": (assigned("strides", lambda array: array.strides[::-1]), "its strides was"),
    "dtype": (assigned("dtype", lambda array: np.int64), "its dtype was float64 and is now int64"),
}

N, WIDE = 30, (30, 2)


def batched(opt, var):
    return opt.apply_gradients([(np.ones(WIDE), var)])


def by_rows(opt, var):
    return opt.apply_gradients([(IndexedSlices(np.ones((2, 2)), [0, 7]), var)])


def by_csr(opt, var):
    return opt.apply_gradients([(scipy.sparse.csr_array(np.eye(N, 2)), var)])


USES = {
    "dense": batched,
    "rows": by_rows,
    "csr": by_csr,
    "gather": lambda opt, var: opt.gather(var, [0, 1]),
    "flush": lambda opt, var: opt.flush(),
    "flush of one": lambda opt, var: opt.flush(var),
    "get_slot": lambda opt, var: opt.get_slot(var, "rms"),
    "get_weights": lambda opt, var: opt.get_weights(),
    "set_weights": lambda opt, var: opt.set_weights([5, np.ones(WIDE), np.ones(WIDE)]),
    "save": lambda opt, var: opt.save("/nowhere/at/all"),
}


def trained(first):
    opt, var = RMSprop(0.1, momentum=0.9), np.ones(WIDE)
    for _ in range(3):
        first(opt, var)
    return opt, var


def array_of(opt, name):
    """Return a slot of the only variable, or its row clocks."""
    slots = slots_of(opt, 0)
    return slots.clocks if name == "clocks" else slots.arrays[name]


def refused(call, opt, var, match, *more):
    slots = slots_of(opt, 0)
    arrays = [var, *slots.arrays.values(), *more, *([] if slots.clocks is None else [slots.clocks])]
    before = [np.array(array).tobytes() for array in arrays], opt.iterations, slots.steps, slots.floor
    with pytest.raises(ValueError, match=match) as caught:
        call(opt, var)
    assert ([np.array(array).tobytes() for array in arrays], opt.iterations, slots.steps, slots.floor) == before
    return str(caught.value)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_variable_that_was_changed_in_place_is_refused(change, use):
    for first in (batched, by_rows):
        opt, var = trained(first)
        kept = CHANGES[change][0](var) or []
        message = refused(USES[use], opt, var, f"variable 0: {CHANGES[change][1]}", *kept)
        assert "opt.rebind" in message


@pytest.mark.parametrize("slot", ["rms", "momentum", "clocks"])
@pytest.mark.parametrize("use", USES)
def test_a_slot_that_was_changed_in_place_is_refused(use, slot):
    for first in (batched, by_rows)[slot == "clocks" :]:
        opt, var = trained(first)
        kept = resized(array_of(opt, slot))
        refused(USES[use], opt, var, f"{slot} of variable 0: its address was", *kept)


@pytest.mark.parametrize("use", USES)
def test_a_view_whose_array_was_resized_is_refused(use):
    for first in (batched, by_rows):
        opt, base = RMSprop(0.1, momentum=0.9), np.ones((2 * N, 2))
        var = base[:N]
        for _ in range(3):
            first(opt, var)
        base.resize((80 * N, 2), refcheck=False)
        with pytest.raises(ValueError, match="variable 0: the array of which it is a view was resized"):
            USES[use](opt, var)
        assert opt.iterations == 3
        assert (base[: 2 * N] != 0).all()


def test_a_change_in_place_is_found_before_the_loss_is_called():
    def loss():
        raise AssertionError("called")

    opt, var = trained(by_rows)
    kept = resized(opt.get_slot(var, "momentum"))
    refused(lambda opt, var: opt.minimize(loss, [var]), opt, var, "momentum of variable 0: its address was", *kept)


def test_a_large_variable_changed_after_a_remembered_call():
    for grad in (np.ones((8200, 2)), IndexedSlices(np.ones((2, 2)), [0, 7])):
        opt, var = RMSprop(0.1, momentum=0.9), np.ones((8200, 2))
        for _ in range(3):
            opt.apply_gradients([(grad, var)])
        assert remembered_call(opt) is not None
        kept = resized(var)
        refused(lambda opt, var, grad=grad: opt.apply_gradients([(grad, var)]), opt, var, "its address was", *kept)


def test_one_of_many_variables_changed_after_a_remembered_call(monkeypatch):
    opt, variables = RMSprop(0.1), [np.ones(WIDE) for _ in range(4)]
    pairs = [(np.ones(WIDE), var) for var in variables]
    for _ in range(3):
        opt.apply_gradients(pairs)
    before = [var.copy() for var in variables]
    kept = resized(opt.get_slot(variables[2], "rms"))
    with pytest.raises(ValueError, match="rms of variable 2: its address was"):
        opt.apply_gradients(pairs)
    assert all((array == 7).all() for array in kept)
    assert all((var == old).all() for var, old in zip(variables, before, strict=True))


def test_an_array_that_is_as_it_was_goes_on_after_a_refusal():
    opt, var = trained(by_rows)
    assigned("shape", lambda array: (2, N))(var)
    with pytest.raises(ValueError, match="its shape was"):
        by_rows(opt, var)
    assigned("shape", lambda array: WIDE)(var)
    assert by_rows(opt, var) == 4


def test_arrays_of_an_unknown_layout_are_compared_by_numpy(monkeypatch):
    monkeypatch.setattr("numba_rmsprop.arrays.noted_layouts.layout_is_known", lambda: False)
    for change in CHANGES:
        opt, var = trained(by_rows)
        kept = CHANGES[change][0](var) or []
        refused(by_rows, opt, var, CHANGES[change][1], *kept)


@pytest.mark.parametrize("use", USES)
def test_a_mapped_file_that_was_closed_is_refused(use, tmp_path):
    for first in (batched, by_rows):
        opt, mapped = RMSprop(0.1, momentum=0.9), np.memmap(tmp_path / "table", np.float64, "w+", shape=WIDE)
        for var in (mapped, np.asarray(mapped)):
            for _ in range(3):
                first(opt, var)
        mapped._mmap.close()
        with pytest.raises(ValueError, match=r"variable 0: its np\.memmap was closed or resized"):
            USES[use](opt, var)
        with pytest.raises(ValueError, match=r"its np\.memmap was closed"):
            USES["rows"](RMSprop(), mapped)


def test_a_mapped_variable_needs_no_closer_look(tmp_path, monkeypatch):
    opt, mapped = RMSprop(0.1), np.memmap(tmp_path / "table", np.float64, "w+", shape=WIDE)
    batched(opt, mapped)
    refuse_closer_looks(opt, monkeypatch)
    assert batched(opt, mapped) == 2


# Read-only arrays


def from_buffers(opt, var, *, writable):
    """Return unpickled copies over buffers that are not NumPy's, as ray and shared memory make them."""
    buffers = []
    whole = pickle.dumps((opt, var), protocol=5, buffer_callback=buffers.append)
    kinds = [bytearray if k in writable else bytes for k in range(len(buffers))]
    return pickle.loads(whole, buffers=[kind(buffer.raw()) for kind, buffer in zip(kinds, buffers, strict=True)])


def test_state_in_read_only_buffers_is_read_and_not_written():
    opt, var = from_buffers(*trained(by_rows), writable=())
    for use in ("flush", "flush of one", "gather", "get_slot", "get_weights", "rows", "dense"):
        refused(USES[use], opt, var, r"variable 0 \(float64, shape \(30, 2\)\) is read-only; expected a writable array")


@pytest.mark.parametrize("slot", ["rms", "momentum", "clocks"])
def test_read_only_slots_are_refused_by_name(slot):
    opt, var = trained(by_rows)
    array_of(opt, slot).flags.writeable = False
    for use in ("flush", "gather", "get_slot", "get_weights", "rows", "csr", "dense"):
        message = rf"{slot} of variable 0 \(float64, shape \(30, 2\)\) is read-only"
        assert "copied first" in refused(USES[use], opt, var, message)


@pytest.mark.parametrize("count", [1, 3])
def test_slots_made_read_only_after_a_remembered_call(count):
    opt, variables = RMSprop(0.1), [np.ones(WIDE) for _ in range(count)]
    pairs = [(np.ones(WIDE), var) for var in variables]
    for _ in range(2):
        opt.apply_gradients(pairs)
    opt.get_slot(variables[-1], "rms").flags.writeable = False
    refused(lambda opt, var: opt.apply_gradients(pairs), opt, variables[0], f"rms of variable {count - 1}", *variables)


def test_read_only_arrays_can_be_read_where_nothing_is_behind():
    opt, var = trained(by_rows)
    opt.flush()
    expected, weights = var[[3, 0]].copy(), opt.get_weights()
    opt, var = from_buffers(opt, var, writable=())
    assert (opt.gather(var, [3, 0]) == expected).all()
    opt.flush()
    assert all((a == b).all() for a, b in zip(opt.get_weights(), weights, strict=True))
    assert (opt.get_slot(var, "rms") == weights[1]).all()
    never_seen = np.arange(8.0).reshape(4, 2)
    never_seen.flags.writeable = False
    assert RMSprop().gather(never_seen, [3, 0]).tolist() == [[6, 7], [0, 1]]
    plain, var = RMSprop(0.1), np.ones(WIDE)  # without momentum or weight decay, values never fall behind
    for _ in range(2):
        by_rows(plain, var)
    var.flags.writeable = False
    assert (plain.gather(var, [29, 0]) == var[[29, 0]]).all()


def test_weights_are_set_all_or_none():
    opt, var = RMSprop(0.1, momentum=0.9), np.ones(WIDE)
    opt.build([var])
    opt.add_weight("count")
    opt.weights[-1].flags.writeable = False
    with pytest.raises(ValueError, match=r"weights\[3\]: the array to overwrite is read-only"):
        opt.set_weights([1, np.ones(WIDE), np.ones(WIDE), 1.0])
    assert opt.iterations == 0
    assert not any(weight.any() for weight in opt.get_weights())
