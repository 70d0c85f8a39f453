"""Tables whose rows are found by keys, and come and go."""

from .keys import text_keys
from .table import KeyedTable

__all__ = ["KeyedTable", "text_keys"]
