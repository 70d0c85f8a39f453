"""How tables grow."""

import pytest


@pytest.fixture(params=["in place", "copied"])
def growth(request, monkeypatch):
    """Let tables grow in place, or be copied."""
    # Not above: SciPy sets filters of warnings when it is first imported, which must be while tests are collected.
    from numba_rmsprop.keyed import rows_by_key, table

    monkeypatch.setattr(table, "ROWS_AT_START", 2)
    if request.param == "copied":

        def refuse(own, rows):
            raise MemoryError

        monkeypatch.setattr(rows_by_key, "Reserve", refuse)
