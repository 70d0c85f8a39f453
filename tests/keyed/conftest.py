"""How tables grow."""

import pytest

from numba_rmsprop.keyed import rows_by_key, table


@pytest.fixture(params=["in place", "copied"])
def growth(request, monkeypatch):
    """Let tables grow in place, or be copied."""
    monkeypatch.setattr(table, "ROWS_AT_START", 2)
    if request.param == "copied":

        def refuse(own, rows):
            raise MemoryError

        monkeypatch.setattr(rows_by_key, "Reserve", refuse)
