"""RMSprop for NumPy arrays on CPUs, with exact sparse steps."""

from . import schedules
from .files.checkpoint_manager import CheckpointManager
from .files.safetensors_file import DamagedCheckpointError
from .fitting.curve_fit_many import curve_fit_many
from .fitting.many_inputs import Shared
from .fitting.minimize_many import minimize_many
from .fitting.scipy_method import rmsprop
from .gradients.indexed_slices import IndexedSlices
from .gradients.sparse_product import SparseProduct
from .optimizer import RMSprop
from .runtime.launching import set_threads

__all__ = [
    "CheckpointManager",
    "DamagedCheckpointError",
    "IndexedSlices",
    "RMSprop",
    "Shared",
    "SparseProduct",
    "curve_fit_many",
    "minimize_many",
    "rmsprop",
    "schedules",
    "set_threads",
]
__version__ = "0.1.0"
