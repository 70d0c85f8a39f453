"""A table whose rows are found by keys, and that grows as new keys come."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arrays.storage import DTYPES, computed_in
from ..arrays.variables import FloatArray, as_array
from ..files import checkpoint
from ..files.atomic_file import as_paths
from ..files.checkpoint_validation import Contents
from ..gradients.indexed_slices import IndexedSlices
from ..runtime.interrupts import Call, Uninterrupted
from ..runtime.whole_calls import carry_out, in_turn
from ..state.initial_values import check_initializer
from ..stepping.gathering import check_output
from .first_values import FirstValues, described, restored, values_of
from .key_map import KeyMap
from .keys import as_keys, check_saved
from .optimizer import TableOptimizer, check_options, refuse_copies
from .reserve import Reserve, rows_that_fit
from .sightings import Sightings, check_admission, restored_sightings

ROWS_AT_START = 1024
NAME = "table"
WEIGHTS = ("keys", "free rows", "initializer", "admission", "sightings")
"""What a file holds beside the table, as weights of the optimizer."""

First: TypeAlias = tuple[NDArray[np.int64], NDArray[Any]]
"""Keys in order, and the first value of the row of each, shape (n, columns)."""

NO_KEYS = np.empty(0, np.int64)

Result = TypeVar("Result")


class KeyedTable:
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
        self._begin(TableOptimizer(**options), KeyMap(), first_values, seen)
        self._var: FloatArray = np.zeros((ROWS_AT_START, int(columns)), dtype)
        self.optimizer.build({NAME: self._var})
        self._reserve_rows()

    def _begin(self, optimizer: TableOptimizer, keys: KeyMap, initializer: FirstValues, seen: Sightings) -> None:
        self.optimizer, self._map, self._initializer, self._seen = optimizer, keys, initializer, seen
        optimizer.keys = self._weights

    def _reserve_rows(self) -> None:
        """Go on within reserved address space, if the system gives any."""
        own = self.optimizer.known.called(self._var)
        try:
            self._reserve: Reserve | None = Reserve(own, rows_that_fit(own))
        except MemoryError:
            own.make_clocks()
            self._reserve = None
        else:
            self._grow_in_place(self._reserve, len(self._var))

    def _grow_in_place(self, reserve: Reserve, rows: int) -> None:
        moved = reserve.first(rows, self.optimizer.known.called(self._var))
        self.optimizer.go_on_at(self._var, moved)
        self._var = moved.var

    def __len__(self) -> int:
        """Return how many keys have a row."""
        return len(self._map)

    def __contains__(self, key: object) -> bool:
        """Return whether a key has a row."""
        try:
            return bool(self.rows(cast(int, key)) >= 0)
        except (TypeError, ValueError, OverflowError):  # it is no key
            return False

    def keys(self) -> NDArray[np.int64]:
        """Return the keys that have a row, in the order of the rows."""
        found: NDArray[np.int64] = in_turn(lambda: self._map.row_keys[self._map.rows_in_use()].copy())
        return found

    @property
    def iterations(self) -> int:
        """Steps taken so far."""
        return self.optimizer.iterations

    @property
    def shape(self) -> tuple[int, int]:
        """How many keys have a row, and how many elements a row has."""
        return len(self), self._var.shape[1]

    def rows(self, keys: ArrayLike, *, create: bool = False) -> NDArray[np.int64]:
        """Return the row of each key; -1 for one without, or with ``create`` a new row.

        Parameters
        ----------
        keys : array_like of int, any shape
            Keys of 64 bits with a sign.
        create : bool, default False
            Whether keys that have no row get one, with first values.

        Returns
        -------
        ndarray of int64, of the shape of ``keys``

        Raises
        ------
        TypeError
            If the keys are no integers of 64 bits.
        MemoryError
            If there is not enough memory for the new rows. Nothing has changed then.
        """
        wanted = as_keys(keys)
        flat = wanted.reshape(-1)
        found = self._with_first_values(flat, self._create_rows) if create else in_turn(self._map.find, flat)
        return found.reshape(wanted.shape)

    def _create_rows(self, keys: NDArray[np.int64], rows: NDArray[np.int64], first: First) -> NDArray[np.int64]:
        self._create(keys, rows, first)
        return rows

    def _with_first_values(self, keys: NDArray[np.int64], call: Callable[..., Result], *arguments: Any) -> Result:
        """Return ``call(keys, rows, first, *arguments)``, made in one go.

        ``rows`` are those of the keys, and ``first`` the first values of keys without one. The initializer may be the
        user's code, and so is called before; if keys have come or gone meanwhile, again.
        """

        def in_one_go() -> Result | None:
            if self._map.version != version:
                return None
            with Uninterrupted():
                return call(keys, rows, (missing, values), *arguments)

        while True:
            version, rows = in_turn(self._look_up, keys)
            unknown = rows < 0
            missing = np.unique(keys[unknown]) if unknown.any() else NO_KEYS
            values = values_of(self._initializer, missing, self._var.shape[1], self._var.dtype)
            found = in_turn(in_one_go)
            if found is not None:
                return found

    def _look_up(self, keys: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        return self._map.version, self._map.find(keys)

    def gather(self, keys: ArrayLike, out: FloatArray | None = None, *, averaged: bool = False) -> FloatArray:
        r"""Return the current row of each key, and first values for keys without one, which get none.

        Parameters
        ----------
        keys : array_like of int, any shape
            The keys.
        out : ndarray, shape (\*keys.shape, columns), optional
            Where to put them, as for :meth:`RMSprop.gather`.
        averaged : bool, default False
            Return rows of the moving average (``use_ema``).

        Returns
        -------
        ndarray, shape (\*keys.shape, columns)
            ``out``, or a new array; float32 for a table of 16 bits.
        """
        wanted = as_keys(keys)
        return self._with_first_values(wanted.reshape(-1), self._gather, wanted.shape, out, averaged)

    def _gather(
        self,
        keys: NDArray[np.int64],
        rows: NDArray[np.int64],
        first: First,
        shape: tuple[int, ...],
        out: FloatArray | None,
        averaged: bool,
    ) -> FloatArray:
        known = (rows >= 0).reshape(shape)
        if not len(first[0]):
            return self.optimizer.gather(self._var, rows.reshape(shape), out=out, averaged=averaged)
        keys, rows = keys.reshape(shape), rows.reshape(shape)
        shape, dtype = (*shape, self._var.shape[1]), computed_in(self._var.dtype)
        if out is None:
            out = np.empty(shape, dtype)
        check_output(out, shape, (dtype,))
        if self.optimizer.known.occupied.reached_by(out):
            raise ValueError("out: expected memory apart from the table and its slots; pass a new array")
        out[known] = self.optimizer.gather(self._var, rows[known], averaged=averaged)
        out[~known] = _of_keys(keys[~known], first)
        return out

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
        return self._with_first_values(wanted.reshape(-1), self._step, flat)

    def _step(self, keys: NDArray[np.int64], rows: NDArray[np.int64], first: First, grads: NDArray[Any]) -> int:
        if self._seen.least > 1:
            admitted = self._seen.admit(keys, rows)
            keys, rows, grads = keys[admitted], rows[admitted], grads[admitted]
        counts = self._map.counts.copy()
        fresh = self._create(keys, rows, first)
        try:
            return self.optimizer.apply_gradients([(IndexedSlices(grads, rows), self._var)])
        except BaseException:
            self._map.undo(fresh, counts)
            raise

    def evict(self, *, max_age: int | None = None, max_rows: int | None = None) -> NDArray[np.int64]:
        """Drop keys whose rows were not touched for long, and return them; new keys take over their rows.

        A step with a gradient for a key touches its row, and so does its creation. With momentum, weight decay or
        averages, :meth:`gather` does, too, and what flushes touches all rows, as ``optimizer.get_weights`` does.

        Parameters
        ----------
        max_age : int, optional
            Drop keys whose rows were not touched for more than so many steps.
        max_rows : int, optional
            Then drop those that were not touched for longest, until so many are left.

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
        for name, limit in (("max_age", max_age), ("max_rows", max_rows)):
            whole = isinstance(limit, (int, np.integer)) and not isinstance(limit, bool)
            if limit is not None and not (whole and limit >= 0):
                raise ValueError(f"{name}: expected a whole number, 0 or more, or None, got {limit!r:.100}")
        found: list[NDArray[np.int64]] = []
        in_turn(carry_out, self._look_to_evict, max_age, max_rows, found)
        return found[-1]

    def _look_to_evict(
        self, calls: list[Call], max_age: int | None, max_rows: int | None, found: list[NDArray[np.int64]]
    ) -> bool:
        own = self.optimizer.known.called(self._var)
        in_use = self._map.rows_in_use()
        touched = own.row_clocks()[in_use].astype(np.int64)
        gone = np.zeros(len(in_use), bool)
        if max_age is not None:
            gone |= own.steps - touched > max_age
        if max_rows is not None and (left := len(in_use) - int(gone.sum())) > max_rows:
            order = np.argsort(np.where(gone, np.iinfo(np.int64).max, touched), kind="stable")
            gone[order[: left - max_rows]] = True
        dropped = in_use[gone]
        found.append(self._map.row_keys[dropped].copy())
        calls.append((self._map.remove, dropped))  # a commit, since files that are being written hold keys
        return True

    def flush(self) -> None:
        """Catch up every row."""
        self.optimizer.flush()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write rows, keys and state to a file, as :meth:`RMSprop.save` does."""
        self.optimizer.save(path)

    def save_delta(self, path: str | os.PathLike[str]) -> None:
        """Write the rows that have changed since the last file, and all keys, as :meth:`RMSprop.save_delta` does.

        Raises
        ------
        ValueError
            Also if the table has grown since: call :meth:`save` then.
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
        shape, dtype = _check_file(checkpoint.read(paths[-1]), checkpoint.read(paths[0]))
        var = np.empty(shape, dtype)
        opt = TableOptimizer.load(paths, {NAME: var}, custom_objects)
        keys, free, description, admission, counters = (opt.own_weights.pop(name) for name in WEIGHTS)
        check_saved(keys, free, len(var), paths[-1])
        made = cls.__new__(cls)
        first_values = restored(description, initializer, shape[1])
        made._begin(opt, KeyMap(), first_values, restored_sightings(admission, counters))
        made._map.restore(keys, free)
        made._var = var
        made._reserve_rows()
        return made

    def _weights(self) -> dict[str, NDArray[Any]]:
        """Return what files hold beside the table."""
        given, seen = int(self._map.counts[0]), self._seen
        arrays = (
            *(self._map.row_keys[:given].copy(), self._map.free.copy(), described(self._initializer)),
            *(np.array([seen.least, seen.counted]), seen.counters.copy() if seen.least > 1 else seen.counters[:, :0]),
        )
        return dict(zip(WEIGHTS, arrays, strict=True))

    def _create(self, keys: NDArray[np.int64], rows: NDArray[np.int64], first: First) -> NDArray[np.int64]:
        """Give rows to keys without one, and write these rows into ``rows``; return the new ones."""
        if not len(first[0]) or not (rows < 0).any():
            return NO_KEYS
        counts = self._map.counts.copy()
        fresh = self._map.enter(keys, rows)
        try:
            self._grow(int(self._map.counts[0]))
            self.optimizer.reset_rows(self._var, fresh, _of_keys(self._map.row_keys[fresh], first))
        except BaseException:
            self._map.undo(fresh, counts)
            raise
        return fresh

    def _grow(self, needed: int) -> None:
        if needed <= len(self._var):
            return
        wanted = max(needed, len(self._var) + len(self._var) // 4)
        if self._reserve is not None and needed <= self._reserve.rows:
            self._grow_in_place(self._reserve, min(wanted, self._reserve.rows))
            return
        self._var = self.optimizer.resize(self._var, max(needed, 2 * len(self._var)))
        self._reserve = None

    def __reduce__(self) -> NoReturn:
        """Refuse copies and pickles."""
        refuse_copies()


def _of_keys(keys: NDArray[np.int64], first: First) -> NDArray[Any]:
    """Return the first values of keys, which are among those that they were made for."""
    return first[1][np.searchsorted(first[0], keys)]


def _check_file(last: Contents, whole: Contents) -> tuple[list[int], str]:
    """Return the shape and dtype of the table in a file; raise ValueError if it is none of :meth:`KeyedTable.save`."""
    right = [entry["name"] for entry in last.variables] == [NAME] and set(WEIGHTS) == set(last.weights)
    value = whole.tensors.get("variables.0.value")
    if not right or not last.include_variables or value is None or value.ndim != 2 or not value.shape[1]:
        raise ValueError(f"{last.path}: expected a file of KeyedTable.save, got another")
    entry = last.variables[0]
    if list(value.shape) != entry["shape"]:  # before memory is allocated for it
        raise ValueError(f"{last.path}: expected a table of shape {value.shape}, got {tuple(entry['shape'])}")
    check_options(last.config, "a KeyedTable")
    return entry["shape"], entry["dtype"]
