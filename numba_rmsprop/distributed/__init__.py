"""Tables and steps shared among the ranks of an MPI communicator (mpi4py)."""

from ..mpi.messages import OtherRankError
from ..state.initial_values import Uniform
from .keyed_table import ShardedKeyedTable
from .row_exchange import Gathering
from .saved_tables import SavedTables
from .table import ShardedTable
from .table_checkpoints import TableCheckpoints

__all__ = [
    "Gathering",
    "OtherRankError",
    "SavedTables",
    "ShardedKeyedTable",
    "ShardedTable",
    "TableCheckpoints",
    "Uniform",
]
