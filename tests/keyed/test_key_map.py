"""The map of keys to rows, beside a dict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_rmsprop.kernels import key_map as kernels
from numba_rmsprop.keyed import key_map
from numba_rmsprop.keyed.key_map import KeyMap
from numba_rmsprop.keyed.saved_keys import SavedKeys

KEYS = st.one_of(st.integers(-3, 12), st.sampled_from([-(2**63), 2**63 - 1, 2**32, -(2**32), 5 << 32]))


class Model:
    """What a map is to do, with a dict."""

    def __init__(self):
        self.rows, self.free, self.given = {}, [], 0

    def enter(self, keys):
        for key in keys:
            if key not in self.rows:
                if self.free:
                    self.rows[key] = self.free.pop()
                else:
                    self.rows[key] = self.given
                    self.given += 1

    def remove(self, keys):
        self.free += [self.rows.pop(key) for key in keys]


def check(found, model):
    assert len(found) == len(model.rows)
    keys = np.array(sorted(model.rows), np.int64)
    assert found.find(keys).tolist() == [model.rows[key] for key in keys.tolist()]
    others = np.array([key for key in range(-50, 50) if key not in model.rows], np.int64)
    assert (found.find(others) == -1).all()
    assert sorted(found.row_keys[found.rows_in_use()].tolist()) == keys.tolist()
    assert found.free.tolist() == model.free


@given(st.lists(st.tuples(st.booleans(), st.lists(KEYS, max_size=20)), max_size=12))
def test_as_a_dict(calls):
    found, model = KeyMap(), Model()
    for enters, keys in calls:
        if enters:
            rows = found.find(np.array(keys, np.int64))
            fresh = found.enter(np.array(keys, np.int64), rows)
            before = set(model.rows)
            model.enter(keys)
            assert rows.tolist() == [model.rows[key] for key in keys]
            assert fresh.tolist() == [model.rows[key] for key in dict.fromkeys(keys) if key not in before]
        else:
            gone = [key for key in dict.fromkeys(keys) if key in model.rows]
            found.remove(found.find(np.array(gone, np.int64)))
            model.remove(gone)
        check(found, model)


def test_many_keys_and_few_places():
    found, model = KeyMap(), Model()
    rng = np.random.default_rng(0)
    for _ in range(20):
        keys = rng.integers(-(2**63), 2**63 - 1, 3000)
        found.enter(keys, found.find(keys))
        model.enter(keys.tolist())
        gone = rng.permutation(sorted(model.rows))[:2000]
        found.remove(found.find(gone))
        model.remove(gone.tolist())
    check(found, model)
    assert len(found._places) <= 2**16  # 20,000 keys at most, and room for what was removed


def test_keys_that_all_have_the_same_home_make_another_map(monkeypatch):
    seeds = iter([0] * 20 + [12345] * 50)
    monkeypatch.setattr(key_map.secrets, "randbits", lambda bits: next(seeds))
    home_of = getattr(kernels.home_of, "py_func", kernels.home_of)
    homes = {}
    for key in range(300_000):
        if int(kernels.hashed(int(kernels.hashed(key)))) & 1023 == 7:
            homes[key] = home_of
    keys = np.array(list(homes))[:250]
    found, model = KeyMap(), Model()
    found.enter(keys, found.find(keys))
    model.enter(keys.tolist())
    check(found, model)
    assert next(seeds) == 12345 or len(found._places) > 1024


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 5000])
def test_a_map_that_was_restored(count):
    keys = np.arange(count) * 7 - 3
    free = np.arange(0, count, 3)
    found = KeyMap()
    found.restore(SavedKeys(keys, free, np.arange(count, dtype=np.int32), 9))
    expected = np.arange(count)
    expected[free] = -1
    assert found.find(keys).tolist() == expected.tolist()
    new = np.array([10**12, 10**13])
    rows = found.find(new)
    found.enter(new, rows)
    assert rows.tolist() == [*free[::-1], count, count + 1][:2]
