"""Manifests of saved tables, and texts that are none."""

import json
import zlib

import pytest

from numba_rmsprop.distributed.manifest import read_manifest
from numba_rmsprop.files.safetensors_file import DamagedCheckpointError


def manifest(**changes):
    table = {"rows": 3, "columns": 2, "dtype": "float32", "sum_order": "batch", "identities": ["a"], "config": {}}
    content = {
        "format": "numba_rmsprop tables", "format_version": 1, "ranks": 1, "notes": {}, "replicas": None,
        "tables": {"words": table | changes.pop("table", {})},
    } | changes  # fmt: skip
    return sealed(json.dumps(content))


def sealed(text):
    return json.dumps({"crc32": f"{zlib.crc32(text.encode()):08x}", "content": text})


def test_a_manifest(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(manifest())
    assert read_manifest(path)["ranks"] == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DamagedCheckpointError, "expected a manifest"),
        ("[]", DamagedCheckpointError, "expected a manifest"),
        ("3", DamagedCheckpointError, "expected a manifest"),
        ('{"crc32": "", "content": 3}', DamagedCheckpointError, "expected a manifest"),
        (manifest().replace("batch", "botch"), DamagedCheckpointError, "checksum"),
        (sealed("[]"), DamagedCheckpointError, "expected format"),
        (sealed("{}"), DamagedCheckpointError, "expected format"),
        ("[" * 100_000, DamagedCheckpointError, "expected a manifest"),
        (manifest(format_version=2), ValueError, "expected format version 1, got 2"),
        (manifest(ranks=2), ValueError, "entries"),
        (manifest(ranks="1"), ValueError, "entries"),
        (manifest(ranks=True), ValueError, "entries"),
        (manifest(tables=[]), ValueError, "entries"),
        (manifest(replicas=3), ValueError, "entries"),
        (manifest(table={"rows": -1}), ValueError, "entries"),
        (manifest(table={"columns": 0}), ValueError, "entries"),
        (manifest(table={"dtype": "int8"}), ValueError, "entries"),
        (manifest(table={"config": None}), ValueError, "entries"),
        (manifest(table={"config": {"initializer": "ones"}}), ValueError, "entries"),
        (manifest(table={"sum_order": "x"}), ValueError, "entries"),
        (manifest(table={"identities": [3]}), ValueError, "entries"),
        (manifest().replace("words", "../words"), DamagedCheckpointError, "checksum"),
        (sealed(json.loads(manifest())["content"].replace("words", "../words")), ValueError, "entries"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, text, error, message):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(error, match=message) as raised:
        read_manifest(path)
    assert str(path) in str(raised.value)
