"""Dense steps: small variables, large ones, and many at once."""

from __future__ import annotations

from typing import Any

from . import steps


class Dense:
    """One variable."""

    params = (steps.sizes(10, 1000, 1_000_000, 20_000_000), steps.DENSE)
    param_names = ("elements", "library")
    warmup_time = 0.2
    timeout = 300

    def setup(self, elements: int, library: str) -> None:
        """Compile and warm up."""
        self.step = steps.dense(library, [elements])
        for _ in range(3):
            self.step()

    def time_step(self, *_: Any) -> None:
        """One step."""
        self.step()

    def peakmem_step(self, *_: Any) -> None:
        """Memory at its highest, with the library itself."""
        self.step()


class Many(Dense):
    """A hundred variables of a thousand elements."""

    params = (steps.sizes(100), steps.DENSE)
    param_names = ("variables", "library")

    def setup(self, variables: int, library: str) -> None:
        """Compile and warm up."""
        self.step = steps.dense(library, [1000] * variables)
        for _ in range(3):
            self.step()


class Clipped:
    """With the global norm clipped, beside the same step without."""

    params = (steps.sizes(10_000, 20_000_000), [None, 1.0])
    param_names = ("elements", "global_clipnorm")
    warmup_time = 0.2
    timeout = 300

    def setup(self, elements: int, global_clipnorm: float | None) -> None:
        """Compile and warm up."""
        self.step = steps.dense(steps.OURS, [elements], global_clipnorm=global_clipnorm)
        for _ in range(3):
            self.step()

    def time_step(self, *_: Any) -> None:
        """One step."""
        self.step()
