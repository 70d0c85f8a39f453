"""Steps on the rows of a table, and reading them."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import steps


class Unique:
    """Rows that come once, beside the limit."""

    params = (
        steps.sizes((4096, 100_000, 64), (65_536, 1_000_000, 64), (500_000, 5_000_000, 64), (65_536, 1_000_000, 16)),
        [steps.OURS, steps.LIMIT],
    )
    param_names = ("entries, rows, columns", "library")
    warmup_time = 0.2
    timeout = 300

    def setup(self, case: tuple[int, int, int], library: str) -> None:
        """Compile and warm up."""
        entries, rows, columns = case
        self.step = steps.rows(library, (rows, columns), steps.unique(entries, rows))
        for _ in range(3):
            self.step()

    def time_step(self, *_: Any) -> None:
        """One step."""
        self.step()

    def peakmem_step(self, *_: Any) -> None:
        """Memory at its highest, with the library itself."""
        self.step()


class Zipf(Unique):
    """Zipf-distributed indices into 1,000,000 rows of 64, beside the peers."""

    params = (steps.sizes(4096, 65_536), [library for library in steps.ROWS if library != steps.LIMIT])
    param_names = ("entries", "library")

    def setup(self, entries: int, library: str) -> None:
        """Compile and warm up."""
        self.step = steps.rows(library, (1_000_000, 64), steps.zipf(entries, 1_000_000))
        for _ in range(2):
            self.step()


class Growth(Unique):
    """4,096 new rows at every step, in tables from 6.4 MB up."""

    params = (steps.sizes(100_000, 1_000_000, 10_000_000),)
    param_names = ("rows",)

    def setup(self, rows: int) -> None:
        """Compile and warm up."""
        self.step = steps.fresh_rows((rows, 16), 4096)
        for _ in range(3):
            self.step()


class HotRow(Unique):
    """Half of all indices are one row, beside uniform indices."""

    params = (steps.sizes(65_536), ["uniform", "hot"])
    param_names = ("entries", "indices")

    def setup(self, entries: int, kind: str) -> None:
        """Compile and warm up."""
        indices = np.random.default_rng(0).integers(0, 1_000_000, entries)
        if kind == "hot":
            indices[::2] = 7
        self.step = steps.rows(steps.OURS, (1_000_000, 64), indices)
        for _ in range(3):
            self.step()


class Clipped(Unique):
    """With the global norm clipped, beside the same step without."""

    params = (steps.sizes(65_536), [None, 1.0])
    param_names = ("entries", "global_clipnorm")

    def setup(self, entries: int, global_clipnorm: float | None) -> None:
        """Compile and warm up."""
        indices = steps.unique(entries, 1_000_000)
        self.step = steps.rows(steps.OURS, (1_000_000, 64), indices, global_clipnorm=global_clipnorm)
        for _ in range(3):
            self.step()


class Gather(Unique):
    """Rows copied into an array, beside np.take; "clip" spares np.take a buffer."""

    params = (steps.sizes(4096, 65_536), [steps.OURS, steps.NUMPY, steps.NUMPY_CLIP])
    param_names = ("entries", "library")

    def setup(self, entries: int, library: str) -> None:
        """Compile and warm up."""
        self.step = steps.gather(library, (1_000_000, 64), steps.unique(entries, 1_000_000))
        for _ in range(3):
            self.step()
