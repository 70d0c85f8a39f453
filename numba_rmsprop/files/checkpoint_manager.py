"""The last few checkpoints of a run, in a folder."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..runtime.caller_warnings import warn
from ..state.changed_rows import Saved
from .checkpoint import AnyPath, heading, read, save
from .safetensors_file import PASSED_OVER, DamagedCheckpointError, not_now
from .whole_file import make_folder

if TYPE_CHECKING:
    from ..optimizer import RMSprop

ENDING, DELTA_ENDING = ".safetensors", ".delta.safetensors"
NAME = re.compile(rf"checkpoint-(\d{{9,}})({re.escape(ENDING)}|{re.escape(DELTA_ENDING)})")
LEFT_OVER = re.compile(NAME.pattern + r"\.[0-9a-f]+\.part")


class Heading(NamedTuple):
    """What is to be known of a checkpoint without reading it all; of what is trained, as it was last saved or loaded.

    ``run`` is what the checkpoints of one training have in common, over all its restarts.
    """

    identity: str | None
    run: str | None
    iterations: int


def run_in(folder: Path, now: Heading, there: Sequence[Heading | None]) -> str:
    """Return the run that a checkpoint belongs to in a folder: of those that are there, if it goes on from the newest.

    It does if it was loaded from that or saved as that; or else if the newest of its run, or the newest at all where
    none is of its run, has no more iterations. Otherwise another run begins, and a warning tells that the others stay.
    """
    newest = there[-1] if there else None
    if newest is not None and newest.identity == now.identity:
        return newest.run or ""
    own = [found for found in there if found is not None and found.run == now.run]
    before = own[-1] if own else newest
    if before is None:
        return secrets.token_hex(16) if now.run is None else now.run
    if before.iterations <= now.iterations:
        return before.run or ""
    warn(
        f"{folder} holds a training of {before.iterations} iterations, and what is saved, with {now.iterations}, does "
        "not go on from it. Its checkpoints stay. To go on from them, load what latest() returns; to train anew, take "
        "another folder; or delete them",
    )
    return secrets.token_hex(16)


class CheckpointManager:
    """Saves an optimizer to numbered files in a folder, of which it keeps the last few.

    One manager at a time saves to a folder.

    Parameters
    ----------
    folder : path-like
        Made if it is not there. Files in it with other names are left alone. Each training wants one of its own.
    keep : int, default 3
        How many checkpoints to keep, with the files that they go on from.
    full_every : int, default 1
        With 1, each checkpoint is a file of its own. With n, after a full file come n - 1 deltas.
    include_variables : bool, default True
        Save the variables as well.

    Raises
    ------
    ValueError
        If ``keep`` or ``full_every`` is less than 1.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from numba_rmsprop import CheckpointManager, RMSprop
    >>> table, opt = np.ones((1000, 4)), RMSprop()
    >>> manager = CheckpointManager(tempfile.mkdtemp())
    >>> for step in range(5):
    ...     step_count = opt.apply_gradients([(table, table)])
    ...     path = manager.save(opt)
    >>> path.name
    'checkpoint-000000005.safetensors'
    >>> RMSprop.load(manager.latest(), [np.empty((1000, 4))]).iterations
    5
    """

    def __init__(self, folder: AnyPath, keep: int = 3, *, full_every: int = 1, include_variables: bool = True) -> None:
        for name, value in (("keep", keep), ("full_every", full_every)):
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        self.folder = Path(folder)
        self.keep = keep
        self.full_every = full_every
        self.include_variables = include_variables
        self._last: tuple[Saved | None, Path] | None = None
        self._deltas = 0
        self._damaged: set[Path] = set()
        self._headings: dict[Path, Heading] = {}
        make_folder(self.folder)

    def __repr__(self) -> str:
        """Return the folder, and what is kept in it."""
        return f"<CheckpointManager({str(self.folder)!r}, keep={self.keep}, full_every={self.full_every})>"

    def save(self, opt: RMSprop) -> Path:
        """Save ``opt``, then delete what is no longer kept; return the new file.

        Files of another training are kept: those that are there when an optimizer is saved that does not go on from
        them, since it has taken fewer steps and was not loaded from the newest. A warning says so.

        Raises
        ------
        OSError, TypeError
            As in :meth:`RMSprop.save`; nothing is deleted then.
        """
        files = self._files()
        paths = [path for _, path in files]
        newest, path = files[-1] if files else (0, self.folder)
        # A delta goes on from this manager's last file, if nothing was saved by or to anything else meanwhile.
        delta = self._deltas + 1 < self.full_every and self._last == (opt._saved, path)
        number = newest + 1
        path = self.folder / f"checkpoint-{number:09d}{DELTA_ENDING if delta else ENDING}"
        if delta:
            opt.save_delta(path)
        else:
            save(opt, path, include_variables=self.include_variables, run=self._run_of(opt, paths))
        assert opt._saved is not None
        self._last = opt._saved, path
        self._deltas = self._deltas + 1 if delta else 0
        self._headings[path] = Heading(opt._saved.identity, opt._saved.run, opt.iterations)
        self._damaged.discard(path)
        self._delete_old(opt._saved.run)
        return path

    def latest(self) -> list[Path]:
        """Return the newest checkpoint whose every byte is right, as :meth:`RMSprop.load` takes it.

        A file, with its deltas in order; an empty list if there is none. Newer ones that are damaged, or no checkpoints
        at all, are passed over, with a warning each. Another process may save meanwhile; it may also have deleted what
        is returned here by the time it is loaded, unless it keeps more than one.

        Raises
        ------
        OSError
            If a file cannot be read now, for want of memory, descriptors, a permission or a disk. It may be a good one,
            so none before it is taken in its place.
        ValueError
            If a file was written by a newer version of the library.
        """
        while True:
            files = self._files()
            paths = [path for _, path in files]
            passed: dict[Path, Exception] = {}
            try:
                chain = self._newest_whole(paths, passed)
            except OSError:
                if self._files() == files:
                    raise
                continue  # another process has deleted what was about to be read
            if (chain and not passed) or self._files() == files:
                break
        self._damaged = (self._damaged - set(chain)) | set(passed)
        for path, error in passed.items():
            earlier = paths[paths.index(path) - 1].name if path != paths[0] else "nothing"
            warn(f"skipping {path.name}, going back to {earlier}: {error}")
        return chain

    def _newest_whole(self, paths: list[Path], passed: dict[Path, Exception]) -> list[Path]:
        """Return the newest file that is whole, after all that it goes on from; note those that are not."""
        for count in range(len(paths), 0, -1):
            try:
                return self._chain(paths[:count])
            except PASSED_OVER as error:
                passed[paths[count - 1]] = error
            except (OSError, MemoryError) as error:
                raise not_now(paths[count - 1].name, error) from error
        return []

    def _chain(self, files: list[Path]) -> list[Path]:
        """Return the last file, after all that it goes on from; every byte is checked."""
        chain = [files[-1]]
        follows = read(chain[0]).follows
        for path in reversed(files[:-1]):
            if not follows:
                break
            with suppress(*PASSED_OVER):
                found = heading(path)
                if found.get("identity") == follows:
                    read(path)
                    chain.insert(0, path)
                    follows = found.get("follows", "")
        if follows:
            raise DamagedCheckpointError(f"{chain[0]}: the file that it goes on from is damaged or missing")
        return chain

    def _files(self) -> list[tuple[int, Path]]:
        """Return the files of the folder with their numbers, in order."""
        matches = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _run_of(self, opt: RMSprop, paths: list[Path]) -> str:
        """Return of which run a file of ``opt`` will be."""
        there = [self._heading(path) for path in paths if path not in self._damaged]
        before = opt._saved
        identity, run = (None, None) if before is None else (before.identity, before.run)
        return run_in(self.folder, Heading(identity, run, opt.iterations), there)

    def _heading(self, path: Path) -> Heading | None:
        """Return what a file says of its run; None where it says nothing, or cannot be read now."""
        if path not in self._headings:
            try:
                said = heading(path)
                self._headings[path] = Heading(said["identity"], said.get("run", ""), int(said["iterations"]))
            except (OSError, MemoryError, ValueError, KeyError):
                return None
        return self._headings[path]

    def _delete_old(self, run: str) -> None:
        """Delete files of a run that no kept checkpoint needs, and what processes left that were killed while saving.

        What cannot be read, or is of another run, stays: who knows what it is.
        """
        files = [path for _, path in self._files()]
        self._headings = {path: known for path, known in self._headings.items() if path in files}
        files = [path for path in files if (found := self._heading(path)) is not None and found.run == run]
        whole = [k for k, path in enumerate(files) if path not in self._damaged]
        first = next(iter(whole[-self.keep :]), 0)
        while first > 0 and files[first].name.endswith(DELTA_ENDING):
            first -= 1
        left_over = [path for path in self.folder.iterdir() if LEFT_OVER.fullmatch(path.name)]
        for path in [*files[:first], *left_over]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                warn(f"cannot delete {path.name}, which is no longer kept: {error}")
