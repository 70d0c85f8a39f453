"""Parts of a step: gradients, each with what takes a step with it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..gradients.conversion import Gradient
from ..state.slots import Slots
from .small_batch import Batch

Part: TypeAlias = tuple[Gradient, Slots] | tuple[NDArray[np.int64], Batch]
"""A gradient and the slots of its variable; or the addresses of many gradients and of their variables' state."""
