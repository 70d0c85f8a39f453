"""Tables and steps shared among the ranks of an MPI communicator (mpi4py)."""

from .initial import Uniform
from .ranks import OtherRankError
from .table import Gathering, ShardedTable

__all__ = ["Gathering", "OtherRankError", "ShardedTable", "Uniform"]
