"""Checkpoints that cannot be read at the moment, and those of other trainings, are neither skipped nor deleted."""

import builtins
import errno
import io
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors
from checkpoint_files import checkpoint_names, damage, forge

from numba_rmsprop import CheckpointManager, IndexedSlices, RMSprop
from numba_rmsprop.files import checkpoint_manager


def trained(steps, **settings):
    opt, table = RMSprop(0.1, **settings), np.ones((5000, 4))
    for row in range(steps):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [row]), table)])
    return opt, table


def train(opt, table, steps=1):
    for _ in range(steps):
        opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [7]), table)])


def fails(error):
    def call(*_, **__):
        raise error

    return call


def opening_fails(error, when=lambda path: True):
    real = builtins.open

    def call(path, *arguments, **options):
        if str(path).endswith(".safetensors") and when(path):
            raise error
        return real(path, *arguments, **options)

    return call


class Failing(io.FileIO):
    """File on a disk that fails after the header."""

    def readinto(self, buffer):
        if self.tell() > 10_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer)


NUMBERS = [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ESTALE]
FAILURES = {
    **{
        f"open: {errno.errorcode[number]}": (builtins, "open", opening_fails(OSError(number, os.strerror(number))))
        for number in NUMBERS
    },
    "mmap: ENOMEM": (mmap, "mmap", fails(OSError(errno.ENOMEM, "Cannot allocate memory"))),
    # The errors of the safetensors library when it cannot open or map a file.
    "safetensors: EMFILE": (safetensors, "safe_open", fails(FileNotFoundError("No such file or directory: x"))),
    "safetensors: ENOMEM": (safetensors, "safe_open", fails(MemoryError("Cannot allocate memory (os error 12)"))),
    "safetensors: EIO": (safetensors, "safe_open", fails(OSError("Input/output error (os error 5)"))),
    "no memory": (np, "frombuffer", fails(MemoryError())),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_unreadable_files_raise_and_are_kept(tmp_path, monkeypatch, failure):
    opt, table = trained(9)
    manager = CheckpointManager(tmp_path, keep=2)
    files = [manager.save(opt), manager.save(opt)]
    manager = CheckpointManager(tmp_path, keep=2)
    new, other = trained(1)
    with monkeypatch.context() as patch:
        patch.setattr(*FAILURES[failure])
        with pytest.raises(OSError, match=r"checkpoint-000000002\.safetensors cannot be read now") as raised:
            manager.latest()
        numbers = [number for number in NUMBERS if errno.errorcode[number] in failure]
        assert raised.value.errno in (*numbers, errno.ENOMEM if "memory" in failure else None)
        path = manager.save(new)  # a new training deletes no file that it cannot read
    assert manager.latest() == [path]
    for _ in range(3):
        train(new, other)
        manager.save(new)
    assert all(path.exists() for path in files)
    assert RMSprop.load(files[-1], [table]).iterations == 9


def test_a_disk_error_within_a_file_raises_and_ends_no_process(tmp_path, monkeypatch):
    opt, table = trained(9)
    manager = CheckpointManager(tmp_path)
    path = manager.save(opt)
    before = table.copy()
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda path, mode="r", **_: Failing(path, mode))
        with pytest.raises(OSError, match="cannot be read now"):
            manager.latest()
        with pytest.raises(OSError, match="Input/output error"):
            RMSprop.load(path, [table])
    assert table.tobytes() == before.tobytes()
    assert manager.latest() == [path]


def test_a_file_that_a_delta_goes_on_from_cannot_be_read_now(tmp_path, monkeypatch):
    opt, table = trained(3)
    manager = CheckpointManager(tmp_path, full_every=3)
    for _ in range(6):
        train(opt, table)
        manager.save(opt)
    before = [path.name for path in manager.latest()]
    with monkeypatch.context() as patch:
        refused = OSError(errno.EIO, "Input/output error")
        patch.setattr(builtins, "open", opening_fails(refused, lambda path: "000004." in str(path)))
        with pytest.raises(OSError, match=r"checkpoint-000000006\.delta\.safetensors cannot be read now"):
            manager.latest()
    assert [path.name for path in manager.latest()] == before


def test_a_new_training_keeps_the_files_of_an_older_one(tmp_path):
    old, _ = trained(9)
    manager = CheckpointManager(tmp_path, keep=2)
    for _ in range(3):
        manager.save(old)
    new, table = trained(1)
    manager = CheckpointManager(tmp_path, keep=1)
    with pytest.warns(UserWarning, match="holds a training of 9 iterations") as told:
        manager.save(new)
    assert "what is saved, with 1, does not go on from it. Its checkpoints stay" in str(told[0].message)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert checkpoint_names(tmp_path) == ["000000002", "000000003", "000000004"]
    for _ in range(2):  # no second warning, even after restarts and with more steps than the older training
        train(new, table, 6)
        manager.save(new)
        manager = CheckpointManager(tmp_path, keep=1)
        new = RMSprop.load(manager.latest(), [table])
    assert new.iterations == 13
    assert checkpoint_names(tmp_path) == ["000000002", "000000003", "000000006"]


def test_a_resumed_training_deletes_old_files(tmp_path):
    old, table = trained(9)
    manager = CheckpointManager(tmp_path, keep=1)
    manager.save(old)
    old.iterations = 0  # as a user does to start a schedule again
    manager.save(old)
    assert checkpoint_names(tmp_path) == ["000000002"]
    again = RMSprop.load(manager.latest(), [table])
    train(again, table)
    CheckpointManager(tmp_path, keep=1).save(again)
    assert checkpoint_names(tmp_path) == ["000000003"]
    own = RMSprop(0.1)  # another optimizer that has taken as many steps
    own.build([table])
    own.set_weights(again.get_weights())
    CheckpointManager(tmp_path, keep=1).save(own)
    assert checkpoint_names(tmp_path) == ["000000004"]


def test_going_back_to_an_older_file_keeps_the_later_ones(tmp_path):
    old, table = trained(9)
    manager = CheckpointManager(tmp_path, keep=2)
    paths = [manager.save(old)]
    train(old, table)
    paths.append(manager.save(old))
    back = RMSprop.load(paths[0], [table])
    manager = CheckpointManager(tmp_path, keep=1)
    with pytest.warns(UserWarning, match="holds a training of 10 iterations, and what is saved, with 9"):
        manager.save(back)
    for _ in range(3):
        train(back, table)
        manager.save(back)
    assert checkpoint_names(tmp_path) == ["000000001", "000000002", "000000006"]


def test_going_back_past_a_damaged_file_still_deletes_old_ones(tmp_path):
    old, table = trained(9)
    manager = CheckpointManager(tmp_path, keep=2)
    manager.save(old)
    train(old, table)
    damage(manager.save(old))
    manager = CheckpointManager(tmp_path, keep=1)
    with pytest.warns(UserWarning, match="skipping"):
        back = RMSprop.load(manager.latest(), [table])
    manager.save(back)
    assert checkpoint_names(tmp_path) == ["000000003"]


def test_files_of_an_earlier_version_belong_to_one_training(tmp_path):
    old, table = trained(9)
    manager = CheckpointManager(tmp_path, keep=1)
    forge(manager.save(old), lambda _, metadata: metadata.pop("run"))
    again = RMSprop.load(manager.latest(), [table])
    train(again, table)
    CheckpointManager(tmp_path, keep=1).save(again)
    assert checkpoint_names(tmp_path) == ["000000002"]
    with pytest.warns(UserWarning, match="holds a training"):
        CheckpointManager(tmp_path, keep=1).save(trained(1)[0])
    assert checkpoint_names(tmp_path) == ["000000002", "000000003"]


def test_a_file_that_is_whole_again_counts_again(tmp_path):
    opt, _ = trained(1)
    manager = CheckpointManager(tmp_path, keep=2)
    first, second = manager.save(opt), manager.save(opt)
    damage(second)
    with pytest.warns(UserWarning, match="skipping"):
        assert manager.latest() == [first]
    damage(second)  # flips the same bit back
    assert manager.latest() == [second]
    manager.save(opt)
    assert checkpoint_names(tmp_path) == ["000000002", "000000003"]


@pytest.mark.parametrize("full_every", [1, 3])
def test_latest_finds_a_file_while_others_are_saved(tmp_path, monkeypatch, full_every):
    opt, table = trained(1)
    saver = CheckpointManager(tmp_path, keep=1, full_every=full_every)
    for _ in range(full_every):
        saver.save(opt)
    left = [2]
    real = checkpoint_manager.read

    def read(path):
        if left[0]:
            left[0] -= 1
            for _ in range(full_every):
                train(opt, table)
                saver.save(opt)
        return real(path)

    monkeypatch.setattr(checkpoint_manager, "read", read)
    found = CheckpointManager(tmp_path).latest()
    assert left == [0]
    assert RMSprop.load(found, [np.zeros_like(table)]).iterations == opt.iterations


def test_latest_finds_a_first_file_that_is_saved_meanwhile(tmp_path, monkeypatch):
    opt, _ = trained(1)
    manager = CheckpointManager(tmp_path)

    def listed(folder):
        monkeypatch.undo()
        found = list(folder.iterdir())
        CheckpointManager(tmp_path).save(opt)
        return found

    monkeypatch.setattr(Path, "iterdir", listed)
    assert [path.name for path in manager.latest()] == ["checkpoint-000000001.safetensors"]
