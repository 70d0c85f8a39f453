"""Tables that were saved together: read onto any number of ranks, or into one process."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.variables import FloatArray
from ..files.atomic_file import check_regular
from ..files.checkpoint import AnyPath, heading, read
from ..files.checkpoint_validation import Contents, check_contents, in_file
from ..files.safetensors_file import DamagedCheckpointError
from ..mpi.ranks import Ranks
from ..optimizer import RMSprop
from ..runtime.interrupts import Uninterrupted
from ..settings.config import deserialize
from ..state.changed_rows import Changes
from .row_layout import Layout
from .table import ShardedTable
from .table_arguments import ORDERS

MANIFEST = "manifest.json"
REPLICAS = "replicas.safetensors"
FORMAT = "numba_rmsprop tables"
FORMAT_VERSION = 1

TABLE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

MAX_MANIFEST = 1 << 24
"""Bytes of a manifest: beyond that, it is something else."""


class SavedTables:
    """Tables that :class:`TableCheckpoints` has saved together.

    Needs neither MPI nor as many processes as there were ranks.

    Parameters
    ----------
    path : path-like
        The folder of the checkpoint, such as ``run/checkpoint-000000012``.

    Attributes
    ----------
    ranks : int
        How many ranks saved it.
    notes : dict
        What was saved as ``notes``.
    run : str
        What the checkpoints of one training have in common.
    names : list of str
        The tables' names.

    Raises
    ------
    DamagedCheckpointError
        If the manifest is not as it was written, or of another format; a ValueError.
    ValueError
        If it is of a newer version.
    OSError
        If it cannot be read; a checkpoint without a manifest was never finished.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = Path(path)
        said = read_manifest(self.path / MANIFEST)
        self.ranks: int = said["ranks"]
        self.notes: dict[str, Any] = said["notes"]
        self.run: str = said.get("run") or ""
        self._tables: dict[str, dict[str, Any]] = said["tables"]
        self._replicas: str | None = said["replicas"]

    @property
    def names(self) -> list[str]:
        """The tables' names."""
        return list(self._tables)

    def files(self) -> list[tuple[Path, str]]:
        """Return every file of the checkpoint, and the identity that it must have."""
        found = [
            (self.path / shard_name(name, rank, self.ranks), identity)
            for name, table in self._tables.items()
            for rank, identity in enumerate(table["identities"])
        ]
        return found + ([(self.path / REPLICAS, self._replicas)] if self._replicas else [])

    def table(
        self,
        communicator: Any,
        name: str,
        custom_objects: Mapping[str, Any] | None = None,
        *,
        slots_folder: AnyPath | None = None,
    ) -> ShardedTable:
        """Return a table on the ranks of a communicator, which need not be as many; all of them call this together.

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
            If a file is not as it was written.
        OtherRankError
            If another rank cannot read it.
        """
        options: dict[str, Any] = {}
        entry: dict[str, Any] = {}

        def read_entry() -> None:
            entry.update(self._entry(name))
            options.update({key: deserialize(value, custom_objects, key) for key, value in entry["config"].items()})

        with Uninterrupted():
            Ranks.of(communicator).together(f"table {name!r} of {self.path.name}", read_entry)
            shape = entry["rows"], entry["columns"]
            options["slots_folder"] = slots_folder
            table = ShardedTable(communicator, *shape, entry["dtype"], sum_order=entry["sum_order"], **options)
            what = f"loading {', '.join(entry['identities'])}"
            table.together(what, lambda: self._fill(name, table.optimizer, table.shard, table.rows_here))
            table.run = self.run
            return table

    def whole(
        self, name: str, custom_objects: Mapping[str, Any] | None = None, *, slots_folder: AnyPath | None = None
    ) -> tuple[FloatArray, RMSprop]:
        """Return a whole table, and an optimizer with the state of all its rows, in this process.

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

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._tables:
            raise KeyError(f"{self.path}: expected one of the tables {self.names}, got {name!r}")
        entry = self._tables[name]
        # Before anything is allocated for it: a manifest may speak of any size.
        written = sum((self.path / shard_name(name, rank, self.ranks)).stat().st_size for rank in range(self.ranks))
        if written < entry["rows"] * entry["columns"] * np.dtype(entry["dtype"]).itemsize:
            raise DamagedCheckpointError(f"{self.path}: the files of {name!r} are too short for the table")
        return entry

    def _fill(self, name: str, opt: RMSprop, var: FloatArray, rows: NDArray[np.int64]) -> None:
        """Write values and state of some rows, in order, into a variable and its slots."""
        entry = self._entry(name)
        layout = Layout(entry["rows"], self.ranks)
        slots = opt._slots[0]
        owners = layout.owners_of(rows)
        targets = {**slots.arrays, "value": var}
        first: Contents | None = None
        for rank, identity in enumerate(entry["identities"]):
            file = read(self.path / shard_name(name, rank, self.ranks))
            if file.identity != identity:
                raise DamagedCheckpointError(f"{file.path}: expected the file of this checkpoint, got another")
            # Only shape and dtype are looked at: an array without memory will do.
            shape = layout.length(rank), entry["columns"]
            check_contents([file], opt, [np.broadcast_to(var.dtype.type(0), shape)])
            first = first or file
            _check_alike(file, first)
            here = np.flatnonzero(owners == rank)
            there = rows[here] // self.ranks
            for slot, array in targets.items():
                array[here] = file.tensors[in_file(0, slot)][there]
            if in_file(0, "clocks") in file.tensors:
                slots.make_clocks()[here] = file.tensors[in_file(0, "clocks")][there]
        assert first is not None
        said = first.variables[0]
        slots.restore(slots.clocks, said["steps"], said["floor"], first.tensors[in_file(0, "runs")])
        slots.changes = Changes()
        opt.iterations = first.iterations


def shard_name(name: str, rank: int, ranks: int) -> str:
    """Return what the file of a rank is called."""
    return f"{name}.{rank}-of-{ranks}.safetensors"


def manifest_text(content: dict[str, Any]) -> str:
    """Return a manifest, with its checksum.

    Raises
    ------
    TypeError
        If the notes are not what JSON can hold.
    ValueError
        If they are too long to be read again.
    """
    text = json.dumps(content, sort_keys=True)
    sealed = json.dumps({"crc32": f"{zlib.crc32(text.encode()):08x}", "content": text})
    if len(sealed) > MAX_MANIFEST:
        raise ValueError(f"notes: expected a manifest of at most {MAX_MANIFEST:,} characters, got {len(sealed):,}")
    return sealed


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a manifest says, checked."""
    found = path.stat()
    check_regular(path, found.st_mode)
    if found.st_size > MAX_MANIFEST:
        raise DamagedCheckpointError(f"{path}: expected a manifest, got more than {MAX_MANIFEST:,} bytes")
    try:
        outer = json.loads(path.read_text(encoding="utf8"))
        text = outer["content"]
        whole = outer["crc32"] == f"{zlib.crc32(text.encode()):08x}"
        content = json.loads(text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: expected a manifest of saved tables; {error!r}") from error
    if not whole:
        raise DamagedCheckpointError(f"{path}: the checksum does not fit; the file is damaged")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedCheckpointError(f"{path}: expected format {FORMAT!r}")
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path}: expected format version {FORMAT_VERSION}, got {content.get('format_version')!r}")
    kinds = {"ranks": int, "notes": dict, "tables": dict}
    known = set(RMSprop().get_config())
    table_kinds = {"rows": int, "columns": int, "dtype": str, "sum_order": str, "identities": list, "config": dict}
    right = all(type(content.get(key)) is kind for key, kind in kinds.items()) and all(
        type(table) is dict
        and TABLE_NAME.fullmatch(name)
        and all(type(table.get(key)) is kind for key, kind in table_kinds.items())
        and len(table["identities"]) == content["ranks"]
        and table["rows"] >= 0
        and table["columns"] > 0
        and table["dtype"] in ("float32", "float64")
        and table["sum_order"] in ORDERS
        and all(type(identity) is str for identity in table["identities"])
        and set(table["config"]) <= known
        for name, table in content["tables"].items()
    )
    if (
        not right
        or content["ranks"] < 1
        or not all(isinstance(content.get(key), str | None) for key in ("replicas", "run"))
    ):
        raise ValueError(f"{path}: its entries are not those of saved tables")
    return content


def _check_alike(file: Contents, first: Contents) -> None:
    """Refuse shards that were not saved after the same step."""
    for what in ("steps", "floor"):
        if file.variables[0][what] != first.variables[0][what]:
            raise ValueError(f"{file.path}: expected {what} as in {first.path}, got {file.variables[0][what]}")
    runs, clocks = in_file(0, "runs"), in_file(0, "clocks")
    same = np.array_equal(file.tensors[runs], first.tensors[runs])
    if not same or file.iterations != first.iterations or (clocks in file.tensors) != (clocks in first.tensors):
        raise ValueError(f"{file.path}: expected the steps of {first.path}, got others")
