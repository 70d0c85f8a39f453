"""RMSprop for NumPy arrays on CPUs, with exact sparse steps."""

from . import schedules
from .fitting.arguments import Shared
from .fitting.curves import curve_fit_many
from .fitting.many import minimize_many
from .fitting.method import rmsprop
from .gradients import IndexedSlices
from .optimizer import RMSprop
from .rotation import CheckpointManager
from .tensorfile import DamagedCheckpointError

__all__ = [
    "CheckpointManager",
    "DamagedCheckpointError",
    "IndexedSlices",
    "RMSprop",
    "Shared",
    "curve_fit_many",
    "minimize_many",
    "rmsprop",
    "schedules",
]
__version__ = "0.1.0"
