"""RMSprop for NumPy arrays on CPUs, with exact sparse steps."""

from . import schedules
from .gradients import IndexedSlices
from .optimizer import RMSprop
from .rotation import CheckpointManager
from .tensorfile import DamagedCheckpointError

__all__ = ["CheckpointManager", "DamagedCheckpointError", "IndexedSlices", "RMSprop", "schedules"]
__version__ = "0.1.0"
