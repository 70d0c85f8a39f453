"""Tables that were saved together, to be loaded onto any number of ranks or into one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..files.checkpoint import AnyPath, heading, read
from ..files.checkpoint_validation import Contents, check_contents, in_file
from ..files.safetensors_file import DamagedCheckpointError
from ..keyed import KeyedTable
from ..mpi.ranks import Ranks
from ..optimizer import RMSprop
from ..runtime.interrupts import Uninterrupted
from ..settings.config import deserialize
from ..state.changed_rows import Changes
from .keyed_table import ShardedKeyedTable
from .manifest import MANIFEST, REPLICAS, read_manifest, shard_name
from .row_layout import Layout
from .table import ShardedTable


class SavedTables:
    """Tables that :class:`TableCheckpoints` has saved together; reading them needs no MPI.

    Parameters
    ----------
    path : path-like
        The folder of the checkpoint, such as ``run/checkpoint-000000012``.

    Attributes
    ----------
    ranks : int
        How many ranks saved it.
    notes : dict
        The notes that were saved.
    run : str
        The training that the tables belong to: all its checkpoints have the same.

    Raises
    ------
    DamagedCheckpointError
        If the manifest is not as it was written, or of another format; a ValueError.
    ValueError
        If it is of another version.
    OSError
        If it cannot be read. A checkpoint without a manifest was never finished.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = Path(path)
        manifest = read_manifest(self.path / MANIFEST)
        self.ranks: int = manifest["ranks"]
        self.notes: dict[str, Any] = manifest["notes"]
        self.run: str = manifest.get("run") or ""
        self._tables: dict[str, dict[str, Any]] = manifest["tables"]
        self._replicas: str | None = manifest["replicas"]

    @property
    def names(self) -> list[str]:
        """The tables' names."""
        return list(self._tables)

    def files(self) -> list[tuple[Path, str]]:
        """Return every file of the checkpoint, with the identity that it must have."""
        shards = [shard for name in self._tables for shard in self._shards(name)]
        return shards + ([(self.path / REPLICAS, self._replicas)] if self._replicas else [])

    def table(
        self,
        communicator: Any,
        name: str,
        custom_objects: Mapping[str, Any] | None = None,
        *,
        slots_folder: AnyPath | None = None,
    ) -> ShardedTable:
        """Return a table on the ranks of a communicator, of any number, which all call this together.

        Parameters
        ----------
        communicator : mpi4py.MPI.Intracomm
            The ranks.
        name : str
            One of :attr:`names`.
        custom_objects : mapping, optional
            As in :meth:`RMSprop.from_config`.
        slots_folder : path-like, optional
            As in :class:`~numba_rmsprop.RMSprop`.

        Raises
        ------
        KeyError
            If there is no table of that name.
        DamagedCheckpointError, ValueError, OSError
            If a file is not as it was written, or cannot be read.
        OtherRankError
            If another rank cannot read it.
        """
        options: dict[str, Any] = {}
        entry: dict[str, Any] = {}

        def read_entry() -> None:
            entry.update(self._entry(name))
            options.update(deserialized(entry["config"], custom_objects))

        with Uninterrupted():
            Ranks.of(communicator).together(f"table {name!r} of {self.path.name}", read_entry)
            shape = entry["rows"], entry["columns"]
            options["slots_folder"] = slots_folder
            table = ShardedTable(communicator, *shape, entry["dtype"], sum_order=entry["sum_order"], **options)
            what = f"loading {', '.join(entry['identities'])}"
            table.together(what, lambda: self._fill(name, table.optimizer, table.shard, table.rows_here))
            table.run = self.run
            return table

    def keyed_table(
        self, communicator: Any, name: str, custom_objects: Mapping[str, Any] | None = None, *, initializer: Any = None
    ) -> ShardedKeyedTable:
        """Return a table of rows by key on the ranks of a communicator, of any number, which all call this together.

        Parameters
        ----------
        communicator, name, custom_objects
            As for :meth:`table`, which says what is raised.
        initializer : optional
            As for :meth:`KeyedTable.load <numba_rmsprop.keyed.KeyedTable.load>`.
        """
        first: list[tuple[Contents, KeyedTable]] = []
        given = custom_objects, initializer
        with Uninterrupted():
            what = f"table {name!r} of {self.path.name}"
            Ranks.of(communicator).together(what, lambda: first.append(self._first_part(name, *given)))
            file, part = first[0]
            entry = self._entry(name, keyed=True)
            options = deserialized(entry["config"], custom_objects) | {"sum_order": entry["sum_order"]}
            made = ShardedKeyedTable(communicator, entry["columns"], entry["dtype"], part.initializer, **options)

            def fill() -> None:
                for keyed in self._parts(name, file, part, *given):
                    keys = keyed.keys()
                    made.local.take_in(keyed, keys[made.owners_of(keys) == made.ranks.rank])
                made.local.take_steps_of(part)

            made.together(f"loading {', '.join(entry['identities'])}", fill)
            made.run = self.run
            return made

    def whole_keyed_table(
        self, name: str, custom_objects: Mapping[str, Any] | None = None, *, initializer: Any = None
    ) -> KeyedTable:
        """Return a whole table of rows by key in this process; see :meth:`keyed_table`."""
        file, first = self._first_part(name, custom_objects, initializer)
        for keyed in self._parts(name, file, first, custom_objects, initializer):
            if keyed is not first:
                first.take_in(keyed, keyed.keys())
        return first

    def _first_part(self, name: str, custom_objects: Any, initializer: Any) -> tuple[Contents, KeyedTable]:
        self._entry(name, keyed=True)
        file = read_shard(*self._shards(name)[0])
        return file, KeyedTable.of_files([file], initializer, custom_objects)

    def _parts(
        self, name: str, file: Contents, first: KeyedTable, custom_objects: Any, initializer: Any
    ) -> Iterator[KeyedTable]:
        """Return the keys of each rank, one after the other."""
        yield first
        for path, identity in self._shards(name)[1:]:
            other = read_shard(path, identity)
            _check_alike(other, file)
            yield KeyedTable.of_files([other], initializer, custom_objects)

    def whole(
        self, name: str, custom_objects: Mapping[str, Any] | None = None, *, slots_folder: AnyPath | None = None
    ) -> tuple[FloatArray, RMSprop]:
        """Return a whole table, in this process, and an optimizer with the state of all its rows.

        Parameters and exceptions are those of :meth:`table`.
        """
        entry = self._entry(name)
        opt = RMSprop.from_config(entry["config"], custom_objects)
        opt.slots_folder = slots_folder
        table = np.zeros((entry["rows"], entry["columns"]), entry["dtype"])
        opt.build([table])
        self._fill(name, opt, table, np.arange(entry["rows"]))
        return table, opt

    def optimizer(
        self,
        variables: Sequence[FloatArray],
        custom_objects: Mapping[str, Any] | None = None,
        *,
        slots_folder: AnyPath | None = None,
        communicator: Any = None,
    ) -> RMSprop:
        """Return the optimizer that was saved beside the tables; arguments are those of :meth:`RMSprop.load`.

        Raises
        ------
        KeyError
            If there was none.
        DamagedCheckpointError, ValueError, OSError
            As from :meth:`RMSprop.load`.
        """
        if self._replicas is None:
            raise KeyError(f"{self.path}: no optimizer was saved beside the tables {self.names}")

        def check() -> None:
            if heading(self.path / REPLICAS).get("identity") != self._replicas:
                raise DamagedCheckpointError(f"{self.path / REPLICAS}: expected the file of this checkpoint")

        if communicator is None:
            check()
        else:
            Ranks.of(communicator).together(f"the optimizer of {self.path.name}", check)
        return RMSprop.load(
            self.path / REPLICAS, variables, custom_objects, slots_folder=slots_folder, communicator=communicator
        )

    def _shards(self, name: str) -> list[tuple[Path, str]]:
        """Return the file of each rank, with its identity."""
        identities = self._tables[name]["identities"]
        return [(self.path / shard_name(name, rank, self.ranks), identity) for rank, identity in enumerate(identities)]

    def _entry(self, name: str, *, keyed: bool = False) -> dict[str, Any]:
        if name not in self._tables:
            raise KeyError(f"{self.path}: expected one of the tables {self.names}, got {name!r}")
        entry = self._tables[name]
        if entry.get("keyed", False) != keyed:
            kind, calls = "numbers", "saved.table, or saved.whole"
            if not keyed:
                kind, calls = "keys", "saved.keyed_table, or saved.whole_keyed_table"
            raise ValueError(f"{self.path}: the rows of {name!r} have {kind}; call {calls}")
        # Checked before any memory is allocated, since a manifest may name any size.
        written = sum(path.stat().st_size for path, _ in self._shards(name))
        if written < entry["rows"] * entry["columns"] * np.dtype(entry["dtype"]).itemsize:
            raise DamagedCheckpointError(f"{self.path}: the files of {name!r} are too short for the table")
        return entry

    def _fill(self, name: str, opt: RMSprop, var: FloatArray, rows: NDArray[np.int64]) -> None:
        """Write values and state of some rows, in order, into a variable and its slots."""
        entry = self._entry(name)
        layout = Layout(entry["rows"], self.ranks)
        slots = opt.known.slots[0]
        owners = layout.owners_of(rows)
        targets = {**slots.arrays, "value": var}
        first: Contents | None = None
        for rank, (path, identity) in enumerate(self._shards(name)):
            file = read_shard(path, identity)
            shape = layout.length(rank), entry["columns"]
            check_contents([file], opt, [np.broadcast_to(var.dtype.type(0), shape)])  # a shape and a dtype, no memory
            first = first or file
            _check_alike(file, first)
            here = np.flatnonzero(owners == rank)
            there = rows[here] // self.ranks
            for slot, array in targets.items():
                array[here] = file.tensors[in_file(0, slot)][there]
            if in_file(0, "clocks") in file.tensors:
                slots.make_clocks()[here] = file.tensors[in_file(0, "clocks")][there]
        assert first is not None
        steps, floor = first.variables[0]["steps"], first.variables[0]["floor"]
        slots.restore(slots.clocks, steps, floor, first.tensors[in_file(0, "runs")])
        slots.product[()] = first.variables[0]["rho_product"]
        slots.changes = Changes()
        opt.iterations = first.iterations


def deserialized(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options in a manifest."""
    return {key: deserialize(value, custom_objects, key) for key, value in config.items()}


def read_shard(path: Path, identity: str) -> Contents:
    """Return the contents of a file, every byte checked; raise DamagedCheckpointError if it has another identity."""
    file = read(path)
    if file.identity != identity:
        raise DamagedCheckpointError(f"{path}: expected the file of this checkpoint, got another")
    return file


def _check_alike(file: Contents, first: Contents) -> None:
    """Raise ValueError if two shards were not saved after the same step."""
    for what in ("steps", "floor", "rho_product"):
        if file.variables[0][what] != first.variables[0][what]:
            raise ValueError(f"{file.path}: expected {what} as in {first.path}, got {file.variables[0][what]}")
    runs, clocks = in_file(0, "runs"), in_file(0, "clocks")
    same = np.array_equal(file.tensors[runs], first.tensors[runs])
    if not same or file.iterations != first.iterations or (clocks in file.tensors) != (clocks in first.tensors):
        raise ValueError(f"{file.path}: expected the steps of {first.path}, got others")
