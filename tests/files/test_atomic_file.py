"""Places of files: permissions, owners, links, pipes, unusual names, and folders that are made."""

import os
import socket
import stat

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import checkpoint_names

from numba_rmsprop import CheckpointManager, RMSprop
from numba_rmsprop.files import atomic_file

posix = pytest.mark.skipif(os.name != "posix", reason="permissions, pipes and sockets are POSIX's")


@pytest.fixture
def opt():
    made = RMSprop(0.1)
    made.apply_gradients([(np.ones(3), np.ones(3))])
    return made


def loads(path):
    return RMSprop.load(path, [np.zeros(3)]).iterations == 1


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, opt, mode):
    path = tmp_path / "opt"
    opt.save(path)
    path.chmod(mode)
    opt.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert loads(path)


@posix
def test_a_file_that_is_replaced_keeps_its_owner_where_that_is_allowed(tmp_path, opt, monkeypatch):
    path = tmp_path / "opt"
    opt.save(path)
    path.chmod(0o640)
    asked = []
    monkeypatch.setattr(os, "fchown", lambda _, *owner: asked.append(owner))
    opt.save(path)
    found = path.stat()
    assert asked == [(-1, found.st_gid), (found.st_uid, -1)]

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    opt.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@posix
def test_folders_pipes_and_sockets_are_refused_and_stay(tmp_path, opt, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    os.mkdir("folder")
    opt.save("opt")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        kinds = {"pipe": "a named pipe", "link": "a named pipe", "folder": "a folder", "socket": "a socket"}
        for name, kind in {**kinds, "folder/": "a folder", "new/": "a folder", "": "a folder"}.items():
            before = [(entry.name, entry.stat().st_mode) for entry in os.scandir()]
            for call in (opt.save, opt.save_delta):
                with pytest.raises(OSError, match=f"'{name}': expected a regular file, got {kind}"):
                    call(name)
            assert [(entry.name, entry.stat().st_mode) for entry in os.scandir()] == before
        for name, kind in kinds.items():
            with pytest.raises(
                OSError, match=f"expected a regular file, got {kind}"
            ):  # reading a pipe without a writer would block for ever
                RMSprop.load(name, [np.zeros(3)])


@pytest.mark.parametrize("length", [1, 64, 230, 242, 255])
def test_a_name_may_be_as_long_as_the_system_takes(tmp_path, opt, length):
    for letter in "xü":
        path = tmp_path / (letter * (length // len(letter.encode())) or "x")
        opt.save(path)
        assert loads(path)
        assert [found.name for found in tmp_path.iterdir()] == [path.name]
        path.unlink()


@posix
def test_a_name_may_have_bytes_that_are_no_text(tmp_path, opt):
    path = os.path.join(tmp_path, os.fsdecode(b"\xff\xfe\n"))
    opt.save(path)
    assert loads(path)


def test_paths_in_bytes_and_things_that_are_no_path(tmp_path, opt):
    opt.save(tmp_path / "opt")

    class InBytes:
        def __fspath__(self):
            return os.fsencode(tmp_path / "opt")

    for path in (os.fsencode(tmp_path / "opt"), InBytes()):
        for call in (opt.save, opt.save_delta, lambda path: RMSprop.load(path, [np.zeros(3)])):
            with pytest.raises(TypeError, match=r"path: expected .* path-like object, got bytes; pass os\.fsdecode"):
                call(path)
    with pytest.raises(TypeError, match="path: expected a string or a path-like object, got int"):
        opt.save(3)
    assert checkpoint_names(tmp_path) == ["opt"]


@posix
def test_a_folder_is_on_the_disk_as_soon_as_it_is_made(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(atomic_file, "sync_folder", synced.append)
    CheckpointManager(tmp_path / "a" / "b" / "c")
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises((FileExistsError, NotADirectoryError)):
            CheckpointManager(path)


def test_other_things_named_like_checkpoints_are_skipped_and_stay(tmp_path, opt):
    manager = CheckpointManager(tmp_path, keep=1)
    path = manager.save(opt)
    foreign = {
        "checkpoint-000000000.safetensors": lambda place: place.mkdir(),
        "checkpoint-000000002.safetensors": lambda place: safetensors.numpy.save_file({"x": np.ones(3)}, place),
        "checkpoint-000000003.safetensors": lambda place: place.write_bytes(b"notes"),
        "checkpoint-000000004.safetensors": lambda place: place.mkdir(),
    }
    if os.name == "posix":
        foreign["checkpoint-000000005.safetensors"] = os.mkfifo
    for name, make in foreign.items():
        make(tmp_path / name)
    for asked in (manager, CheckpointManager(tmp_path, keep=1)):
        with pytest.warns(UserWarning, match="skipping") as told:
            assert asked.latest() == [path]
        assert len(told) == len(foreign) - 1
    last = manager.save(opt)
    assert last.name == f"checkpoint-{len(foreign) + 1:09d}.safetensors"
    assert manager.latest() == [last]
    assert {found.name for found in tmp_path.iterdir()} == {*foreign, last.name}


def test_an_undeletable_file_stays_with_a_warning(tmp_path, opt, monkeypatch):
    manager = CheckpointManager(tmp_path, keep=1)
    first = manager.save(opt)

    def refuse(path, **_):
        raise PermissionError(f"not permitted: {path}")

    with monkeypatch.context() as patch:
        patch.setattr(type(first), "unlink", refuse)
        with pytest.warns(UserWarning, match="cannot delete checkpoint-000000001") as told:
            second = manager.save(opt)
    assert len(told) == 1
    assert manager.latest() == [second]
    manager.save(opt)
    assert checkpoint_names(tmp_path) == ["000000003"]
