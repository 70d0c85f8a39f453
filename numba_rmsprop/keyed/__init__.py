"""Tables whose rows are found by keys, and come and go."""

from ..state.initial_values import Uniform
from .keys import text_keys
from .read_export import read_export
from .table import KeyedTable

__all__ = ["KeyedTable", "Uniform", "read_export", "text_keys"]
