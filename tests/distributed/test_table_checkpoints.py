"""Sharded tables saved and loaded: on other numbers of ranks, in one process, after damage, and after kills."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from on_ranks import finish, needs_mpi, reports, start
from sharded_training import OPTIONS, new_array, take_step_alone

from numba_rmsprop import DamagedCheckpointError, RMSprop
from numba_rmsprop.distributed import SavedTables

pytestmark = [pytest.mark.mpi, needs_mpi]


class OneProcess:
    """The same training without ranks."""

    def __init__(self):
        self.tables = {"small": new_array(2, 3), "words": new_array(300, 4)}
        self.optimizers = {"small": RMSprop(), "words": RMSprop(**OPTIONS)}
        self.bias, self.opt = np.ones(5), RMSprop(0.1)

    def go_on_to(self, step):
        for t in range(self.opt.iterations, step):
            for name, table in self.tables.items():
                take_step_alone(self.optimizers[name], table, t)
            self.opt.apply_gradients([(np.random.default_rng(t).standard_normal(5), self.bias)])

    def is_in(self, saved):
        """Assert that a checkpoint holds the same bits, clocks and all."""
        bias = np.empty(5)
        opt = saved.optimizer([bias])
        assert (bias == self.bias).all()
        assert opt.iterations == self.opt.iterations
        for name, expected in self.tables.items():
            table, opt = saved.whole(name)
            same_state(opt, table, self.optimizers[name], expected)


def same_state(opt, table, expected_opt, expected):
    ours, theirs = opt.known.slots[0], expected_opt.known.slots[0]
    assert table.tobytes() == expected.tobytes()
    assert opt.iterations == expected_opt.iterations
    assert (ours.steps, ours.floor) == (theirs.steps, theirs.floor)
    assert (ours.history.runs == theirs.history.runs).all()
    # A clock at or below the floor says the same as the floor.
    assert (np.maximum(ours.clocks, ours.floor) == np.maximum(theirs.clocks, theirs.floor)).all()
    for slot, array in ours.arrays.items():
        assert array.tobytes() == theirs.arrays[slot].tobytes(), slot


def finished(folder):
    return sorted(path for path in folder.glob("checkpoint-*") if (path / "manifest.json").exists())


def test_on_other_numbers_of_ranks_and_in_one_process(tmp_path):
    alone = OneProcess()
    for k, ranks in enumerate((1, 3, 2, 4)):
        assert reports("table_checkpoints.four_steps", ranks, tmp_path)[0][0] == [0.0, 0.9]
        alone.go_on_to(4 * (k + 1))
        saved = SavedTables(finished(tmp_path)[-1])
        assert saved.ranks == ranks
        alone.is_in(saved)
    assert [path.name for path in finished(tmp_path)] == ["checkpoint-000000003", "checkpoint-000000004"]
    # What was loaded goes on as well.
    table, opt = saved.whole("words")
    take_step_alone(opt, table, 16)
    take_step_alone(alone.optimizers["words"], alone.tables["words"], 16)
    same_state(opt, table, alone.optimizers["words"], alone.tables["words"])
    with pytest.raises(KeyError, match=r"expected one of the tables \['small', 'words'\], got 'x'"):
        saved.whole("x")


def test_reading_needs_no_mpi(tmp_path):
    reports("table_checkpoints.save_again", 2, tmp_path)
    (checkpoint,) = finished(tmp_path)
    program = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from numba_rmsprop.distributed import SavedTables\n"
        f"assert SavedTables({str(checkpoint)!r}).whole('words')[0].shape == (300, 4)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture(scope="module")
def three_saves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saves")
    reports("table_checkpoints.three_saves", 2, folder)
    assert [path.name for path in finished(folder)] == ["checkpoint-000000002", "checkpoint-000000003"]
    return folder


def damage(path, old=-3):
    content = bytearray(path.read_bytes())
    content[old] ^= 4
    path.write_bytes(content)


def read_everything(path):
    saved = SavedTables(path)
    for table in saved.names:
        saved.whole(table)
    saved.optimizer([np.empty(5)])


@pytest.mark.parametrize(
    "name", ["words.1-of-2.safetensors", "small.0-of-2.safetensors", "replicas.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("how", ["damaged", "missing", "another"])
def test_damaged_checkpoints_are_refused(tmp_path, three_saves, name, how):
    shutil.copytree(three_saves, tmp_path, dirs_exist_ok=True)
    last = finished(tmp_path)[-1]
    if how == "damaged":
        damage(last / name)
    elif how == "missing":
        (last / name).unlink()
    else:
        shutil.copy(finished(tmp_path)[0] / name, last / name)
    with pytest.raises((DamagedCheckpointError, OSError)):
        read_everything(last)


def test_the_latest_is_one_whose_every_byte_is_right(tmp_path, three_saves):
    shutil.copytree(three_saves, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-000000007").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    before, last = finished(tmp_path)
    assert reports("table_checkpoints.latest", 2, tmp_path)[0] == [["checkpoint-000000003", []]] * 2
    shutil.copy(before / "replicas.safetensors", last)
    for name, (warned,) in reports("table_checkpoints.latest", 2, tmp_path)[0]:
        assert name == "checkpoint-000000002"
        assert "skipping checkpoint-000000003" in warned
    damage(before / "words.1-of-2.safetensors")
    for name, warned in reports("table_checkpoints.latest", 3, tmp_path)[0]:
        assert name is None
        assert len(warned) == 2
    damage(before / "words.1-of-2.safetensors")
    reports("table_checkpoints.save_again", 2, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000002", "checkpoint-000000008", "notes.txt",
    ]  # fmt: skip


def test_a_save_that_fails_on_one_rank_leaves_the_one_before(tmp_path):
    disk, name, notes, long, keep, *others, flushed, latest, saved = reports(
        "table_checkpoints.failing_saves", 2, tmp_path
    )
    assert [kind for kind, _ in disk] == ["OtherRankError", "OSError"]
    assert [kind for kind, _ in name] == ["OtherRankError", "ValueError"]
    assert [kind for kind, _ in notes] == ["TypeError", "OtherRankError"]
    assert [kind for kind, _ in long] == ["ValueError", "OtherRankError"]
    assert [kind for kind, _ in keep] == ["ValueError", "OtherRankError"]
    for of_all in [*others, flushed]:
        assert [kind for kind, _ in of_all] == ["ValueError", "ValueError"]
    assert "expected the same steps on all ranks" in flushed[0][1]
    assert "expected tables on the ranks of" in others[2][0][1]
    assert latest == ["checkpoint-000000001"] * 2
    assert len(set(saved)) == 1
    assert len(finished(tmp_path)) == len(list(tmp_path.iterdir())) == 2


def test_what_ranks_cannot_read_or_have_not_trained_stays(tmp_path):
    (tmp_path / "checkpoint-000000001").mkdir()
    (tmp_path / "checkpoint-000000001" / "thesis.txt").write_text("mine")
    (tmp_path / "checkpoint-000000002").mkdir()
    (tmp_path / "checkpoint-000000002" / "words.0-of-2.safetensors").touch()
    unreadable, latest = reports("table_checkpoints.unreadable_and_replaced", 2, tmp_path)
    ((warned, nothing),) = reports("table_checkpoints.another_training", 2, tmp_path)
    for words in unreadable:
        assert "checkpoint-000000006 cannot be read now, which does not mean that it is damaged" in words
    assert latest == ["checkpoint-000000008"] * 2
    assert nothing == []
    (words,) = warned
    assert "a training of 4 iterations, and what is saved, with 1, does not go on from it" in words
    assert [path.name[-3:] for path in sorted(tmp_path.iterdir())] == ["001", "007", "008", "015"]
    assert SavedTables(finished(tmp_path)[-1]).whole("words")[1].iterations == 7


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.long)])
def test_kills_of_a_rank_lose_no_bit(kills, tmp_path, seed):
    """Ranks train and save until one of them is killed; the next job goes on from what that one left."""
    rng = random.Random(seed)
    alone, reached, unfinished = OneProcess(), [], 0
    for kill in range(kills):
        ranks = 3 if kill % 10 == 9 else 2
        process = start("table_checkpoints.until_killed", ranks, tmp_path)
        pids, wanted = {}, rng.randint(0, 12)
        for line in process.stdout:
            word, *numbers = line.split()
            if word == "PID":
                pids[int(numbers[0])] = int(numbers[1])
            elif word == "STEP":
                wanted -= 1
            if len(pids) == ranks and (wanted <= 0 or kill % 10 == 0):  # some before they have done anything
                break
        else:
            pytest.fail(f"the job ended by itself: {finish(process)}")
        time.sleep(rng.uniform(0, 0.05))  # only says when to kill: whatever moment it is must do
        os.kill(pids[rng.randrange(ranks)], signal.SIGKILL)
        status, _, errors = finish(process)
        assert status != 0
        assert "signal 9" in errors
        saves = finished(tmp_path)
        unfinished += len(saves) < len(list(tmp_path.glob("checkpoint-*")))
        if saves:
            saved = SavedTables(saves[-1])
            alone.go_on_to(saved.notes["step"])
            alone.is_in(saved)
            reached.append(saved.notes["step"])
    assert reached == sorted(reached)
    assert reached[-1] > kills
    assert unfinished > 0 or kills < 50, "no rank was killed in the middle of a save"
    print(f"{reached[-1]} steps, {len(set(reached))} different points, {unfinished} kills during a save")
