"""First values of tables, which depend on the row and not on the rank."""

import numpy as np
import pytest

from numba_rmsprop.distributed import Uniform
from numba_rmsprop.distributed.initial_values import fill_shard
from numba_rmsprop.distributed.row_layout import Layout


def test_first_values_are_made_by_blocks(monkeypatch):
    monkeypatch.setattr("numba_rmsprop.distributed.initial_values.ITEMS_AT_A_TIME", 6)
    layout, asked = Layout(31, 2), []

    def values(rows):
        asked.append(len(rows))
        return np.stack([rows, -rows], axis=1)

    for rank in range(2):
        shard = np.empty((layout.length(rank), 2))
        fill_shard(shard, layout, rank, values)
        assert (shard[:, 0] == layout.rows_of(rank)).all()
        assert (shard[:, 1] == -layout.rows_of(rank)).all()
    assert max(asked) == 3


def test_uniform_rows_are_uniform_and_depend_on_the_row_alone():
    draw = Uniform(-2.0, 6.0, columns=40, seed=5)
    values = draw(np.arange(5000))
    assert abs(values.mean() - 2) < 0.05
    assert abs(values.std() - 8 / 12**0.5) < 0.05
    assert values.min() >= -2
    assert values.max() < 6
    assert len(np.unique(values)) > 0.98 * values.size
    assert len(np.unique([values[:, 0], draw(2**32 + np.arange(5000))[:, 0]])) > 0.98 * 10_000
    assert (draw(np.array([4321, 2**40])) == np.stack([values[4321], draw(np.array([2**40]))[0]])).all()
    assert (Uniform(-2.0, 6.0, columns=40, seed=6)(np.arange(9)) != values[:9]).mean() > 0.99
    correlations = np.corrcoef(values.T) - np.eye(40)
    assert np.abs(correlations).max() < 0.08


@pytest.mark.parametrize("arguments", [(1.0, 0.0, 3, 0), (0.0, 1.0, 3, -1), (np.nan, 1.0, 3, 0)])
def test_bounds_of_uniform(arguments):
    with pytest.raises(ValueError, match="expected"):
        Uniform(*arguments)
