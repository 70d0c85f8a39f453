"""Rotating checkpoints: a folder that keeps the last few of a training run."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..runtime.caller_warnings import warn
from ..state.any_optimizer import AnyOptimizer
from ..state.changed_rows import Saved
from .atomic_file import make_folder
from .checkpoint import AnyPath, heading, read, save, save_delta
from .safetensors_file import NO_CHECKPOINT, DamagedCheckpointError, cannot_read_now

ENDING, DELTA_ENDING = ".safetensors", ".delta.safetensors"
NAME = re.compile(rf"checkpoint-(\d{{9,}})({re.escape(ENDING)}|{re.escape(DELTA_ENDING)})")
LEFT_OVER = re.compile(NAME.pattern + r"\.[0-9a-f]+\.part")


class Heading(NamedTuple):
    """The identity of a checkpoint, its training run, and its number of iterations.

    The checkpoints of one training have the same ``run``, also after restarts. For an optimizer, ``identity`` and
    ``run`` are those of the checkpoint that it was last saved to or loaded from.
    """

    identity: str | None
    run: str | None
    iterations: int


def choose_run(folder: Path, now: Heading, there: Sequence[Heading | None]) -> str:
    """Return the run of a new checkpoint in a folder: that of the checkpoints there, if it continues them.

    It does so if the optimizer was loaded from the newest one or saved to it. It also does if it has at least as many
    iterations as the newest one of its own run, or as the newest one at all if none is of its run. Otherwise a new run
    begins, and a warning says that the other checkpoints stay.
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
    """Numbered checkpoints of an optimizer in a folder, of which the last few are kept.

    Only one manager at a time may save to a folder.

    Parameters
    ----------
    folder : path-like
        The folder, which is made if it does not exist. Give each training its own. Files with other names are left
        alone.
    keep : int, default 3
        The number of checkpoints to keep, with the files that their deltas build on.
    full_every : int, default 1
        With 1, each checkpoint is a full file. With n, each full file is followed by n - 1 deltas.
    include_variables : bool, default True
        Save the variables, too.

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
        """Return the arguments of the constructor."""
        return f"<CheckpointManager({str(self.folder)!r}, keep={self.keep}, full_every={self.full_every})>"

    def save(self, opt: AnyOptimizer) -> Path:
        """Save an optimizer, delete checkpoints that are no longer kept, and return the new file.

        Checkpoints of another training stay, with a warning: an optimizer that has taken fewer steps than the newest
        one, and was not loaded from it, does not continue it.

        Raises
        ------
        OSError, TypeError
            As in :meth:`RMSprop.save`. Nothing is deleted then.
        """
        files = self._files()
        paths = [path for _, path in files]
        newest, path = files[-1] if files else (0, self.folder)
        # A delta builds on the last file of this manager. Nothing else may have been saved here, or by ``opt``, since.
        delta = self._deltas + 1 < self.full_every and self._last == (opt.known.saved, path)
        number = newest + 1
        path = self.folder / f"checkpoint-{number:09d}{DELTA_ENDING if delta else ENDING}"
        if delta:
            save_delta(opt, path)
        else:
            save(opt, path, include_variables=self.include_variables, run=self._run_of(opt, paths))
        assert opt.known.saved is not None
        self._last = opt.known.saved, path
        self._deltas = self._deltas + 1 if delta else 0
        self._headings[path] = Heading(opt.known.saved.identity, opt.known.saved.run, opt.known.iterations)
        self._damaged.discard(path)
        self._delete_old(opt.known.saved.run)
        return path

    def latest(self) -> list[Path]:
        """Return the newest checkpoint that is not damaged, for :meth:`RMSprop.load`.

        Every byte of it is checked. Newer files that are damaged, or are not checkpoints, are skipped with a warning.
        Another process may save at the same time. If it keeps only one checkpoint, it may delete the one that is
        returned here before you load it.

        Returns
        -------
        list of Path
            A full file and its deltas, in order; empty if there is no checkpoint.

        Raises
        ------
        OSError
            If a file cannot be read now, for lack of memory, descriptors, permission or a working disk. It may be a
            good one, so no older one is returned in its place.
        ValueError
            If a file was written by a newer version of the library.
        """
        while True:
            files = self._files()
            paths = [path for _, path in files]
            skipped: dict[Path, Exception] = {}
            try:
                chain = self._newest_whole(paths, skipped)
            except OSError:
                if self._files() == files:
                    raise
                continue  # another process has deleted the file
            if (chain and not skipped) or self._files() == files:
                break
        self._damaged = (self._damaged - set(chain)) | set(skipped)
        for path, error in skipped.items():
            earlier = paths[paths.index(path) - 1].name if path != paths[0] else "nothing"
            warn(f"skipping {path.name}, going back to {earlier}: {error}")
        return chain

    def _newest_whole(self, paths: list[Path], skipped: dict[Path, Exception]) -> list[Path]:
        """Return the newest undamaged file after those that it builds on; note the files that are skipped."""
        for count in range(len(paths), 0, -1):
            try:
                return self._chain(paths[:count])
            except NO_CHECKPOINT as error:
                skipped[paths[count - 1]] = error
            except (OSError, MemoryError) as error:
                raise cannot_read_now(paths[count - 1].name, error) from error
        return []

    def _chain(self, files: list[Path]) -> list[Path]:
        """Return the last file after all those that it builds on; every byte is checked."""
        chain = [files[-1]]
        follows = read(chain[0]).follows
        for path in reversed(files[:-1]):
            if not follows:
                break
            with suppress(*NO_CHECKPOINT):
                found = heading(path)
                if found.get("identity") == follows:
                    read(path)
                    chain.insert(0, path)
                    follows = found.get("follows", "")
        if follows:
            raise DamagedCheckpointError(f"{chain[0]}: the file that it goes on from is damaged or missing")
        return chain

    def _files(self) -> list[tuple[int, Path]]:
        """Return the numbers and the paths of all checkpoints, in order."""
        matches = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _run_of(self, opt: AnyOptimizer, paths: list[Path]) -> str:
        """Return the run of the next checkpoint of ``opt``."""
        there = [self._heading(path) for path in paths if path not in self._damaged]
        before = opt.known.saved
        identity, run = (None, None) if before is None else (before.identity, before.run)
        return choose_run(self.folder, Heading(identity, run, opt.known.iterations), there)

    def _heading(self, path: Path) -> Heading | None:
        """Return the heading of a file; None if it has none or cannot be read now."""
        if path not in self._headings:
            try:
                said = heading(path)
                self._headings[path] = Heading(said["identity"], said.get("run", ""), int(said["iterations"]))
            except (OSError, MemoryError, ValueError, KeyError):
                return None
        return self._headings[path]

    def _delete_old(self, run: str) -> None:
        """Delete files of a run that no kept checkpoint needs, and what saves left that were killed.

        Files that cannot be read, or belong to another run, stay.
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
