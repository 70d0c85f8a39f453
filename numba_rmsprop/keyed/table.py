"""A table whose rows are found by keys, and that grows as new keys come."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arrays.storage import DTYPES, computed_in
from ..arrays.variables import as_array
from ..files import checkpoint
from ..files.atomic_file import as_paths
from ..files.checkpoint_validation import Contents, in_file
from ..gradients.indexed_slices import IndexedSlices
from ..runtime.interrupts import Call
from ..runtime.whole_calls import carry_out, in_turn
from ..state.initial_values import check_initializer
from .eviction import Age, check_limits, go_before, oldest, too_old
from .export import Exporting
from .first_values import FirstValues, described, restored
from .key_map import KeyMap
from .keys import NO_KEYS, as_keys, check_finite
from .optimizer import TableOptimizer, check_options
from .reserve import MOST_ROWS
from .rows_by_key import First
from .saved_keys import COUNTS, FREE, KEYS, TOUCHED, saved_keys
from .sightings import Sightings, check_admission, restored_sightings

ROWS_AT_START = 1024
NAME = "table"
INITIALIZER, ADMISSION, SIGHTINGS = "initializer", "admission", "sightings"
WEIGHTS = (KEYS, FREE, INITIALIZER, ADMISSION, SIGHTINGS)
"""What every file holds beside the rows, as weights of the optimizer."""


class KeyedTable(Exporting):
    r"""A table of rows that are found by keys of 64 bits, trained with :class:`~numba_rmsprop.RMSprop`.

    For ids of users and items: any int64, also negative. A key gets its row when it comes first, and the table grows.
    What is not to be kept is given back by :meth:`evict`, and new keys take over those rows.

    Parameters
    ----------
    columns : int
        Elements of a row.
    dtype : dtype, default float32
        As for a variable of :class:`~numba_rmsprop.RMSprop`.
    initializer : {"zeros", "ones"}, float or callable, default "zeros"
        The first values of a row: a callable gets int64 keys of shape (n,) and returns shape (n, columns), as
        ``numba_rmsprop.keyed.Uniform`` does. They depend on the key alone, and not on when it comes.
    admit_after : int, default 1
        From which sighting on a key gets a row, at most 255: each entry of :meth:`apply_gradients` is one, and the
        gradients of keys that were seen more rarely are left out. The counts are those of a sketch of 4 MB, in which
        keys may be counted too high, and are halved after every 4 million sightings.
    **options : optional
        Those of :class:`~numba_rmsprop.RMSprop`, but for ``communicator``, ``slots_folder``,
        ``gradient_accumulation_steps`` and those by names.

    Attributes
    ----------
    optimizer : RMSprop
        The optimizer of the table, whose hyperparameters may be set.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    In exact mode, a new row is one that has never been touched: it has missed no steps. Address space for as many rows
    as fit into the machine's memory is reserved where the system allows it, and a table grows there in place;
    otherwise it is copied when it grows. A table cannot be copied or pickled: :meth:`save` it.

    For strings, see :func:`~numba_rmsprop.keyed.text_keys`.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rmsprop.keyed import KeyedTable
    >>> table = KeyedTable(2, learning_rate=0.1, rho=0.99)
    >>> table.gather([-5, 10**15])  # nothing has come yet
    array([[0., 0.],
           [0., 0.]], dtype=float32)
    >>> table.apply_gradients([10**15, -5, 10**15], np.ones((3, 2), np.float32))
    1
    >>> len(table), -5 in table, 7 in table, table.keys()
    (2, True, False, array([1000000000000000,               -5]))
    """

    def __init__(
        self,
        columns: int,
        dtype: DTypeLike = np.float32,
        initializer: Any = "zeros",
        *,
        admit_after: int = 1,
        **options: Any,
    ) -> None:
        check_options(options, "a KeyedTable")
        if isinstance(columns, bool) or not isinstance(columns, (int, np.integer)) or columns < 1:
            raise ValueError(f"columns: expected a whole number above 0, got {columns!r:.100}")
        if np.dtype(dtype) not in DTYPES:
            raise TypeError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {np.dtype(dtype)}")
        first_values, seen = check_initializer(initializer), Sightings(check_admission(admit_after))
        self._begin(self._new_optimizer(options), KeyMap(), first_values, seen)
        self._var = np.zeros((ROWS_AT_START, int(columns)), dtype)
        self.optimizer.build({NAME: self._var})
        self._reserve_rows()

    def _new_optimizer(self, options: dict[str, Any]) -> TableOptimizer:
        return TableOptimizer(**options)

    def _begin(self, optimizer: TableOptimizer, keys: KeyMap, initializer: FirstValues, seen: Sightings) -> None:
        self.optimizer, self._map, self._initializer, self._seen = optimizer, keys, initializer, seen
        self._exported = self._dropped_meanwhile = None
        optimizer.beside = self

    @property
    def initializer(self) -> FirstValues:
        """The first values of rows."""
        return self._initializer

    @property
    def iterations(self) -> int:
        """Steps taken so far."""
        return self.optimizer.iterations

    def apply_gradients(self, keys: ArrayLike, values: ArrayLike) -> int:
        r"""Take one step with a gradient for each key; those without a row get one, if they were seen often enough.

        Parameters
        ----------
        keys : array_like of int, any shape
            The keys; those that are equal are added up.
        values : array_like, shape (\*keys.shape, columns)
            The gradients, of the table's dtype, or float32 where that has 16 bits.

        Returns
        -------
        int
            :attr:`iterations` after the step.

        Raises
        ------
        TypeError, ValueError, FloatingPointError
            If keys or values do not fit, or as :meth:`RMSprop.apply_gradients`. No key has got a row then.
        """
        wanted, grads = as_keys(keys), as_array(values, "values")
        columns = self._var.shape[1]
        if grads.shape != (*wanted.shape, columns):
            raise ValueError(f"values: expected shape {(*wanted.shape, columns)}, got {grads.shape}")
        if grads.dtype not in (self._var.dtype, computed_in(self._var.dtype)):
            raise TypeError(f"values: expected dtype {computed_in(self._var.dtype)}, got {grads.dtype}")
        flat = grads.reshape(wanted.size, columns)
        if self.optimizer.check_finite:
            check_finite(wanted.reshape(-1), flat)
        return self._with_first_values(wanted.reshape(-1), self._step, flat)

    def _step(self, keys: NDArray[np.int64], rows: NDArray[np.int64], first: First, grads: NDArray[Any]) -> int:
        if self._seen.least > 1:
            admitted = self._seen.admit(keys, rows)
            keys, rows, grads = keys[admitted], rows[admitted], grads[admitted]
        counts, fresh = self._map.counts.copy(), NO_KEYS
        try:
            fresh = self._create(keys, rows, first)
            steps = self._take_step(rows, grads)
        except BaseException:
            self._map.undo(fresh, counts)
            self._seen.undo()
            raise
        self._seen.settle()
        self._map.steps += 1
        self._map.touch(rows)
        return steps

    def _take_step(self, rows: NDArray[np.int64], grads: NDArray[Any]) -> int:
        return self.optimizer.apply_gradients([(IndexedSlices(grads, rows), self._var)])

    def evict(self, *, max_age: int | None = None, max_rows: int | None = None) -> NDArray[np.int64]:
        """Drop keys whose rows were not touched for long, and return them; new keys take over their rows.

        A step with a gradient for a key touches its row, and so does its creation; nothing else does.

        Parameters
        ----------
        max_age : int, optional
            Drop keys whose rows were not touched for more than so many steps.
        max_rows : int, optional
            Then drop those that were not touched for longest, until so many are left; of those that were touched in the
            same step, the smallest keys first.

        Returns
        -------
        ndarray of int64
            The keys that were dropped, for copies that must drop them, too.

        Raises
        ------
        ValueError
            If a number is negative or no whole number.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rmsprop.keyed import KeyedTable
        >>> table = KeyedTable(1)
        >>> for key in (1, 2, 3, 2):
        ...     step_count = table.apply_gradients([key], np.ones((1, 1), np.float32))
        >>> table.evict(max_age=2), table.evict(max_rows=1), table.keys()
        (array([1]), array([3]), array([2]))
        """
        limits = check_limits(max_age, max_rows)
        return self._evict(limits[0], lambda touched, keys: _last_beyond(touched, keys, limits[1]))

    def _evict(
        self, max_age: int | None, last_to_go: Callable[[NDArray[np.int32], NDArray[np.int64]], Age | None]
    ) -> NDArray[np.int64]:
        """Drop keys that are too old, and of the others those that go before ``last_to_go(touched, keys)``, and it."""
        found: list[NDArray[np.int64]] = []
        in_turn(carry_out, self._look_to_evict, max_age, last_to_go, found)
        return found[-1]

    def _look_to_evict(
        self, calls: list[Call], max_age: int | None, last_to_go: Any, found: list[NDArray[np.int64]]
    ) -> bool:
        in_use = self._map.rows_in_use()
        keys, touched = self._map.row_keys[in_use], self._map.touched[in_use]
        gone = too_old(touched, self._map.steps, max_age)
        last = last_to_go(touched[~gone], keys[~gone])
        if last is not None:
            gone |= go_before(touched, keys, last)
        found.append(keys[gone])
        calls.append((self._drop, in_use[gone], keys[gone]))  # a commit, since files that are being written hold keys
        return True

    def _drop(self, rows: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
        self._map.remove(rows)
        self._note_dropped(keys)

    def flush(self) -> None:
        """Catch up every row."""
        self.optimizer.flush()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write rows, keys and state to a file, as :meth:`RMSprop.save` does."""
        self.optimizer.save(path)

    def save_delta(self, path: str | os.PathLike[str]) -> None:
        """Write the rows that have changed since the last file, and the keys that have come and gone.

        As :meth:`RMSprop.save_delta`, which says what it raises. The table may have grown since.
        """
        self.optimizer.save_delta(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        initializer: Any = None,
        custom_objects: Any = None,
    ) -> Self:
        """Return the table that :meth:`save` wrote, or a file and its deltas.

        Parameters
        ----------
        path : path-like, or sequence of them
            The file; or the file and its deltas, in order.
        initializer : optional
            In the place of the one that the file names; needed if that is a function of yours.
        custom_objects : mapping, optional
            As for :meth:`RMSprop.load`.

        Raises
        ------
        DamagedCheckpointError, ValueError, OSError
            If a file cannot be read, or is none of a KeyedTable.
        """
        paths = as_paths(path)
        if not paths:
            raise ValueError("path: expected a file, or a file and its deltas in order, got no path")
        return cls.of_files([checkpoint.read(path) for path in paths], initializer, custom_objects)

    @classmethod
    def of_files(cls, files: Sequence[Contents], initializer: Any = None, custom_objects: Any = None) -> Self:
        """Return the table in files that were read already; see :meth:`load`."""
        for file in files:
            _check_file(file)
        description, admission, counters = (
            files[-1].tensors[f"weights.{name}"] for name in (INITIALIZER, ADMISSION, SIGHTINGS)
        )
        entry = files[-1].variables[0]
        var = np.zeros(entry["shape"], entry["dtype"])
        opt = checkpoint.load_files(TableOptimizer, files, {NAME: var}, custom_objects)
        own = opt.known.slots[0]
        made, keys = cls.__new__(cls), KeyMap()
        keys.restore(saved_keys(files, own.row_clocks(), own.steps))
        first_values = restored(description, initializer, var.shape[1])
        made._begin(opt, keys, first_values, restored_sightings(admission, counters))
        made._var = var
        made._reserve_rows()
        return made

    def weights_in_file(self, rows: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
        """Return what a file holds beside the rows, of which it holds these, or None for all."""
        keys, seen = self._map, self._seen
        given, staying = int(keys.counts[0]), 0
        here: Any = slice(given)
        if rows is not None:
            here, staying = rows[: np.searchsorted(rows, given)], keys.least_free
        return {
            KEYS: keys.row_keys[here].copy(),
            FREE: keys.free[staying:].copy(),
            TOUCHED: keys.touched[here].copy(),
            COUNTS: np.array([given, staying, keys.steps]),
            INITIALIZER: described(self._initializer),
            ADMISSION: np.array([seen.least, seen.counted]),
            SIGHTINGS: seen.counters.copy() if seen.least > 1 else seen.counters[:, :0],
        }

    def note_saved(self) -> None:
        """Note that a file with this has taken its name."""
        self._map.least_free = int(self._map.counts[1])


def _last_beyond(touched: NDArray[np.int32], keys: NDArray[np.int64], max_rows: int | None) -> Age | None:
    """Return the last of the oldest rows that must go for so many to be left; None where none must."""
    beyond = 0 if max_rows is None else len(keys) - max_rows
    return oldest(touched, keys, beyond) if beyond > 0 else None


def _check_file(file: Contents) -> None:
    """Raise ValueError if a file is none of :meth:`KeyedTable.save`."""
    right = [entry["name"] for entry in file.variables] == [NAME] and set(WEIGHTS) <= set(file.weights)
    value = file.tensors.get(in_file(0, "value"))
    if not right or not file.include_variables or value is None or value.ndim != 2 or not value.shape[1]:
        raise ValueError(f"{file.path}: expected a file of KeyedTable.save, got another")
    shape = file.variables[0]["shape"]
    rows = range(MOST_ROWS + 1) if in_file(0, "rows") in file.tensors else [len(value)]
    if shape[1:] != [value.shape[1]] or shape[0] not in rows:  # before memory is allocated
        raise ValueError(f"{file.path}: expected a table of shape {value.shape}, got {tuple(shape)}")
    check_options(file.config, "a KeyedTable")
