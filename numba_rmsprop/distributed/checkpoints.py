"""Tables saved by all ranks together, and the last few of such checkpoints in a folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoint import AnyPath, read
from ..interrupts import Uninterrupted
from ..optimizer import RMSprop
from ..tensorfile import DamagedCheckpointError, sync_folder
from .ranks import Ranks
from .saved import FORMAT, FORMAT_VERSION, MANIFEST, REPLICAS, TABLE_NAME, SavedTables, manifest_text, shard_name
from .table import ShardedTable

NAME = re.compile(r"checkpoint-(\d{9,})")

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

        def make_folder() -> None:
            if keep < 1:
                raise ValueError(f"keep: expected 1 or more, got {keep}")
            self.folder = Path(folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(os.fspath(self.folder.absolute().parent))

        with Uninterrupted():
            self._ranks.together(f"TableCheckpoints {self._number}, keep {keep}", make_folder)
            self._number = self._ranks.join()

    def save(
        self,
        tables: Mapping[str, ShardedTable],
        *,
        optimizer: RMSprop | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Path:
        """Save tables, then delete what is no longer kept; return the folder of the new checkpoint.

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
        path = self.folder / f"checkpoint-{newest + 1:09d}"
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

        def write_manifest() -> None:
            if self._ranks.rank:
                return
            replicas = None
            if optimizer is not None:
                optimizer.save(path / REPLICAS, include_variables=True)
                replicas = read(path / REPLICAS).identity
            entries = {
                name: tables[name].description() | {"identities": [of_one[k][0] for of_one in everywhere]}
                for k, name in enumerate(names)
            }
            content = {"format": FORMAT, "format_version": FORMAT_VERSION, "ranks": self._ranks.size}
            text = manifest_text(content | {"tables": entries, "replicas": replicas, "notes": dict(notes or {})})
            missing = [
                file
                for name in names
                for rank in range(self._ranks.size)
                if not (file := path / shard_name(name, rank, self._ranks.size)).exists()
            ]
            if missing:
                raise OSError(f"{missing[0]} is not to be seen; expected a folder on a file system that all ranks see")
            _write_durably(path / MANIFEST, text)
            sync_folder(os.fspath(self.folder))

        self._together("the manifest", write_manifest)
        if self._ranks.rank == 0:
            self._delete_old()
        return path

    def latest(self) -> SavedTables | None:
        """Return the newest checkpoint whose every byte is right, the same on all ranks; None if there is none.

        Newer ones that are damaged are skipped, with a warning each; unfinished ones without.

        Raises
        ------
        ValueError
            If a newer version of the library wrote one.
        """
        with Uninterrupted():
            for number in sorted(self._numbers(), reverse=True):
                path = self.folder / f"checkpoint-{number:09d}"
                saved = self._checked(path)
                if saved is not None:
                    return saved
            return None

    def _checked(self, path: Path) -> SavedTables | None:
        """Return a checkpoint of which each rank has read some files; or None, with a warning, if one is not right."""
        found: list[SavedTables] = []

        def check() -> tuple[str, bool]:
            try:
                saved = SavedTables(path)
                for k, (file, identity) in enumerate(saved.files()):
                    if k % self._ranks.size == self._ranks.rank and read(file).identity != identity:
                        raise DamagedCheckpointError(f"{file}: expected the file of this checkpoint, got another")
                found.append(saved)
            except (DamagedCheckpointError, OSError) as error:
                # What cannot be read now, for want of a permission or a network, may be right.
                return str(error), isinstance(error, (DamagedCheckpointError, FileNotFoundError))
            return "", False

        told = [(words, certain) for words, certain in self._together(f"a look at {path.name}", check) if words]
        if not told:
            return found[0]
        if any(certain for _, certain in told):
            self._damaged.add(path)
        warnings.warn(f"skipping {path.name}: {told[0][0]}", stacklevel=3)
        return None

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
            unfinished = [path for _, path in everything if not (path / MANIFEST).exists()]
            if clean_up:  # before the ranks meet, after which others make the next one
                self._delete(unfinished)
            return [number for number, path in everything if clean_up or path not in unfinished]

        return self._together("a look", look)[0]

    def _all(self) -> list[tuple[int, Path]]:
        matches = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return [(int(match[1]), path) for match, path in matches if match]

    def _delete_old(self) -> None:
        """Delete the checkpoints that are no longer kept."""
        everything = [path for _, path in sorted(self._all())]
        whole = [path for path in everything if (path / MANIFEST).exists() and path not in self._damaged]
        self._delete(path for path in everything if path not in whole[-self.keep :])

    def _delete(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                (path / MANIFEST).unlink(missing_ok=True)  # first, so that nothing half deleted counts
                shutil.rmtree(path)
            except OSError as error:
                warnings.warn(f"cannot delete {path.name}, which is no longer kept: {error}", stacklevel=5)


def _write_durably(path: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    with open(temporary, "x", encoding="utf8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(os.fspath(path.parent))
