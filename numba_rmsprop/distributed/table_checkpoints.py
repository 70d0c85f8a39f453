"""Tables saved by all ranks together, and the last few of such checkpoints in a folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..files.atomic_file import is_there, make_folder, sync_folder, write_atomically
from ..files.checkpoint import AnyPath, heading, read
from ..files.checkpoint_manager import Heading, choose_run
from ..files.safetensors_file import NO_CHECKPOINT, DamagedCheckpointError, cannot_read_now
from ..mpi.ranks import Ranks
from ..optimizer import RMSprop
from ..runtime.caller_warnings import warn
from ..runtime.interrupts import Uninterrupted
from .saved_tables import FORMAT, FORMAT_VERSION, MANIFEST, REPLICAS, TABLE_NAME, SavedTables, manifest_text, shard_name
from .table import ShardedTable

NAME = re.compile(r"checkpoint-(\d{9,})")
PARTS = re.compile(r".+\.\d+-of-\d+\.safetensors|.+\.[0-9a-f]{8,}\.part")
"""What a save that was never finished leaves."""

Said = TypeVar("Said")


class TableCheckpoints:
    """Saves tables, and what belongs to them, into numbered folders, of which it keeps the last few.

    Each rank writes its rows into a file of its own. A checkpoint counts from the moment when its manifest is there,
    which one rank writes when all files are on the disk. All ranks call each method together.

    Parameters
    ----------
    communicator : mpi4py.MPI.Intracomm
        The ranks.
    folder : path-like
        Made if it is not there; on a file system that all ranks see.
    keep : int, default 2
        How many checkpoints to keep.

    Raises
    ------
    ValueError
        If ``keep`` is less than 1; on all ranks, if their arguments differ.

    Examples
    --------
    >>> from mpi4py import MPI  # doctest: +SKIP
    >>> checkpoints = TableCheckpoints(MPI.COMM_WORLD, "run")  # doctest: +SKIP
    >>> path = checkpoints.save({"words": table}, notes={"epoch": 3})  # doctest: +SKIP
    >>> saved = checkpoints.latest()  # doctest: +SKIP
    >>> table, epoch = saved.table(MPI.COMM_WORLD, "words"), saved.notes["epoch"]  # doctest: +SKIP
    """

    def __init__(self, communicator: Any, folder: AnyPath, keep: int = 2) -> None:
        self._ranks = Ranks.of(communicator)
        self._number = self._ranks.members + 1
        self.keep = keep
        self._damaged: set[Path] = set()

        def prepare() -> None:
            if keep < 1:
                raise ValueError(f"keep: expected 1 or more, got {keep}")
            self.folder = Path(folder)
            make_folder(self.folder)

        with Uninterrupted():
            self._ranks.together(f"TableCheckpoints {self._number}, keep {keep}", prepare)
            self._number = self._ranks.join()

    def save(
        self,
        tables: Mapping[str, ShardedTable],
        *,
        optimizer: RMSprop | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Path:
        """Save tables, then delete what is no longer kept; return the folder of the new checkpoint.

        Checkpoints of another training are kept, as by :meth:`CheckpointManager.save`.
        Signals wait for their handlers until all is written.

        Parameters
        ----------
        tables : mapping of str to ShardedTable
            The tables by name: letters, digits, ``_``, ``-`` and ``.``.
        optimizer : RMSprop, optional
            An optimizer that has the same state on all ranks; saved once, with its variables.
        notes : mapping, optional
            What else to remember, as JSON can hold it; that of rank 0 is saved.

        Raises
        ------
        OSError
            If a file cannot be written; on the other ranks, OtherRankError. The checkpoints before it are untouched.
        TypeError, ValueError
            If a name or notes are not such.
        """
        with Uninterrupted():  # or else ranks could tell apart whether there is a checkpoint
            return self._save(tables, optimizer, notes)

    def _save(
        self, tables: Mapping[str, ShardedTable], optimizer: RMSprop | None, notes: Mapping[str, Any] | None
    ) -> Path:
        newest = max(self._numbers(clean_up=True), default=0)
        path = self._path(newest + 1)
        self._damaged.discard(path)
        names = list(tables)

        def write_shards() -> list[tuple[str, str]]:
            for name, table in tables.items():
                if table.ranks is not self._ranks:
                    raise ValueError(f"tables: expected tables on the ranks of this TableCheckpoints, got {name!r}")
                if not TABLE_NAME.fullmatch(name):
                    raise ValueError(f"tables: expected names of letters, digits, '_', '-' and '.', got {name!r}")
            path.mkdir(exist_ok=True)
            files = {name: path / shard_name(name, self._ranks.rank, self._ranks.size) for name in names}
            return [tables[name].save_shard(file) for name, file in files.items()]

        numbers = [table.number for table in tables.values()]
        what = f"save of {names}, tables {numbers}, optimizer {optimizer is not None}"
        everywhere = self._together(what, write_shards)

        for k, name in enumerate(names):
            states = [of_one[k][1] for of_one in everywhere]
            if len(set(states)) > 1:  # all ranks see the same, and raise
                raise ValueError(
                    f"{name!r}: expected the same steps on all ranks, got {states} (iterations, steps, steps flushed, "
                    "checksum of runs); was its optimizer flushed, or given steps, on some ranks only?"
                )

        run = ""

        def write_manifest() -> None:
            nonlocal run
            if self._ranks.rank:
                return
            run = self._run_of(tables, optimizer)
            replicas = None
            if optimizer is not None:
                optimizer.save(path / REPLICAS, include_variables=True)
                replicas = read(path / REPLICAS).identity
            entries = {
                name: tables[name].description() | {"identities": [of_one[k][0] for of_one in everywhere]}
                for k, name in enumerate(names)
            }
            content = {"format": FORMAT, "format_version": FORMAT_VERSION, "ranks": self._ranks.size, "run": run}
            text = manifest_text(content | {"tables": entries, "replicas": replicas, "notes": dict(notes or {})})
            missing = [
                file
                for name in names
                for rank in range(self._ranks.size)
                if not (file := path / shard_name(name, rank, self._ranks.size)).exists()
            ]
            if missing:
                raise OSError(f"{missing[0]} is not to be seen; expected a folder on a file system that all ranks see")
            write_atomically(path / MANIFEST, lambda file: file.write(text.encode()))
            sync_folder(os.fspath(self.folder))

        self._together("the manifest", write_manifest)
        if self._ranks.rank == 0:
            for table in tables.values():
                table.run = run
            self._delete_old(run)
        return path

    def latest(self) -> SavedTables | None:
        """Return the newest checkpoint whose every byte is right, the same on all ranks; None if there is none.

        Newer ones that are damaged are passed over, with a warning each; unfinished ones without. Other ranks may save
        meanwhile; then this looks again.

        Raises
        ------
        OSError
            On all ranks, if one of them cannot read a file now: the checkpoint may be a good one.
        ValueError
            If a newer version of the library wrote one.
        """
        with Uninterrupted():
            while True:
                numbers = self._numbers()
                found, trouble = None, []
                for number in sorted(numbers, reverse=True):
                    path = self._path(number)
                    found, words, damaged = self._checked(path)
                    if found is not None:
                        break
                    trouble.append((path, words, damaged))
                    if not damaged:
                        break
                if (found is not None and not trouble) or self._numbers() == numbers:
                    break
            for path, words, damaged in trouble:
                if not damaged:
                    raise OSError(words)
                self._damaged.add(path)
                warn(f"skipping {path.name}: {words}")
            if found is not None:
                self._damaged.discard(found.path)
            return found

    def _checked(self, path: Path) -> tuple[SavedTables | None, str, bool]:
        """Return a checkpoint of which each rank has read some files; or what is wrong, and whether for good."""
        found: list[SavedTables] = []

        def check() -> tuple[str, bool]:
            try:
                saved = SavedTables(path)
                for k, (file, identity) in enumerate(saved.files()):
                    if k % self._ranks.size == self._ranks.rank and read(file).identity != identity:
                        raise DamagedCheckpointError(f"{file}: expected the file of this checkpoint, got another")
                found.append(saved)
            except (*NO_CHECKPOINT, FileNotFoundError) as error:
                return str(error), True
            except (OSError, MemoryError) as error:
                return str(cannot_read_now(path.name, error)), False
            return "", False

        told = [(words, certain) for words, certain in self._together(f"a look at {path.name}", check) if words]
        if not told:
            return found[0], "", False
        words, certain = next((each for each in told if each[1]), told[0])
        return None, words, certain

    def _together(self, what: str, work: Callable[[], Said]) -> list[Said]:
        return self._ranks.together(f"{what}, of TableCheckpoints {self._number} in {self.folder}", work)

    def _numbers(self, *, clean_up: bool = False) -> list[int]:
        """Return the numbers of the finished checkpoints; or of all, while deleting what unfinished saves have left.

        Those that rank 0 sees: another may see a file system as it was before.
        """

        def look() -> list[int]:
            if self._ranks.rank:
                return []
            everything = self._all()
            unfinished = [path for _, path in everything if not is_there(path / MANIFEST)]
            if clean_up:  # before the ranks meet, after which others make the next one
                self._delete(path for path in unfinished if _is_ours(path))
            return [number for number, path in everything if clean_up or path not in unfinished]

        return self._together("a look", look)[0]

    def _all(self) -> list[tuple[int, Path]]:
        matches = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return [(int(match[1]), path) for match, path in matches if match]

    def _path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:09d}"

    def _run_of(self, tables: Mapping[str, ShardedTable], optimizer: RMSprop | None) -> str:
        """Return of which run a checkpoint will be."""
        iterations = max([table.iterations for table in tables.values()] or [optimizer.iterations if optimizer else 0])
        own = next((table.run for table in tables.values() if table.run is not None), None)
        finished = [path for _, path in sorted(self._all()) if is_there(path / MANIFEST) and path not in self._damaged]
        return choose_run(self.folder, Heading(None, own, iterations), [_heading(path) for path in finished])

    def _delete_old(self, run: str) -> None:
        """Delete the checkpoints of a run that are no longer kept; what cannot be read, or is of another, stays."""
        found = [(path, _heading(path)) for _, path in sorted(self._all())]
        ours = [path for path, about in found if about is not None and about.run == run]
        whole = [path for path in ours if path not in self._damaged]
        self._delete(path for path in ours if path not in whole[-self.keep :])

    def _delete(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                (path / MANIFEST).unlink(missing_ok=True)  # first, so that nothing half deleted counts
                shutil.rmtree(path)
            except OSError as error:
                warn(f"cannot delete {path.name}, which is no longer kept: {error}")


def _is_ours(path: Path) -> bool:
    """Return whether a folder without a manifest holds nothing but what an unfinished save leaves."""
    return path.is_dir() and all(part.name == REPLICAS or PARTS.fullmatch(part.name) for part in path.iterdir())


def _heading(path: Path) -> Heading | None:
    """Return the run of a checkpoint and how far it is; None if it has none, or cannot be read now."""
    try:
        saved = SavedTables(path)
        return Heading("", saved.run, int(heading(saved.files()[0][0])["iterations"]))
    except (OSError, MemoryError, ValueError, LookupError):
        return None
