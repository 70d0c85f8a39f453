"""Tables and steps shared among the ranks of an MPI communicator (mpi4py)."""

from .checkpoints import TableCheckpoints
from .initial import Uniform
from .ranks import OtherRankError
from .saved import SavedTables
from .table import Gathering, ShardedTable

__all__ = ["Gathering", "OtherRankError", "SavedTables", "ShardedTable", "TableCheckpoints", "Uniform"]
