"""Saving a table of which a step has touched one row in a hundred: all of it, and the changes."""

from __future__ import annotations

from . import steps


class Saving(steps._Timed):
    """A step, and a save with the variables."""

    params = (steps.sizes(100_000, 1_000_000), [steps.DELTA, steps.FULL])
    param_names = ("rows of 64", "file")

    def setup(self, rows: int, kind: str) -> None:
        """Make the step."""
        step, self.folder = steps.saving(kind, (rows, 64), steps.unique(rows // 100, rows))
        self.warm_up(step)

    def track_bytes(self, *_: object) -> int:
        """Return the size of the file."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    track_bytes.unit = "bytes"  # type: ignore[attr-defined]
