"""RMSprop for NumPy arrays on CPUs, with exact sparse steps."""

from . import schedules
from .gradients import IndexedSlices
from .optimizer import RMSprop

__all__ = ["IndexedSlices", "RMSprop", "schedules"]
__version__ = "0.1.0"
