"""Tables that all ranks save together, and the last few of such checkpoints in a folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files.atomic_file import is_there, make_folder, sync_folder, write_atomically
from ..files.checkpoint import AnyPath, heading
from ..files.checkpoint_manager import Heading, choose_run
from ..files.safetensors_file import NO_CHECKPOINT, cannot_read_now
from ..mpi.messages import Result
from ..mpi.ranks import Ranks
from ..optimizer import RMSprop
from ..runtime.caller_warnings import warn
from ..runtime.interrupts import Uninterrupted
from .manifest import MANIFEST, REPLICAS, TABLE_NAME, manifest_text, shard_name
from .saved_tables import SavedTables, read_shard
from .shared_rows import SharedRows

NAME = re.compile(r"checkpoint-(\d{9,})")
LEFT_OVER = re.compile(r".+\.\d+-of-\d+\.safetensors|.+\.[0-9a-f]{8,}\.part")
"""Names of the files that an unfinished save leaves behind."""


class TableCheckpoints:
    """Checkpoints of tables, and of what belongs to them, in numbered folders, of which the last few are kept.

    Each rank writes its rows into a file of its own. When all files are on the disk, one rank writes a manifest, and
    from then on the checkpoint counts. All ranks call each method together.

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
        tables: Mapping[str, SharedRows],
        *,
        optimizer: RMSprop | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Path:
        """Save tables, then delete what is no longer kept; return the folder of the new checkpoint.

        Checkpoints of another training are kept, as by :meth:`CheckpointManager.save`. Handlers of signals wait until
        all is written.

        Parameters
        ----------
        tables : mapping of str to ShardedTable or ShardedKeyedTable
            The tables by name: letters, digits, ``_``, ``-`` and ``.``.
        optimizer : RMSprop, optional
            An optimizer that has the same state on all ranks; saved once, with its variables.
        notes : mapping, optional
            Anything else to remember that JSON can hold; rank 0 saves its own.

        Raises
        ------
        OSError
            If a file cannot be written; on the other ranks, OtherRankError. The checkpoints before it are untouched.
        TypeError, ValueError
            If a name is malformed, JSON cannot hold the notes, or ranks save other tables or after other steps.
        """
        with Uninterrupted():  # or else an interrupted rank might not know that there is a checkpoint
            path = self._path(max(self._numbers(clean_up=True), default=0) + 1)
            self._damaged.discard(path)
            numbers = [table.number for table in tables.values()]
            what = f"save of {list(tables)}, tables {numbers}, optimizer {optimizer is not None}"
            shards = self._together(what, lambda: self._write_shards(path, tables))
            for name in tables:
                states = [of_rank[name][1] for of_rank in shards]
                if len(set(states)) > 1:  # all ranks see the same, and raise
                    raise ValueError(
                        f"{name!r}: expected the same steps on all ranks, got {states} (iterations, steps, steps "
                        "flushed, checksum of runs); was its optimizer flushed, or given steps, on some ranks only?"
                    )
            entries = {
                name: table.description()
                | {
                    "identities": [of_rank[name][0] for of_rank in shards],
                    "rows": sum(of_rank[name][2] for of_rank in shards),
                }
                for name, table in tables.items()
            }

            def finish() -> str:
                return "" if self._ranks.rank else self._finish(path, tables, entries, optimizer, dict(notes or {}))

            run = self._together("the manifest", finish)[0]
            for table in tables.values():
                table.run = run
            if self._ranks.rank == 0:
                self._delete_old(run)
            return path

    def _write_shards(self, path: Path, tables: Mapping[str, SharedRows]) -> dict[str, tuple[str, str, int]]:
        """Write this rank's rows of each table.

        Returns the identity of each file, the state shared by all ranks, and how many rows this one has.
        """
        for name, table in tables.items():
            if table.ranks is not self._ranks:
                raise ValueError(f"tables: expected tables on the ranks of this TableCheckpoints, got {name!r}")
            if not TABLE_NAME.fullmatch(name):
                raise ValueError(f"tables: expected names of letters, digits, '_', '-' and '.', got {name!r}")
        path.mkdir(exist_ok=True)
        written = {}
        for name, table in tables.items():
            file = path / shard_name(name, self._ranks.rank, self._ranks.size)
            table.optimizer.save_shard(file)
            written[name] = heading(file)["identity"], table.optimizer.shared_state(), table.rows_of_rank
        return written

    def _finish(
        self,
        path: Path,
        tables: Mapping[str, SharedRows],
        entries: dict[str, Any],
        optimizer: RMSprop | None,
        notes: dict[str, Any],
    ) -> str:
        """Write the optimizer and the manifest, on one rank; return the run that the checkpoint belongs to."""
        run, replicas = self._run_of(tables, optimizer), None
        if optimizer is not None:
            optimizer.save(path / REPLICAS, include_variables=True)
            replicas = heading(path / REPLICAS)["identity"]
        text = manifest_text(
            {"ranks": self._ranks.size, "run": run, "tables": entries, "replicas": replicas, "notes": notes}
        )
        files = [path / shard_name(name, rank, self._ranks.size) for name in tables for rank in range(self._ranks.size)]
        missing = [file for file in files if not file.exists()]
        if missing:
            raise OSError(
                f"{missing[0]} cannot be seen by rank 0; expected a folder on a file system that all ranks see"
            )
        write_atomically(path / MANIFEST, lambda file: file.write(text.encode()))
        sync_folder(os.fspath(self.folder))
        return run

    def latest(self) -> SavedTables | None:
        """Return the newest checkpoint whose every byte is right, the same on all ranks; None if there is none.

        Newer ones that are damaged are skipped, with a warning each; unfinished ones without. Where other ranks save
        at the same time, this looks again.

        Raises
        ------
        OSError
            On all ranks, if one of them cannot read a file now: the checkpoint may be a good one.
        ValueError
            If another version of the library wrote one.
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
        """Return a checkpoint, whose files ranks have read in turn; or else the error, and whether it is damaged."""
        found: list[SavedTables] = []

        def check() -> tuple[str, bool]:
            try:
                saved = SavedTables(path)
                for file, identity in saved.files()[self._ranks.rank :: self._ranks.size]:
                    read_shard(file, identity)
                found.append(saved)
            except (*NO_CHECKPOINT, FileNotFoundError) as error:
                return str(error), True
            except (OSError, MemoryError) as error:
                return str(cannot_read_now(path.name, error)), False
            return "", False

        errors = [(words, damaged) for words, damaged in self._together(f"a look at {path.name}", check) if words]
        if not errors:
            return found[0], "", False
        words, damaged = next((error for error in errors if error[1]), errors[0])
        return None, words, damaged

    def _together(self, what: str, work: Callable[[], Result]) -> list[Result]:
        return self._ranks.together(f"{what}, of TableCheckpoints {self._number} in {self.folder}", work)

    def _numbers(self, *, clean_up: bool = False) -> list[int]:
        """Return the numbers of finished checkpoints; or delete what unfinished saves have left, and return all.

        Rank 0 looks for all ranks, since another may see the file system as it was before.
        """

        def look() -> list[int]:
            if self._ranks.rank:
                return []
            everything = self._all()
            unfinished = [path for _, path in everything if not is_there(path / MANIFEST)]
            if clean_up:  # before the ranks agree, after which others make the next folder
                self._delete(path for path in unfinished if _is_left_over(path))
            return [number for number, path in everything if clean_up or path not in unfinished]

        return self._together("a look", look)[0]

    def _all(self) -> list[tuple[int, Path]]:
        matches = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:09d}"

    def _run_of(self, tables: Mapping[str, SharedRows], optimizer: RMSprop | None) -> str:
        """Return the run that a checkpoint of these tables belongs to."""
        iterations = max([table.iterations for table in tables.values()] or [optimizer.iterations if optimizer else 0])
        own = next((table.run for table in tables.values() if table.run is not None), None)
        finished = [path for _, path in self._all() if is_there(path / MANIFEST) and path not in self._damaged]
        return choose_run(self.folder, Heading(None, own, iterations), [_heading(path) for path in finished])

    def _delete_old(self, run: str) -> None:
        """Delete checkpoints of a run that are no longer kept; those of others, or that cannot be read, stay."""
        headings = [(path, _heading(path)) for _, path in self._all()]
        ours = [path for path, about in headings if about is not None and about.run == run]
        whole = [path for path in ours if path not in self._damaged]
        self._delete(path for path in ours if path not in whole[-self.keep :])

    def _delete(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                (path / MANIFEST).unlink(missing_ok=True)  # first, so that a folder without all its files never counts
                shutil.rmtree(path)
            except OSError as error:
                warn(f"cannot delete {path.name}, which is no longer kept: {error}")


def _is_left_over(path: Path) -> bool:
    """Return whether a folder without a manifest holds nothing but the files of an unfinished save."""
    return path.is_dir() and all(part.name == REPLICAS or LEFT_OVER.fullmatch(part.name) for part in path.iterdir())


def _heading(path: Path) -> Heading | None:
    """Return the run and the iterations of a checkpoint; None if it has none, or cannot be read now."""
    try:
        saved = SavedTables(path)
        return Heading("", saved.run, int(heading(saved.files()[0][0])["iterations"]))
    except (OSError, MemoryError, ValueError, LookupError):
        return None
