"""Variables of copied, unpickled and loaded optimizers: found again, or refused until rebind or forget."""

import copy
import pickle
from functools import partial

import joblib
import numpy as np
import pytest
from trained_tables import ones_for_rows, trained_on_ones

from numba_rmsprop import RMSprop

ONES = np.ones((4, 2))


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "load"])
@pytest.mark.parametrize("call", ["apply_gradients", "gather", "get_slot", "flush", "build", "add_slot"])
def test_an_unknown_array_is_refused_after_restoring_without_the_variable(how, call, tmp_path):
    var = ONES.copy()
    opt = trained_on_ones(var)
    if how == "load":
        opt.save(tmp_path / "file", include_variables=True)
        restored = RMSprop.load(tmp_path / "file", [np.zeros((4, 2))])
    else:
        restored = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
    elsewhere = var.copy()
    arguments = {
        "apply_gradients": lambda: [[(ONES, elsewhere)]],
        "gather": lambda: [elsewhere, [0]],
        "get_slot": lambda: [elsewhere, "rms"],
        "build": lambda: [[elsewhere]],
        "add_slot": lambda: [elsewhere, "average"],
    }.get(call, lambda: [elsewhere])()
    with pytest.raises(ValueError, match=r"call opt.rebind\('variable 0', array\).*opt.forget\('variable 0'\)"):
        getattr(restored, call)(*arguments)
    assert elsewhere.tobytes() == var.tobytes()
    restored.rebind("variable 0", elsewhere)
    restored.apply_gradients([(ONES, elsewhere)])
    opt.apply_gradients([(ONES, var)])
    assert elsewhere.tobytes() == var.tobytes()


def test_joblib_keeps_no_link_and_rebind_makes_it_anew(tmp_path):
    var = ONES.copy()
    opt = trained_on_ones(var, momentum=0.9)
    joblib.dump((opt, var), tmp_path / "run")
    restored, elsewhere = joblib.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"opt\.rebind"):
        restored.apply_gradients([(ONES, elsewhere)])
    restored.rebind(0, elsewhere)
    restored.apply_gradients([(ONES, elsewhere)])
    opt.apply_gradients([(ONES, var)])
    assert elsewhere.tobytes() == var.tobytes()


def test_a_new_variable_is_no_stranger_where_the_restored_ones_are_held():
    var = ONES.copy()
    opt, var = pickle.loads(pickle.dumps((trained_on_ones(var), var)))
    opt.apply_gradients([(ONES, ONES.copy())])
    assert opt.apply_gradients([(ONES, var)]) == 5
    assert len(opt.weights) == 3


def test_a_new_variable_is_no_stranger_of_another_shape_or_once_all_were_used():
    var = ONES.copy()
    opt = pickle.loads(pickle.dumps(trained_on_ones(var)))
    others = [np.ones((4, 3)), ONES.astype(np.float32)]
    opt.build(others)
    opt.rebind(0, var)
    other = ONES.copy()
    opt.build([other])
    assert len(opt.weights) == 5


class Model:
    def __init__(self, order):
        self.flat = np.ones((6, 2), order=order)

    @property
    def part(self):
        return self.flat[1:5]


def pickled(both, protocol):
    return pickle.loads(pickle.dumps(both, protocol))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("how", [partial(pickled, protocol=4), partial(pickled, protocol=5), copy.deepcopy])
def test_views_stay_views_of_what_was_copied_with_them(how, order):
    model = Model(order)
    opt = trained_on_ones(model.part, momentum=0.9)
    opt.apply_gradients(ones_for_rows(model.part, 2))
    copied, other = how((opt, model))
    copied.flush()
    opt.flush()
    assert other.flat.tobytes() == model.flat.tobytes()
    for optimizer, its in ((copied, other), (opt, model)):
        optimizer.apply_gradients([(ONES, its.part)])
    assert other.flat.tobytes() == model.flat.tobytes()
    assert len(copied.weights) == 3
    copied, other = how((copied, other))  # and once more
    copied.apply_gradients([(ONES, other.part)])
    assert len(copied.weights) == 3


def test_a_view_that_was_itself_copied_with_the_optimizer_is_the_variable():
    flat = np.ones((6, 2))
    part = flat[1:5]
    opt, part, flat = pickle.loads(pickle.dumps((trained_on_ones(part), part, flat)))
    before = part.copy()
    opt.apply_gradients([(ONES, part)])
    assert (part != before).all()
    assert len(opt.weights) == 2
