"""Steps on the rows of a table, and reading them."""

from __future__ import annotations

import numpy as np

from . import steps


class Unique(steps._Timed):
    """Rows that come once, beside the limit."""

    params = (
        steps.sizes((4096, 100_000, 64), (65_536, 1_000_000, 64), (500_000, 5_000_000, 64), (65_536, 1_000_000, 16)),
        [steps.OURS, steps.LIMIT],
    )
    param_names = ("entries, rows, columns", "library")

    def setup(self, case: tuple[int, int, int], library: str) -> None:
        """Make the step."""
        entries, rows, columns = case
        self.warm_up(steps.rows(library, (rows, columns), steps.unique(entries, rows)))


class Zipf(steps._Timed):
    """Zipf-distributed indices into 1,000,000 rows of 64, beside the peers."""

    params = (steps.sizes(4096, 65_536), [library for library in steps.ROWS if library != steps.LIMIT])
    param_names = ("entries", "library")

    def setup(self, entries: int, library: str) -> None:
        """Make the step."""
        self.warm_up(steps.rows(library, (1_000_000, 64), steps.zipf(entries, 1_000_000)))


class Growth(steps._Timed):
    """4,096 new rows at every step, in tables from 6.4 MB up."""

    params = (steps.sizes(100_000, 1_000_000, 10_000_000),)
    param_names = ("rows",)

    def setup(self, rows: int) -> None:
        """Make the step."""
        self.warm_up(steps.fresh_rows((rows, 16), 4096))


class HotRow(steps._Timed):
    """Half of all indices are one row, beside uniform indices."""

    params = (steps.sizes(65_536), ["uniform", "hot"])
    param_names = ("entries", "indices")

    def setup(self, entries: int, kind: str) -> None:
        """Make the step."""
        indices = np.random.default_rng(0).integers(0, 1_000_000, entries)
        if kind == "hot":
            indices[::2] = 7
        self.warm_up(steps.rows(steps.OURS, (1_000_000, 64), indices))


class Clipped(steps._Timed):
    """With the global norm clipped, beside the same step without."""

    params = (steps.sizes(65_536), [None, 1.0])
    param_names = ("entries", "global_clipnorm")

    def setup(self, entries: int, global_clipnorm: float | None) -> None:
        """Make the step."""
        indices = steps.unique(entries, 1_000_000)
        self.warm_up(steps.rows(steps.OURS, (1_000_000, 64), indices, global_clipnorm=global_clipnorm))


class Gather(steps._Timed):
    """Rows copied into an array, beside np.take; "clip" spares np.take a buffer."""

    params = (steps.sizes(4096, 65_536), [steps.OURS, steps.NUMPY, steps.NUMPY_CLIP])
    param_names = ("entries", "library")

    def setup(self, entries: int, library: str) -> None:
        """Make the step."""
        self.warm_up(steps.gather(library, (1_000_000, 64), steps.unique(entries, 1_000_000)))


class Threads(steps._Timed):
    """16,384 rows that lie in cache, on one thread and on all."""

    params = (steps.sizes(16_384), [1, 2, 4, 8, 16])
    param_names = ("entries", "threads")

    def setup(self, entries: int, threads: int) -> None:
        """Make the step; threads that the machine lacks are skipped."""
        steps.use_threads(threads)
        self.warm_up(steps.rows(steps.OURS, (20_000, 64), steps.unique(entries, 20_000)))
