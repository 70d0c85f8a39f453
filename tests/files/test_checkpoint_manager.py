"""CheckpointManager: the files that it keeps, the latest one, and runs that are killed at any moment."""

import itertools
import os

import numpy as np
import pytest
from checkpoint_files import checkpoint_names, damage
from killed_trainings import kill_children
from optimizer_internals import state_of

from numba_rmsprop import CheckpointManager, IndexedSlices, RMSprop


def step(opt, variables, t):
    """Take step ``t`` of a run; the number alone determines the gradients."""
    rng = np.random.default_rng(t)
    table, bias = variables
    indices = rng.integers(0, len(table), 8)
    grads = rng.standard_normal((8, table.shape[1])).astype(table.dtype)
    opt.apply_gradients([(IndexedSlices(grads, indices), table), (rng.standard_normal(bias.shape), bias)])
    if t % 7 == 0:
        opt.gather(table, indices[:3])
    if t % 11 == 0:
        opt.flush()


def new_variables():
    return [np.ones((300, 4), np.float32), np.ones(5)]


def new_optimizer():
    return RMSprop(0.01, rho=0.99, momentum=0.9, centered=True, weight_decay=0.01)


def test_the_last_few_are_kept(tmp_path):
    opt, variables = new_optimizer(), new_variables()
    manager = CheckpointManager(tmp_path / "a" / "b")
    assert manager.latest() == []
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine")
    for t in range(5):
        step(opt, variables, t)
        path = manager.save(opt)
        assert manager.latest() == [path]
    assert checkpoint_names(manager.folder) == ["000000003", "000000004", "000000005", "notes.txt"]
    copies = [np.zeros_like(var) for var in variables]
    assert state_of(RMSprop.load(manager.latest(), copies), copies) == state_of(opt, variables)


def test_deltas_are_kept_with_what_they_go_on_from(tmp_path):
    opt, variables = new_optimizer(), new_variables()
    manager = CheckpointManager(tmp_path, keep=2, full_every=3)
    seen = []
    for t in range(8):
        step(opt, variables, t)
        manager.save(opt)
        seen.append([name.lstrip("0") for name in checkpoint_names(tmp_path)])
        copies = [np.zeros_like(var) for var in variables]
        assert state_of(RMSprop.load(manager.latest(), copies), copies) == state_of(opt, variables)
    assert seen == [
        ["1"],
        ["1", "2.delta"],
        ["1", "2.delta", "3.delta"],
        ["1", "2.delta", "3.delta", "4"],
        ["4", "5.delta"],
        ["4", "5.delta", "6.delta"],
        ["4", "5.delta", "6.delta", "7"],
        ["7", "8.delta"],
    ]
    opt.save(tmp_path / "elsewhere")  # a delta goes on from the manager's own file, and not from one saved elsewhere
    assert manager.save(opt).name == "checkpoint-000000009.safetensors"


def test_a_damaged_file_is_skipped(tmp_path):
    opt, variables = new_optimizer(), new_variables()
    manager = CheckpointManager(tmp_path, keep=10, full_every=3)
    paths = []
    for t in range(6):
        step(opt, variables, t)
        paths.append(manager.save(opt))
    assert manager.latest() == paths[3:]
    damage(paths[5])
    with pytest.warns(
        UserWarning, match="skipping checkpoint-000000006.delta.safetensors, going back to check.*5.delta"
    ):
        assert manager.latest() == paths[3:5]
    damage(paths[3])
    with pytest.warns(UserWarning, match="skipping") as warned:
        assert manager.latest() == paths[:3]
    assert [str(warning.message)[:20] for warning in warned] == ["skipping checkpoint-"] * 3
    assert "the file that it goes on from is damaged or missing" in str(warned[1].message)
    for path in paths:
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="skipping") as warned:
        assert manager.latest() == []
    assert "checkpoint-000000001.safetensors, going back to nothing" in str(warned[-1].message)


def test_a_run_goes_on_from_what_is_left(tmp_path):
    opt, variables = new_optimizer(), new_variables()
    manager = CheckpointManager(tmp_path, full_every=4)
    for t in range(6):
        step(opt, variables, t)
        path = manager.save(opt)
    damage(path)
    manager = CheckpointManager(tmp_path, full_every=4)
    copies = [np.zeros_like(var) for var in variables]
    with pytest.warns(UserWarning, match="skipping"):
        found = RMSprop.load(manager.latest(), copies)
    assert found.iterations == 5
    step(found, copies, 5)
    assert manager.save(found).name == "checkpoint-000000007.safetensors"
    assert state_of(found, copies) == state_of(opt, variables)


def test_a_delta_goes_on_from_the_newest_file_or_is_none(tmp_path):
    opt, variables = new_optimizer(), new_variables()
    step(opt, variables, 0)
    manager = CheckpointManager(tmp_path, full_every=5)
    manager.save(opt).unlink()
    assert manager.save(opt).name == "checkpoint-000000001.safetensors"  # the file before is gone
    other = CheckpointManager(tmp_path, keep=1, full_every=5)
    another = new_optimizer()
    step(another, new_variables(), 0)
    other.save(another)
    step(opt, variables, 1)
    last = manager.save(opt)
    assert manager.latest() == [last]


def test_damaged_files_do_not_count_as_kept(tmp_path):
    opt, variables = new_optimizer(), new_variables()
    manager = CheckpointManager(tmp_path, keep=2)
    step(opt, variables, 0)
    paths = [manager.save(opt) for _ in range(2)]
    damage(paths[1])
    with pytest.warns(UserWarning, match="skipping"):
        assert manager.latest() == [paths[0]]
    last = manager.save(opt)
    assert paths[0].exists()
    damage(last)
    with pytest.warns(UserWarning, match="skipping"):
        assert manager.latest() == [paths[0]]


def test_a_folder_named_like_a_checkpoint_is_skipped(tmp_path):
    opt, variables = new_optimizer(), new_variables()
    manager = CheckpointManager(tmp_path)
    step(opt, variables, 0)
    path = manager.save(opt)
    (tmp_path / "checkpoint-000000002.safetensors").mkdir()
    with pytest.warns(UserWarning, match="skipping checkpoint-000000002"):
        assert manager.latest() == [path]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"full_every": 0}])
def test_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected 1 or more, got 0"):
        CheckpointManager(tmp_path, **wrong)


STEPS_BETWEEN_SAVES = 3


def resume(folder):
    """Return a run as it was last saved, or a new one."""
    manager, variables = CheckpointManager(folder, full_every=4), new_variables()
    latest = manager.latest()
    return manager, RMSprop.load(latest, variables) if latest else new_optimizer(), variables


def train_and_save(folder, has_saved):
    manager, opt, variables = resume(folder)
    for t in itertools.count(opt.iterations):
        step(opt, variables, t)
        if t % STEPS_BETWEEN_SAVES == 0:
            manager.save(opt)
            has_saved.set()


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="a killed child costs a tenth of a second with fork, seconds without"
)
@pytest.mark.parametrize("children", [20, pytest.param(200, marks=pytest.mark.long)])
def test_kills_at_any_moment_lose_no_bit(children, tmp_path, seed):
    """Children train and save until they are killed; each goes on from what the one before it left."""
    whole, variables = new_optimizer(), new_variables()
    reached, kills_with_left_overs = [], 0
    for saving in kill_children(train_and_save, tmp_path, children, seed):
        kills_with_left_overs += saving
        _, found, copies = resume(tmp_path)
        while whole.iterations < found.iterations:
            step(whole, variables, whole.iterations)
        assert state_of(found, copies) == state_of(whole, variables)
        reached.append(found.iterations)
    assert reached == sorted(reached)
    assert reached[-1] > children
    assert kills_with_left_overs > 0 or children < 200, "no child was killed in the middle of a save"
    print(f"{reached[-1]} steps, {len(set(reached))} different points, {kills_with_left_overs} kills during a save")
