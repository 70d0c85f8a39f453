"""Learning rates and weight decay of some variables, by their names."""

import copy
import json
import pickle

import numpy as np
import pytest

from numba_rmsprop import IndexedSlices, RMSprop

GRAD = np.array([1.0, -2.0])


def three():
    return {name: np.array([3.0, 4.0]) for name in ("weight", "bias", "frozen")}


def alone(var, steps, learning_rate, **options):
    opt = RMSprop(learning_rate, **options)
    for _ in range(steps):
        opt.apply_gradients([(GRAD, var)])
    return var


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_each_variable_has_its_own_rate_and_decay(momentum):
    found = three()
    options = {"momentum": momentum, "weight_decay": 0.5}
    opt = RMSprop(0.1, learning_rate_factors={"bias": 0.5, "frozen": 0.0}, excluded_from_weight_decay=["^b"], **options)
    opt.build(found)
    for _ in range(3):
        opt.apply_gradients([(GRAD, var) for var in found.values()])
    start = np.array([3.0, 4.0])
    assert found["frozen"].tobytes() == start.tobytes()
    assert found["weight"].tobytes() == alone(start.copy(), 3, 0.1, **options).tobytes()
    assert found["bias"].tobytes() == alone(start.copy(), 3, 0.05, momentum=momentum).tobytes()
    assert opt.get_slot(found["frozen"], "rms").any()


def test_sparse_rows_that_are_left_out_decay_by_the_rate_of_their_table():
    tables = [np.ones((4, 2)) for _ in range(3)]
    options = {"weight_decay": 0.5, "momentum": 0.9}
    opt = RMSprop(0.1, learning_rate_factors={"slow": 0.1}, excluded_from_weight_decay=["kept"], **options)
    opt.build({"slow": tables[0], "kept": tables[1], "usual": tables[2]})
    others = [RMSprop(0.01, **options), RMSprop(0.1, momentum=0.9), RMSprop(0.1, **options)]
    peers = [np.ones((4, 2)) for _ in range(3)]
    for row in (1, 2, 3, 1):
        gradient = IndexedSlices(GRAD[np.newaxis], [row])
        opt.apply_gradients([(gradient, table) for table in tables])
        for other, peer in zip(others, peers, strict=True):
            other.apply_gradients([(gradient, peer)])
    opt.flush()
    for other, peer, table in zip(others, peers, tables, strict=True):
        other.flush()
        np.testing.assert_allclose(table, peer, rtol=1e-14)


def test_options_follow_names_and_changes():
    first, second, start = np.array([3.0, 4.0]), np.array([3.0, 4.0]), np.array([3.0, 4.0])
    opt = RMSprop(0.1)
    for _ in range(2):
        opt.apply_gradients([(GRAD, first), (GRAD, second)])
    opt.learning_rate_factors = {"frozen": 0.0}
    opt.build({"frozen": first})
    before = first.copy()
    for _ in range(2):
        opt.apply_gradients([(GRAD, first), (GRAD, second)])
    assert first.tobytes() == before.tobytes()
    assert second.tobytes() == alone(start.copy(), 4, 0.1).tobytes()
    opt.learning_rate_factors = None
    opt.apply_gradients([(GRAD, first), (GRAD, second)])
    assert first.tobytes() != before.tobytes()


def test_as_keras_excludes():
    found = three()
    opt = RMSprop(0.1, weight_decay=0.5)
    opt.build(found)
    opt.apply_gradients([(0 * GRAD, var) for var in found.values()])
    opt.exclude_from_weight_decay(var_list=[found["bias"]])
    opt.exclude_from_weight_decay(var_names=["froz"])
    before = {name: var.copy() for name, var in found.items()}
    opt.apply_gradients([(0 * GRAD, var) for var in found.values()])
    assert [bool((found[name] == before[name]).all()) for name in found] == [False, True, True]
    assert opt.excluded_from_weight_decay == ("^bias$", "froz")


def test_options_stand_in_config_copies_and_files(tmp_path):
    found = three()
    options = {"learning_rate_factors": {"class_name": 0.5, "frozen": 0.0}, "excluded_from_weight_decay": ["bias"]}
    opt = RMSprop(0.1, weight_decay=0.1, **options)
    opt.build(found)
    with pytest.warns(UserWarning, match=r"^no variable fits learning_rate_factors\['class_name'\] so far"):
        opt.apply_gradients([(GRAD, var) for var in found.values()])
    config = json.loads(json.dumps(opt.get_config()))
    assert {name: config[name] for name in options} == options
    opt.save(tmp_path / "file")
    loaded = three()
    for other in (
        RMSprop.from_config(config),
        copy.deepcopy(opt),
        pickle.loads(pickle.dumps(opt)),
        RMSprop.load(tmp_path / "file", loaded),
    ):
        assert other.get_config() == opt.get_config()
    assert "learning_rate_factors" not in repr(RMSprop())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate_factors": {"a": -1.0}}, r"learning_rate_factors\['a'\]: expected 0 <="),
        ({"learning_rate_factors": [0.1]}, "learning_rate_factors: expected a mapping of names"),
        ({"learning_rate_factors": {3: 0.1}}, "learning_rate_factors: expected a mapping of names"),
        ({"excluded_from_weight_decay": "bias"}, "exclude_from_weight_decay: expected a list of names"),
        ({"excluded_from_weight_decay": [3]}, "exclude_from_weight_decay: expected strings"),
        ({"excluded_from_weight_decay": ["("]}, "exclude_from_weight_decay: expected a name or a regular expression"),
    ],
)
def test_options_that_there_are_not(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        RMSprop(**options)


def test_a_variable_without_a_name_cannot_be_excluded():
    var, opt = np.ones(2), RMSprop(weight_decay=0.1)
    with pytest.raises(KeyError):
        opt.exclude_from_weight_decay([var])
    opt.build([var])
    with pytest.raises(ValueError, match="var_list: expected variables with names"):
        opt.exclude_from_weight_decay([var])


def test_misspelt_names_are_told_each_time_they_are_set():
    var, opt = np.ones(2), RMSprop(weight_decay=0.1, excluded_from_weight_decay=["v"])
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"no variable fits .*exclude_from_weight_decay 'v'"):
            opt.apply_gradients([(np.zeros(2), var)])
        assert (var < 1).all()  # a variable without a name fits no pattern
        opt.learning_rate_factors = {"typo": 0.5}


def test_factors_are_set_as_a_whole():
    opt = RMSprop(learning_rate_factors={"a": 0.5})
    with pytest.raises(TypeError, match="does not support item assignment"):
        opt.learning_rate_factors["a"] = 0.0
    opt.get_config()["learning_rate_factors"]["a"] = 0.0
    assert opt.learning_rate_factors == {"a": 0.5}


def test_two_kinds_of_small_variables_are_two_launches():
    variables = [np.ones(8) for _ in range(40)]
    opt = RMSprop(weight_decay=0.1, excluded_from_weight_decay=["b"])
    opt.build({f"{'wb'[k % 2]}{k}": var for k, var in enumerate(variables)})
    for _ in range(3):
        opt.apply_gradients([(np.ones(8), var) for var in variables])
    plan = opt.known.remembered["plan"]
    assert [len(batch.members) for batch in plan.batches] == [20, 20]
    assert not plan.rest
    expected = [alone_with_decay(decay) for decay in (0.1, 0.0)]
    assert all(var.tobytes() == expected[k % 2] for k, var in enumerate(variables))


def alone_with_decay(decay):
    var, opt = np.ones(8), RMSprop(weight_decay=decay)
    for _ in range(3):
        opt.apply_gradients([(np.ones(8), var)])
    return var.tobytes()
