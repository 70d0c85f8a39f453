"""The last few checkpoints of a run, in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .changes import Saved
from .checkpoint import AnyPath, identities, read
from .telling import warn
from .tensorfile import DamagedCheckpointError

if TYPE_CHECKING:
    from .optimizer import RMSprop

ENDING, DELTA_ENDING = ".safetensors", ".delta.safetensors"
NAME = re.compile(rf"checkpoint-(\d{{9,}})({re.escape(ENDING)}|{re.escape(DELTA_ENDING)})")
LEFT_OVER = re.compile(NAME.pattern + r"\.[0-9a-f]+\.part")


class CheckpointManager:
    """Saves an optimizer to numbered files in a folder, of which it keeps the last few.

    One manager at a time saves to a folder.

    Parameters
    ----------
    folder : path-like
        Made if it is not there. Files in it with other names are left alone.
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
        self.folder.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        """Return the folder, and what is kept in it."""
        return f"<CheckpointManager({str(self.folder)!r}, keep={self.keep}, full_every={self.full_every})>"

    def save(self, opt: RMSprop) -> Path:
        """Save ``opt``, then delete what is no longer kept; return the new file.

        Raises
        ------
        OSError, TypeError
            As in :meth:`RMSprop.save`; nothing is deleted then.
        """
        newest, path = max(self._files(), default=(0, self.folder))
        # A delta goes on from this manager's last file, if nothing was saved by or to anything else meanwhile.
        delta = self._deltas + 1 < self.full_every and self._last == (opt._saved, path)
        number = newest + 1
        path = self.folder / f"checkpoint-{number:09d}{DELTA_ENDING if delta else ENDING}"
        if delta:
            opt.save_delta(path)
        else:
            opt.save(path, include_variables=self.include_variables)
        self._last = opt._saved, path
        self._deltas = self._deltas + 1 if delta else 0
        self._delete_old()
        return path

    def latest(self) -> list[Path]:
        """Return the newest checkpoint whose every byte is right, as :meth:`RMSprop.load` takes it.

        A file, with its deltas in order; an empty list if there is none. Newer ones that are damaged or cannot be read
        are skipped, with a warning each, and no longer count among those to keep.

        Raises
        ------
        ValueError
            If a file was written by a newer version of the library.
        """
        files = [path for _, path in sorted(self._files())]
        while files:
            try:
                return self._chain(files)
            except (DamagedCheckpointError, OSError) as error:
                self._damaged.add(files[-1])
                earlier = files[-2].name if len(files) > 1 else "nothing"
                warn(f"skipping {files[-1].name}, going back to {earlier}: {error}")
            files.pop()
        return []

    def _chain(self, files: list[Path]) -> list[Path]:
        """Return the last file, after all that it goes on from; every byte is checked."""
        chain = [files[-1]]
        follows = read(chain[0]).follows
        for path in reversed(files[:-1]):
            if not follows:
                break
            with suppress(DamagedCheckpointError, OSError):
                identity, further = identities(path)
                if identity == follows:
                    read(path)
                    chain.insert(0, path)
                    follows = further
        if follows:
            raise DamagedCheckpointError(f"{chain[0]}: the file that it goes on from is damaged or missing")
        return chain

    def _files(self) -> Iterator[tuple[int, Path]]:
        for path in self.folder.iterdir():
            match = NAME.fullmatch(path.name)
            if match:
                yield int(match[1]), path

    def _delete_old(self) -> None:
        """Delete files that no kept checkpoint needs, and what processes left that were killed while saving."""
        files = [path for _, path in sorted(self._files())]
        whole = [k for k, path in enumerate(files) if path not in self._damaged]
        first = whole[max(len(whole) - self.keep, 0)]
        while first > 0 and files[first].name.endswith(DELTA_ENDING):
            first -= 1
        left_over = [path for path in self.folder.iterdir() if LEFT_OVER.fullmatch(path.name)]
        for path in [*files[:first], *left_over]:
            path.unlink(missing_ok=True)
