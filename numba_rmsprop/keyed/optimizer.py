"""The optimizer of a table by keys, whose files hold the keys, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from numpy.typing import NDArray

from ..optimizer import RMSprop

REFUSED = ("communicator", "gradient_accumulation_steps", "slots_folder", "learning_rate_factors")
REFUSED_LISTS = ("excluded_from_weight_decay",)
"""Options of RMSprop that a table does not take."""


class TableOptimizer(RMSprop):
    """RMSprop for the one variable of a table.

    Attributes
    ----------
    keys : callable or None
        Returns what files are to hold beside the table, by name, at the moment when they are written.
    """

    keys: Callable[[], dict[str, NDArray[Any]]] | None = None

    @property
    def own_weights(self) -> dict[str, NDArray[Any]]:
        """Arrays that files hold beside the table."""
        return self._weights if self.keys is None else self.keys()

    @own_weights.setter
    def own_weights(self, value: dict[str, NDArray[Any]]) -> None:
        self._weights = value

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
