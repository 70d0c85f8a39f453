"""Full disks, damaged files, forked and killed processes: no file is half written, and no damaged one is loaded."""

import copy
import json
import os
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from optimizer_internals import slots_of, state_of
from processes import run
from trained_tables import trained

from numba_rmsprop import CheckpointManager, DamagedCheckpointError, IndexedSlices, RMSprop

posix = pytest.mark.skipif(os.name != "posix", reason="limits and users of a process are POSIX's")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the pages of a process on Linux")

# The programs make up their gradients, and read no table.
WARNINGS = ["-W", "error", "-W", "ignore:table[batch] may have read old values"]


def succeeds(program, *arguments):
    done = run(program, *arguments, options=WARNINGS)
    assert done.returncode == 0, done.stderr


@posix
@pytest.mark.parametrize("options", [[], ["--without-variables"]], ids=str)
def test_a_full_disk_leaves_the_old_file(tmp_path, options):
    succeeds("save_on_full_disk.py", tmp_path, *options)


@posix
def test_a_delta_on_a_full_disk_leaves_nothing(tmp_path):
    succeeds("save_delta_on_full_disk.py", tmp_path)


@posix
def test_a_manager_on_a_full_disk_deletes_nothing(tmp_path):
    succeeds("save_with_manager_on_full_disk.py", tmp_path)


@posix
def test_a_read_only_folder_is_left_empty(tmp_path):
    with pytest.raises(FileNotFoundError):
        trained()[0].save(tmp_path / "nowhere" / "opt")
    succeeds("save_in_read_only_folder.py")


@linux
def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done, opt = [], trained()[0]  # which may compile, and write into Numba's cache

    def watched(name, describe):
        function = getattr(os, name)

        def call(*arguments):
            done.append((name, describe(*arguments)))
            return function(*arguments)

        monkeypatch.setattr(os, name, call)

    watched("fsync", lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
    watched("replace", lambda old, new: (Path(old).suffix, Path(new).name))
    opt.save(tmp_path / "opt")
    assert done == [("fsync", ".part"), ("replace", (".part", "opt")), ("fsync", "")]


@posix
def test_a_link_stays_one_and_the_file_has_usual_rights(tmp_path):
    opt, _ = trained()
    (tmp_path / "disk").mkdir()
    (tmp_path / "opt").symlink_to(tmp_path / "disk" / "file")
    mask = os.umask(0o027)
    try:
        opt.save(tmp_path / "opt")
    finally:
        os.umask(mask)
    assert (tmp_path / "opt").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["file"]
    assert (tmp_path / "disk" / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, b"\2\0\0\0\0\0\0\0{}", b"{" * 10**4])
def test_empty_and_tiny_files_are_refused(tmp_path, content):
    path = tmp_path / "opt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a .*safetensors file|expected format"):
        RMSprop.load(path, [])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the paths of a file and a delta, the variables, and the state."""
    folder = tmp_path_factory.mktemp("saved")
    opt, variables = trained()
    opt.save(folder / "base", include_variables=True)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2), np.float32), [2]), variables[0])])
    opt.flush()
    opt.save_delta(folder / "delta")
    return [folder / "base", folder / "delta"], variables, state_of(opt, variables)


def outcome(paths, variables, state):
    """Load into copies; return "refused", with the copies unchanged, or "no difference"."""
    copies = [np.full_like(var, 7) for var in variables]
    before = [copy.tobytes() for copy in copies]
    try:
        opt = RMSprop.load(paths, copies)
    except DamagedCheckpointError:
        assert [copy.tobytes() for copy in copies] == before
        return "refused"
    assert state_of(opt, copies) == state
    return "no difference"


def changed(path, tmp_path, change):
    content = bytearray(path.read_bytes())
    change(content)
    (tmp_path / "changed").write_bytes(content)
    return tmp_path / "changed"


@pytest.mark.parametrize("which", [0, 1], ids=["base", "delta"])
def test_any_flipped_bit_is_refused(saved, tmp_path, which):
    paths, variables, state = saved
    rng, size, counts = random.Random(which), paths[which].stat().st_size, {"refused": 0, "no difference": 0}
    places = {(rng.randrange(size), rng.randrange(8)) for _ in range(600)}
    for byte, bit in places:

        def flip(content, byte=byte, bit=bit):
            content[byte] ^= 1 << bit

        trial = list(paths)
        trial[which] = changed(paths[which], tmp_path, flip)
        counts[outcome(trial, variables, state)] += 1
    assert counts == {"refused": len(places), "no difference": 0}


def test_every_flipped_bit_of_the_first_bytes_is_refused(saved, tmp_path):
    paths, variables, state = saved
    for bit in range(8 * 64):

        def flip(content, bit=bit):
            content[bit // 8] ^= 1 << bit % 8

        assert outcome([changed(paths[0], tmp_path, flip)], variables, state) == "refused"


def test_a_file_that_another_tool_wrote_anew_is_refused(saved, tmp_path):
    """Other tools write no checksums, and may write the entries of a header in another order."""
    paths, variables, state = saved

    def reorder(content):
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header["__metadata__"]
        metadata["crc32"] = metadata.pop("crc32")
        content[8 : 8 + length] = json.dumps(header, separators=(",", ":")).encode().ljust(length)

    assert outcome([changed(paths[0], tmp_path, reorder)], variables, state) == "refused"


def test_truncated_and_longer_files_are_refused(saved, tmp_path):
    paths, variables, state = saved
    size = paths[0].stat().st_size
    for length in [*range(64), *random.Random(0).sample(range(size), 100), size - 1]:
        cut = changed(paths[0], tmp_path, lambda content, length=length: content.__delitem__(slice(length, None)))
        assert outcome([cut], variables, state) == "refused"
    longer = changed(paths[0], tmp_path, lambda content: content.append(0))
    assert outcome([longer], variables, state) == "refused"


def test_a_file_of_another_model_is_refused(tmp_path):
    table = np.ones((50, 4), np.float32)
    for name, settings in {"plain": {}, "momentum": {"momentum": 0.5}}.items():
        opt = RMSprop(**settings)
        opt.build([table])
        opt.save(tmp_path / name, include_variables=True)
    with pytest.raises(
        ValueError, match=r"expected variables\[0\] \(float32, shape \(50, 4\)\), got .*shape \(50, 5\)"
    ):
        RMSprop.load(tmp_path / "plain", [np.ones((50, 5), np.float32)])
    with pytest.raises(ValueError, match=r"expected variables\[0\] \(float32, .*got .*float64"):
        RMSprop.load(tmp_path / "plain", [table.astype(np.float64)])
    with pytest.raises(ValueError, match="expected the delta that was saved after"):
        RMSprop.load([tmp_path / "plain", tmp_path / "momentum"], [table])


def test_a_hostile_file_takes_no_more_memory_than_its_size(tmp_path):
    succeeds("load_hostile_headers.py", tmp_path)


@linux
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_tables_are_saved_and_loaded_without_a_copy(tmp_path, order):
    succeeds("save_and_load_in_little_memory.py", tmp_path, order)


@linux
def test_a_table_beyond_memory(tmp_path):
    succeeds("train_a_table_beyond_memory.py", tmp_path)


@linux
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}], ids=str)
def test_an_exact_step_dirties_the_pages_of_touched_rows_alone(tmp_path, settings):
    succeeds("count_dirty_pages.py", tmp_path, json.dumps(settings))


@posix
def test_a_disk_too_small_for_the_slots_refuses_the_first_step(tmp_path):
    succeeds("make_slots_on_full_disk.py", tmp_path)


@posix
def test_slots_in_files_have_their_place_on_the_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    opt, table = RMSprop(slots_folder=tmp_path), np.ones((20_000, 16))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            opt.apply_gradients([(IndexedSlices(np.ones((1, 16)), [1]), table)])
    assert (table == 1).all()
    assert opt.get_weights() == [0]
    opt.apply_gradients([(IndexedSlices(np.ones((1, 16)), [1]), table)])


@posix
def test_a_forked_process_leaves_the_files_of_its_parent_alone(tmp_path):
    succeeds("fork_with_slots_in_files.py", tmp_path)


@pytest.mark.parametrize(
    "again", [lambda both: pickle.loads(pickle.dumps(both)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_a_forked_process_owns_what_it_unpickles_or_copies(tmp_path, monkeypatch, again):
    opt, table = RMSprop(momentum=0.9, slots_folder=tmp_path), np.ones((5000, 4))
    step = IndexedSlices(np.ones((1, 4)), [1])
    opt.apply_gradients([(step, table)])
    monkeypatch.setattr("numba_rmsprop.runtime.launching.forks", 1)
    with pytest.raises(RuntimeError, match="slots are in files"):
        opt.apply_gradients([(step, table)])
    own, copied = again((opt, table))
    tmp_path.rmdir()  # a process on another machine does not have the folder
    own.apply_gradients([(step, copied), (np.ones(3), np.ones(3))])
    own.flush()
    assert own.iterations == 2
    assert (own.gather(copied, [1]) < table[1]).all()
    monkeypatch.setattr("numba_rmsprop.runtime.launching.forks", 2)
    own.apply_gradients([(step, copied)])


def test_files_of_slots_go_with_the_optimizer(tmp_path):
    opt, table = RMSprop(momentum=0.9, slots_folder=tmp_path), np.ones((5000, 4))
    opt.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), table)])
    alone, other = RMSprop(momentum=0.9), np.ones((5000, 4))
    alone.apply_gradients([(IndexedSlices(np.ones((1, 4)), [1]), other)])
    assert state_of(opt, [table]) == state_of(alone, [other])
    slots = slots_of(opt, table)
    assert not any(array.flags.owndata for array in (*slots.arrays.values(), slots.clocks))
    assert "slots_folder" not in opt.get_config()
    assert list(tmp_path.iterdir()) == []


def test_a_manager_removes_what_killed_processes_left(tmp_path):
    opt, _ = trained()
    for token in ("0a1b2c3d", "0a1b2c3d4e5f6071"):
        (tmp_path / f"checkpoint-000000001.safetensors.{token}.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"mine")
    CheckpointManager(tmp_path).save(opt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000000001.safetensors", "mine.part"]
