"""The manifest of tables that were saved together: which files there are, and what they must hold."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

from ..arrays.storage import DTYPES
from ..files.atomic_file import check_regular
from ..files.safetensors_file import DamagedCheckpointError
from ..optimizer import RMSprop
from .table_arguments import ORDERS

MANIFEST = "manifest.json"
REPLICAS = "replicas.safetensors"
"""The file of the optimizer that is saved beside the tables."""

FORMAT = "numba_rmsprop tables"
FORMAT_VERSION = 1
TABLE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

MAX_MANIFEST = 1 << 24
"""Bytes of the longest manifest that is read or written."""

KINDS = {"ranks": int, "notes": dict, "tables": dict}
TABLE_KINDS = {"rows": int, "columns": int, "dtype": str, "sum_order": str, "identities": list, "config": dict}
"""Types of the entries of a manifest, and of each table in it."""


def shard_name(name: str, rank: int, ranks: int) -> str:
    """Return the name of a rank's file."""
    return f"{name}.{rank}-of-{ranks}.safetensors"


def manifest_text(content: dict[str, Any]) -> str:
    """Return a manifest, with its format and its checksum.

    Raises
    ------
    TypeError
        If JSON cannot hold the notes.
    ValueError
        If the manifest is too long to be read again.
    """
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, sort_keys=True)
    sealed = json.dumps({"crc32": f"{zlib.crc32(text.encode()):08x}", "content": text})
    if len(sealed) > MAX_MANIFEST:
        raise ValueError(f"notes: expected a manifest of at most {MAX_MANIFEST:,} characters, got {len(sealed):,}")
    return sealed


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a manifest, checked.

    Raises
    ------
    DamagedCheckpointError
        If it is not as it was written, or of another format.
    ValueError
        If it is of another version, or an entry makes no sense.
    OSError
        If it cannot be read.
    """
    found = path.stat()
    check_regular(path, found.st_mode)
    if found.st_size > MAX_MANIFEST:
        raise DamagedCheckpointError(f"{path}: expected a manifest, got more than {MAX_MANIFEST:,} bytes")
    try:
        sealed = json.loads(path.read_text(encoding="utf8"))
        text = sealed["content"]
        whole = sealed["crc32"] == f"{zlib.crc32(text.encode()):08x}"
        content = json.loads(text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: expected a manifest of saved tables; {error!r}") from error
    if not whole:
        raise DamagedCheckpointError(f"{path}: the checksum does not fit; the file is damaged")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedCheckpointError(f"{path}: expected format {FORMAT!r}")
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path}: expected format version {FORMAT_VERSION}, got {content.get('format_version')!r}")
    if not _makes_sense(content):
        raise ValueError(f"{path}: its entries are not those of saved tables")
    return content


def _makes_sense(content: dict[str, Any]) -> bool:
    return (
        _has_kinds(content, KINDS)
        and content["ranks"] >= 1
        and all(isinstance(content.get(key), str | None) for key in ("replicas", "run"))
        and all(
            TABLE_NAME.fullmatch(name) and _table_makes_sense(table, content["ranks"])
            for name, table in content["tables"].items()
        )
    )


def _table_makes_sense(table: Any, ranks: int) -> bool:
    return (
        type(table) is dict
        and _has_kinds(table, TABLE_KINDS)
        and table["rows"] >= 0
        and table["columns"] > 0
        and table["dtype"] in map(str, DTYPES)
        and table["sum_order"] in ORDERS
        and len(table["identities"]) == ranks
        and all(type(identity) is str for identity in table["identities"])
        and type(table.get("keyed", False)) is bool
        and set(table["config"]) <= set(RMSprop().get_config())
    )


def _has_kinds(entries: dict[str, Any], kinds: dict[str, type]) -> bool:
    return all(type(entries.get(key)) is kind for key, kind in kinds.items())
