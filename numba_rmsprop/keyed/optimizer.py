"""The optimizer of a table by keys, whose files hold the keys, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from ..optimizer import RMSprop

REFUSED = ("communicator", "gradient_accumulation_steps", "slots_folder", "learning_rate_factors")
REFUSED_LISTS = ("excluded_from_weight_decay",)
"""Options of RMSprop that a table does not take."""


class BesideRows(Protocol):
    """What a table has beside its rows."""

    def weights_in_file(self, rows: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
        """Return what a file is to hold that holds these rows, or None for all."""

    def note_saved(self) -> None:
        """Note that the file with this has taken its name."""


class TableOptimizer(RMSprop):
    """RMSprop for the one variable of a table.

    Attributes
    ----------
    beside : BesideRows or None
        What its files hold beside the rows.
    """

    beside: BesideRows | None = None

    def weights_in_file(self, rows: Sequence[NDArray[np.int64] | None]) -> dict[str, NDArray[Any]]:
        """Return what a file holds beside the rows, of which it holds these, or None for all."""
        return {} if self.beside is None else self.beside.weights_in_file(rows[0])

    def take_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Leave it to the table to read what its files hold beside the rows."""

    def note_saved(self) -> None:
        """Note that a file has taken its name."""
        if self.beside is not None:
            self.beside.note_saved()

    def add_weight(self, name: str, *others: Any, **options: Any) -> NoReturn:
        """Refuse: a table's file holds what belongs to it."""
        raise TypeError(f"{name}: a KeyedTable has no weights of your own; save them yourself")

    def add_slot(self, var: Any, slot_name: str, *others: Any, **options: Any) -> NoReturn:
        """Refuse: rows come and go."""
        raise TypeError(f"{slot_name}: a KeyedTable has no slots of your own; keep them by key yourself")

    def __copy__(self) -> NoReturn:
        """Refuse."""
        refuse_copies()

    def __reduce__(self) -> NoReturn:
        """Refuse."""
        refuse_copies()


def refuse_copies() -> NoReturn:
    """Raise TypeError."""
    raise TypeError("a KeyedTable cannot be copied or pickled, since it lies in reserved memory; save and load it")


def check_options(options: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for options that a table does not take."""
    wrong = {option: options[option] for option in REFUSED if options.get(option) is not None}
    wrong |= {option: options[option] for option in REFUSED_LISTS if options.get(option)}
    for option, value in wrong.items():
        raise ValueError(f"{option}: expected none for {name}, got {value!r:.100}; leave it out")
