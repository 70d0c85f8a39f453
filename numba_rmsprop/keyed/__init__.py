"""Tables whose rows are found by keys, and come and go."""

from ..state.initial_values import Uniform
from .export import read_export
from .keys import text_keys
from .table import KeyedTable

__all__ = ["KeyedTable", "Uniform", "read_export", "text_keys"]
