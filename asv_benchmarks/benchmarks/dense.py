"""Dense steps: small variables, large ones, and many at once."""

from __future__ import annotations

from . import steps


class Dense(steps._Timed):
    """One variable."""

    params = (steps.sizes(10, 1000, 1_000_000, 20_000_000), steps.DENSE)
    param_names = ("elements", "library")

    def setup(self, elements: int, library: str) -> None:
        """Make the step."""
        self.warm_up(steps.dense(library, [elements]))


class Many(steps._Timed):
    """A hundred variables of a thousand elements."""

    params = (steps.sizes(100), steps.DENSE)
    param_names = ("variables", "library")

    def setup(self, variables: int, library: str) -> None:
        """Make the step."""
        self.warm_up(steps.dense(library, [1000] * variables))


class Clipped(steps._Timed):
    """With the global norm clipped, beside the same step without."""

    params = (steps.sizes(10_000, 20_000_000), [None, 1.0])
    param_names = ("elements", "global_clipnorm")

    def setup(self, elements: int, global_clipnorm: float | None) -> None:
        """Make the step."""
        self.warm_up(steps.dense(steps.OURS, [elements], global_clipnorm=global_clipnorm))
