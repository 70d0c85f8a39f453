"""Safetensors files that are whole or not there, and whose every byte is checked when they are read.

The format is that of https://github.com/huggingface/safetensors: the length of a JSON header (8 bytes), the header, and
the arrays one after the other, so that any other tool can read it and nothing in it can run. The library of that name
reads the header. It would copy each array before writing it, and knows no checksums, so the writing is done here.

The header's metadata begins with ``crc32``, the header's own checksum, taken with eight zeros in its place; the
checksum of array ``x`` is the metadata ``crc32 x``. All are CRC-32 as zlib computes it, in eight hexadecimal digits.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import safetensors
from numpy.typing import NDArray

from .interrupts import Uninterrupted

DTYPES = {
    "BOOL": np.dtype(np.bool),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
"""What the format calls the dtypes it knows."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

CHUNK_ITEMS = 1 << 19
"""Elements that are copied at a time where an array is not contiguous."""

BLANK = "0" * 8
OPENING = b'{"__metadata__":{"crc32":"'
ALIGNMENT = 8


@dataclass(frozen=True)
class SomeRows:
    """Rows of an array, which are copied only while they are written."""

    array: NDArray[Any]
    rows: NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As of ``array[rows]``."""
        return (len(self.rows), *self.array.shape[1:])


Tensor: TypeAlias = NDArray[Any] | SomeRows


class DamagedCheckpointError(ValueError):
    """A file is no whole checkpoint: cut short, changed, or never one."""


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    on_rename: Callable[[], None] = lambda: None,
) -> None:
    """Write arrays to ``path``, which is the old file until the new one is whole and on the disk.

    Parameters
    ----------
    path : path-like
        Where to; through a symbolic link, to where it leads.
    tensors : mapping of str to ndarray or SomeRows
        Of any strides. They are copied by chunks, if at all.
    metadata : dict of str to str
        What else the file says.
    on_rename : callable
        Called when the file takes its name; nothing interrupts between the two.

    Raises
    ------
    TypeError
        If the format has no name for a dtype.
    OSError
        As the operating system refuses; then nothing is left behind.
    """
    for name, tensor in tensors.items():
        if _little_endian(tensor.dtype) not in DTYPE_NAMES:
            raise TypeError(
                f"{name}: safetensors files cannot hold dtype {tensor.dtype}; expected one of {list(DTYPE_NAMES)}"
            )
    # Wide items first, so that each array begins at a multiple of its item's size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    final = os.path.realpath(path)
    temporary = f"{final}.{secrets.token_hex(4)}.part"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(_header(ordered, metadata, {}))
            checksums = {name: _write(file, tensor) for name, tensor in ordered.items()}
            file.seek(0)
            file.write(_header(ordered, metadata, checksums))
            file.flush()
            os.fsync(file.fileno())
        with Uninterrupted():
            os.replace(temporary, final)
            on_rename()
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(os.path.dirname(final))


def checksum(array: NDArray[Any]) -> int:
    """Return the CRC-32 of an array's elements in C order, as in a file of ours."""
    found = 0
    for chunk in _chunks(array):
        found = zlib.crc32(chunk, found)
    return found


def map_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays and metadata of a file, after checking its header.

    The arrays are read-only views of the file, which is mapped and not loaded; :func:`verify_tensors` checks them.

    Raises
    ------
    DamagedCheckpointError
        If it is no safetensors file, or the header's checksum does not fit.
    OSError
        If it cannot be read.
    """
    while True:
        with open(path, "rb") as file:
            sealed = _check_header(file, path)
            entries, metadata = _entries(path)
            # The library opens the path by itself, where another process may have put a new file meanwhile.
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                continue
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tensors = {}
        offset = 8 + int.from_bytes(mapped[:8], "little")
        for name, dtype, shape in entries:
            count = math.prod(shape)
            tensors[name] = np.frombuffer(mapped, dtype, count, offset if count else 0).reshape(shape)
            offset += count * dtype.itemsize
        if not sealed:
            metadata.pop("crc32", None)
        return tensors, metadata


def verify_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Compare all arrays of a file that :func:`write_tensors` wrote with their checksums.

    Raises
    ------
    DamagedCheckpointError
        If one does not fit or is missing.
    """
    if "crc32" not in metadata:
        raise DamagedCheckpointError(f"{path}: the header has no checksum; the file is damaged, or was rewritten")
    for name, array in tensors.items():
        if metadata.get(f"crc32 {name}") != _hexadecimal(zlib.crc32(array.reshape(-1).view(np.uint8).data)):
            raise DamagedCheckpointError(f"{path}: the checksum of {name!r} does not fit; the file is damaged")


def _entries(path: str | os.PathLike[str]) -> tuple[list[tuple[str, np.dtype[Any], list[int]]], dict[str, str]]:
    """Return name, dtype and shape of each array in the order of the file, and the metadata."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            entries = []
            for name in file.offset_keys():
                entry = file.get_slice(name)
                if entry.get_dtype() not in DTYPES:
                    raise DamagedCheckpointError(
                        f"{path}: {name!r} has dtype {entry.get_dtype()}, expected {[*DTYPES]}"
                    )
                entries.append((name, DTYPES[entry.get_dtype()], entry.get_shape()))
            metadata = dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: expected a whole safetensors file; {error}") from error
    return entries, metadata


def _check_header(file: BinaryIO, path: str | os.PathLike[str]) -> bool:
    """Compare the header with its checksum, and return whether it begins with one."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise DamagedCheckpointError(f"{path}: expected a safetensors file; its {size} bytes are too few for one")
    opening = file.read(len(OPENING))
    if opening != OPENING:
        return False
    checksum = file.read(len(BLANK))
    found = zlib.crc32(OPENING + BLANK.encode())
    left = length - len(OPENING) - len(BLANK)
    while left > 0:
        part = file.read(min(left, 1 << 20))
        if not part:
            break
        found = zlib.crc32(part, found)
        left -= len(part)
    if checksum != _hexadecimal(found).encode():
        raise DamagedCheckpointError(f"{path}: the checksum of the header does not fit; the file is damaged")
    return True


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str], checksums: dict[str, str]) -> bytes:
    """Return the beginning of the file, of the same length whatever the checksums."""
    sums = {f"crc32 {name}": checksums.get(name, BLANK) for name in tensors}
    entries: dict[str, Any] = {"__metadata__": {"crc32": BLANK, **metadata, **sums}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + math.prod(tensor.shape) * tensor.dtype.itemsize
        dtype = DTYPE_NAMES[_little_endian(tensor.dtype)]
        entries[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    checksum = _hexadecimal(zlib.crc32(text)).encode()
    return len(text).to_bytes(8, "little") + text.replace(OPENING + BLANK.encode(), OPENING + checksum, 1)


def _write(file: BinaryIO, tensor: Tensor) -> str:
    """Write an array's elements in C order and return their checksum."""
    checksum = 0
    for chunk in _rows_in_chunks(tensor) if isinstance(tensor, SomeRows) else _chunks(tensor):
        checksum = zlib.crc32(chunk, checksum)
        file.write(chunk)
    return _hexadecimal(checksum)


def _rows_in_chunks(tensor: SomeRows) -> Iterator[memoryview]:
    at_once = max(1, CHUNK_ITEMS // max(1, math.prod(tensor.shape[1:])))
    for begin in range(0, len(tensor.rows), at_once):
        yield from _chunks(tensor.array[tensor.rows[begin : begin + at_once]])


def _chunks(array: NDArray[Any]) -> Iterator[memoryview]:
    """Return the elements in C order, little-endian, as bytes, piece by piece."""
    dtype = _little_endian(array.dtype)
    if array.flags.c_contiguous and array.dtype == dtype:
        flat = array.reshape(-1)
        for begin in range(0, flat.size, CHUNK_ITEMS):
            yield flat[begin : begin + CHUNK_ITEMS].view(np.uint8).data
        return
    pieces = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        order="C",
        op_dtypes=[dtype],
        casting="equiv",
        buffersize=CHUNK_ITEMS,
    )
    for piece in pieces:
        yield np.ascontiguousarray(piece).view(np.uint8).data


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _hexadecimal(checksum: int) -> str:
    return f"{checksum:08x}"


def sync_folder(folder: str) -> None:
    """Make a new name in a folder outlast a power failure; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    with suppress(PermissionError):  # a folder may be one to write into and not to read
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems have no such call for folders
                raise
        finally:
            os.close(descriptor)
