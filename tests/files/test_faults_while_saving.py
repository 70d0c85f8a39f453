"""What happens to files and memory on a bad day: nothing is half done, and nothing damaged is taken for whole."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from optimizer_internals import slots_of, state_of
from trained_tables import trained

from numba_rmsprop import CheckpointManager, DamagedCheckpointError, IndexedSlices, RMSprop

posix = pytest.mark.skipif(os.name != "posix", reason="limits and users of a process are POSIX's")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the pages of a process on Linux")

START = """
import os, resource, sys, tempfile
from pathlib import Path
import numba
import numpy as np
from numba_rmsprop import CheckpointManager, IndexedSlices, RMSprop

def limit(kind, more):
    resource.setrlimit(kind, (more, resource.getrlimit(kind)[1]))

def data_in_use():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

def step(opt, table, rows):
    opt.apply_gradients([(IndexedSlices(np.ones((len(rows), table.shape[1]), table.dtype), rows), table)])
"""


READS_NO_TABLE = ["-W", "ignore:table[batch] may have read old values"]  # the programs make up their gradients


def run(program, *arguments):
    """Run a program in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *READS_NO_TABLE, "-c", START + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@posix
@pytest.mark.parametrize("call", ["save(path)", "save(path, include_variables=False)"])
def test_a_full_disk_leaves_the_old_file(tmp_path, call):
    run(
        f"""
path = sys.argv[1] + "/opt"
table, opt = np.ones((20_000, 16)), RMSprop()
step(opt, table, np.arange(10_000))
opt.save(path)
step(opt, table, np.arange(10_000))
before, state, saved = Path(path).read_bytes(), [w.tobytes() for w in opt.get_weights()], opt._saved
for size in (0, 100, 70_000, 1_000_000):
    limit(resource.RLIMIT_FSIZE, size)
    try:
        opt.{call}
    except OSError as error:
        assert "too large" in str(error), error
    else:
        raise AssertionError(size)
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
assert os.listdir(sys.argv[1]) == ["opt"]
assert Path(path).read_bytes() == before
assert [w.tobytes() for w in opt.get_weights()] == state and opt._saved == saved
opt.{call}
assert Path(path).read_bytes() != before
""",
        tmp_path,
    )


@posix
def test_a_delta_on_a_full_disk_leaves_nothing(tmp_path):
    run(
        """
path = sys.argv[1] + "/delta"
table, opt = np.ones((20_000, 16)), RMSprop()
step(opt, table, np.arange(10_000))
opt.save(sys.argv[1] + "/base", include_variables=True)
step(opt, table, np.arange(10_000))
for size in (100, 70_000, 1_000_000):
    limit(resource.RLIMIT_FSIZE, size)
    try:
        opt.save_delta(path)
    except OSError:
        assert os.listdir(sys.argv[1]) == ["base"]
    else:
        raise AssertionError(size)
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
opt.save_delta(path)
copy = np.zeros_like(table)
found = RMSprop.load([sys.argv[1] + "/base", path], [copy])
assert (copy == table).all() and (found._slots[0].rms == opt._slots[0].rms).all()
""",
        tmp_path,
    )


@posix
def test_a_manager_on_a_full_disk_deletes_nothing(tmp_path):
    run(
        """
table, opt = np.ones((20_000, 16)), RMSprop()
manager = CheckpointManager(sys.argv[1], keep=1)
step(opt, table, [1])
path = manager.save(opt)
limit(resource.RLIMIT_FSIZE, 1_000_000)
try:
    manager.save(opt)
except OSError:
    assert manager.latest() == [path] and os.listdir(sys.argv[1]) == [path.name]
else:
    raise AssertionError
""",
        tmp_path,
    )


@posix
def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        trained()[0].save(tmp_path / "nowhere" / "opt")
    run(
        """
opt = RMSprop()
opt.build([np.ones(3)])
folder = tempfile.mkdtemp()
os.chmod(folder, 0o555)
try:
    if os.geteuid() == 0:
        os.seteuid(65534)  # to root every folder is writable
    try:
        opt.save(folder + "/opt")
    except PermissionError:
        assert os.listdir(folder) == []
    else:
        raise AssertionError
finally:
    os.seteuid(os.getuid())
    os.rmdir(folder)
"""
    )


@linux
def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []

    def watched(name, describe):
        function = getattr(os, name)

        def call(*arguments):
            done.append((name, describe(*arguments)))
            return function(*arguments)

        monkeypatch.setattr(os, name, call)

    watched("fsync", lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
    watched("replace", lambda old, new: (Path(old).suffix, Path(new).name))
    trained()[0].save(tmp_path / "opt")
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
def test_files_that_are_nothing(tmp_path, content):
    path = tmp_path / "opt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a .*safetensors file|expected format"):
        RMSprop.load(path, [])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file, a delta, and what they are loaded into."""
    folder = tmp_path_factory.mktemp("saved")
    opt, variables = trained()
    opt.save(folder / "base", include_variables=True)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2), np.float32), [2]), variables[0])])
    opt.flush()
    opt.save_delta(folder / "delta")
    return [folder / "base", folder / "delta"], variables, state_of(opt, variables)


def outcome(paths, variables, state):
    """Load into copies and return how it went; what is refused must leave them as they were."""
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
def test_flipped_bits(saved, tmp_path, which):
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


def test_every_flipped_bit_of_the_start(saved, tmp_path):
    paths, variables, state = saved
    for bit in range(8 * 64):

        def flip(content, bit=bit):
            content[bit // 8] ^= 1 << bit % 8

        assert outcome([changed(paths[0], tmp_path, flip)], variables, state) == "refused"


def test_a_file_that_another_tool_wrote_anew_is_refused(saved, tmp_path):
    """Such a tool knows nothing of checksums; and the order of a header's entries is nothing to it."""
    paths, variables, state = saved

    def reorder(content):
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header["__metadata__"]
        metadata["crc32"] = metadata.pop("crc32")
        content[8 : 8 + length] = json.dumps(header, separators=(",", ":")).encode().ljust(length)

    assert outcome([changed(paths[0], tmp_path, reorder)], variables, state) == "refused"


def test_truncated_and_longer_files(saved, tmp_path):
    paths, variables, state = saved
    size = paths[0].stat().st_size
    for length in [*range(64), *random.Random(0).sample(range(size), 100), size - 1]:
        cut = changed(paths[0], tmp_path, lambda content, length=length: content.__delitem__(slice(length, None)))
        assert outcome([cut], variables, state) == "refused"
    longer = changed(paths[0], tmp_path, lambda content: content.append(0))
    assert outcome([longer], variables, state) == "refused"


def test_a_file_of_another_model(tmp_path):
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
    """A header that promises arrays of a terabyte, texts that explode when parsed, and a header of deep brackets."""
    run(
        """
import json
from numba_rmsprop.files.safetensors_file import write_tensors
path = sys.argv[1] + "/opt"
opt = RMSprop()
opt.build([np.ones(3)])
opt.save(path)
content = open(path, "rb").read()
length = int.from_bytes(content[:8], "little")
header = json.loads(content[8 : 8 + length])
size = 30_000_000

def attempt():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        RMSprop.load(path, [np.ones(3)])
    except ValueError as error:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(grown, str(error)[:150])
        assert grown < size
    else:
        raise AssertionError

def write(header, data):
    text = json.dumps(header).encode()
    open(path, "wb").write(len(text).to_bytes(8, "little") + text + data)

attempt_of = dict(header)
for name, entry in header.items():
    if name != "__metadata__":
        attempt_of[name] = dict(entry, shape=[2**37], data_offsets=[0, 2**40])
write(attempt_of, content[8 + length :])
attempt()
big = dict(header, __metadata__=dict(header["__metadata__"], config="[" + "[]," * (size // 3) + "[]]"))
write(big, content[8 + length :])
attempt()
write(dict(header, deep=json.loads("[" * 500 + "]" * 500)), b"")
attempt()
open(path, "wb").write(size.to_bytes(8, "little") + b"[" * size)
attempt()
open(path, "wb").write(size.to_bytes(8, "little") + b'{"a":' + b"[]," * (size // 3))
attempt()
""",
        tmp_path,
    )


@linux
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_tables_are_saved_and_loaded_without_a_copy(tmp_path, order):
    run(
        f"""
path = sys.argv[1] + "/opt"
table, opt = np.ones((500_000, 32), np.float32, order="{order}"), RMSprop()  # 64 MB
step(opt, table, [1, 2, 3])
more = 24 << 20
limit(resource.RLIMIT_DATA, data_in_use() + more)
opt.save(path, include_variables=True)
limit(resource.RLIMIT_DATA, data_in_use() + more + table.nbytes + 2_000_000)  # the new optimizer has an rms of its own
table[...] = 0
found = RMSprop.load(path, [table])
assert table[0, 0] == 1 and table[3, 0] < 1 and found.iterations == 1
""",
        tmp_path,
    )


@linux
def test_a_table_beyond_memory(tmp_path):
    """A table four times as large as the memory that the process may have, and slots of the same size."""
    run(
        """
folder = Path(sys.argv[1])
shape = 1_000_000, 64
opt = RMSprop(momentum=0.9, slots_folder=folder)
small = np.memmap(folder / "small", np.float32, "w+", shape=(300, 64))
step(opt, small, [1])  # whatever Numba loads is loaded before the limit is set
opt.gather(small, [1])
limit(resource.RLIMIT_DATA, data_in_use() + (64 << 20))
table = np.memmap(folder / "table", np.float32, "w+", shape=shape)
rng = np.random.default_rng(0)
count = 50 if numba.config.DISABLE_JIT else 500
for t in range(20):
    rows = rng.integers(0, len(table), count)
    opt.gather(table, rows)
    step(opt, table, rows)
assert opt.get_slot_names() == ["rms", "momentum"]
assert sorted(path.name for path in folder.iterdir()) == ["small", "table"]
opt.save(folder / "opt", include_variables=False)
same = RMSprop.load(folder / "opt", [small, table], slots_folder=folder)
assert all((a.rms[rows] == b.rms[rows]).all() for a, b in zip(opt._slots[1:], same._slots[1:]))
blocks = os.stat(folder / "table").st_blocks * 512
assert blocks < 20 * count * 4096 * 1.1, blocks  # the file has only the pages of touched rows
try:
    RMSprop().build([np.memmap(folder / "table", np.float32, "r+", shape=shape)])
except MemoryError:
    pass
else:
    raise AssertionError("the limit does not limit")
""",
        tmp_path,
    )


@linux
@pytest.mark.parametrize("settings", ["", "momentum=0.9, centered=True, weight_decay=0.1"])
def test_an_exact_step_dirties_the_pages_of_touched_rows_alone(tmp_path, settings):
    run(
        f"""
folder = sys.argv[1]
opt = RMSprop({settings or "0.1"}, slots_folder=folder)
table = np.memmap(folder + "/table", np.float32, "w+", shape=(50_000, 64))  # all zeros, no page on the disk

def dirty_pages(array):
    '''Return how many pages of an array this process has written since they were last synchronised.'''
    address, found = array.__array_interface__["data"][0], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            found = low <= address < high
        elif found and first in ("Private_Dirty:", "Shared_Dirty:") and line.split()[1] != "0":
            return int(line.split()[1]) * 1024 // 4096
    return 0

rows = np.arange(16) * 3000  # 16 rows of 256 bytes, on 16 pages
for t in range(3):
    step(opt, table, rows + t)
slots = opt._slots[0]
arrays = [array for array in (table, slots.rms, slots.momentum, slots.mg) if array is not None]
os.sync()
for array in arrays:
    base = array
    while not hasattr(base, "flush"):
        base = base.base
    base.flush()
clean = [dirty_pages(array) for array in arrays]
step(opt, table, rows + 3)
dirty = [dirty_pages(array) for array in arrays]
print(clean, dirty)
assert clean == [0] * len(arrays) and dirty == [16] * len(arrays), (clean, dirty)
""",
        tmp_path,
    )


@posix
def test_a_disk_that_is_too_small_for_the_slots_is_found_out_at_once(tmp_path):
    run(
        """
limit(resource.RLIMIT_FSIZE, 1_000_000)
opt, table = RMSprop(slots_folder=sys.argv[1]), np.ones((20_000, 16))
try:
    step(opt, table, [1])
except OSError:
    assert (table == 1).all() and opt.iterations == 0 and opt.get_weights() == [0]
else:
    raise AssertionError
""",
        tmp_path,
    )


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
    run(
        """
opt, table = RMSprop(momentum=0.9, slots_folder=sys.argv[1]), np.ones((20_000, 2))
dense, sparse = (np.ones((20_000, 2)), table), (IndexedSlices(np.ones((1, 2)), [1]), table)
for _ in range(3):
    opt.apply_gradients([sparse])
before = opt._slots[0].rms.tobytes(), opt._slots[0].clocks.tobytes()
child = os.fork()
if child == 0:
    calls = [
        lambda: opt.apply_gradients([sparse]),
        lambda: opt.apply_gradients([dense]),
        lambda: opt.apply_gradients([sparse, (np.ones(3), np.ones(3))]),
        lambda: opt.gather(table, [1, 2]),
        opt.flush,
        lambda: opt.save(sys.argv[1] + "/opt"),
    ]
    refused = 0
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            refused += "slots are in files" in str(error)
    own, other = RMSprop(slots_folder=sys.argv[1]), np.ones((20_000, 2))
    own.apply_gradients([(sparse[0], other)])
    os._exit(0 if refused == len(calls) and own.iterations == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
assert (opt._slots[0].rms.tobytes(), opt._slots[0].clocks.tobytes()) == before
opt.apply_gradients([sparse])
""",
        tmp_path,
    )


@pytest.mark.parametrize(
    "again", [lambda both: pickle.loads(pickle.dumps(both)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_what_a_forked_process_unpickles_or_copies_is_its_own(tmp_path, monkeypatch, again):
    opt, table = RMSprop(momentum=0.9, slots_folder=tmp_path), np.ones((5000, 4))
    step = IndexedSlices(np.ones((1, 4)), [1])
    opt.apply_gradients([(step, table)])
    monkeypatch.setattr("numba_rmsprop.runtime.launching.forks", 1)
    with pytest.raises(RuntimeError, match="slots are in files"):
        opt.apply_gradients([(step, table)])
    own, copied = again((opt, table))
    tmp_path.rmdir()  # which a process on another machine does not have
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
