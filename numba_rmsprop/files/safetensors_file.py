"""Safetensors files, whose every byte is checked when they are read.

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
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import safetensors
from numpy.typing import NDArray

from .whole_file import NotAFileError, check_regular, write_whole

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

MAX_HEADER = 100_000_000
"""Bytes of a header: readers of the format refuse longer ones."""

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

Entry: TypeAlias = tuple[str, np.dtype[Any], list[int]]
"""Name, dtype and shape of an array in a file."""


class DamagedCheckpointError(ValueError):
    """A file is no whole checkpoint: cut short, changed, or never one."""


PASSED_OVER = (DamagedCheckpointError, IsADirectoryError, NotAFileError)
"""What says of a file, for good, that it is no checkpoint. Whatever else goes wrong may go right the next time."""


def not_now(name: str, error: OSError | MemoryError) -> OSError:
    """Return the error for a checkpoint that may be a good one, but cannot be read."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    words = (
        f"{name} cannot be read now, which does not mean that it is damaged, so nothing was passed over: "
        f"{type(error).__name__}: {error}; "
        "try again when memory, descriptors, permissions and the disk are as they should be, or move the file away"
    )
    return OSError(words) if number is None else OSError(number, words)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    on_written: Callable[[], None] = lambda: None,
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
    on_written : callable
        Called when all arrays have been written; it may raise, and then there is no file.
    on_rename : callable
        Called when the file takes its name; nothing interrupts between the two.

    Raises
    ------
    TypeError
        If the format has no name for a dtype.
    ValueError
        If names and metadata are longer than readers of the format take.
    OSError
        As from :func:`write_whole`.
    """
    for name, tensor in tensors.items():
        if _little_endian(tensor.dtype) not in DTYPE_NAMES:
            raise TypeError(
                f"{name}: safetensors files cannot hold dtype {tensor.dtype}; expected one of {list(DTYPE_NAMES)}"
            )
    # Wide items first, so that each array begins at a multiple of its item's size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    blank = _header(ordered, metadata, {})
    if len(blank) - 8 > MAX_HEADER:
        raise ValueError(f"{path}: expected names and metadata of at most {MAX_HEADER:,} bytes, got {len(blank) - 8:,}")

    def write(file: BinaryIO) -> None:
        file.write(blank)
        checksums = {name: _write(file, tensor) for name, tensor in ordered.items()}
        file.seek(0)
        file.write(_header(ordered, metadata, checksums))
        on_written()

    write_whole(path, write, on_rename)


def checksum(array: NDArray[Any]) -> int:
    """Return the CRC-32 of an array's elements in C order, as in a file of ours."""
    found = 0
    for chunk in _chunks(array):
        found = zlib.crc32(chunk, found)
    return found


def map_tensors(
    path: str | os.PathLike[str], accept: Callable[[dict[str, str]], None] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays and metadata of a file, after checking its header.

    The arrays are read-only views of the file, which is mapped and not loaded. With ``accept``, which gets the metadata
    and may refuse the file, every byte is checked too.

    Raises
    ------
    DamagedCheckpointError
        If it is no safetensors file, or a checksum does not fit or is missing.
    OSError
        If it cannot be read.
    """
    while True:
        check_regular(path, os.stat(path).st_mode)  # to open a pipe would wait for ever
        with open(path, "rb") as file:
            sealed = _check_header(file, path)
            entries, metadata = _entries(path)
            # The library opens the path by itself, where another process may have put a new file meanwhile.
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                continue
            if not sealed:
                metadata.pop("crc32", None)
            if accept is not None:
                accept(metadata)
                _verify(file, entries, metadata, path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tensors = {}
        offset = 8 + int.from_bytes(mapped[:8], "little")
        for name, dtype, shape in entries:
            count = math.prod(shape)
            tensors[name] = np.frombuffer(mapped, dtype, count, offset if count else 0).reshape(shape)
            offset += count * dtype.itemsize
        return tensors, metadata


def _verify(
    file: BufferedReader, entries: list[Entry], metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> None:
    """Compare all arrays of a file that :func:`write_tensors` wrote, read from behind its header, with their checksums.

    They are read and not mapped: where the disk fails, the system then says so and does not end the process.
    """
    if "crc32" not in metadata:
        raise DamagedCheckpointError(f"{path}: the header has no checksum; the file is damaged, or was rewritten")
    for name, dtype, shape in entries:
        found = _read_checksum(file, math.prod(shape) * dtype.itemsize)
        if metadata.get(f"crc32 {name}") != _hexadecimal(found):
            raise DamagedCheckpointError(f"{path}: the checksum of {name!r} does not fit; the file is damaged")


def _entries(path: str | os.PathLike[str]) -> tuple[list[Entry], dict[str, str]]:
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
    except FileNotFoundError as error:  # which the library says of whatever it cannot open
        os.stat(path)
        raise OSError(f"{path}: is there, but could not be opened once more; no descriptors left?") from error
    return entries, metadata


def _check_header(file: BufferedReader, path: str | os.PathLike[str]) -> bool:
    """Compare the header with its checksum, return whether it begins with one, and leave the file behind it."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise DamagedCheckpointError(f"{path}: expected a safetensors file; its {size} bytes are too few for one")
    opening = file.read(len(OPENING))
    if opening != OPENING:
        return False
    checksum = file.read(len(BLANK))
    found = zlib.crc32(OPENING + BLANK.encode())
    found = _read_checksum(file, length - len(OPENING) - len(BLANK), found)
    if checksum != _hexadecimal(found).encode():
        raise DamagedCheckpointError(f"{path}: the checksum of the header does not fit; the file is damaged")
    return True


def _read_checksum(file: BufferedReader, count: int, found: int = 0) -> int:
    """Return the checksum, begun with one found before, of the next bytes of a file, or of as many as there are."""
    buffer = memoryview(bytearray(min(max(count, 0), 1 << 20)))
    while count > 0 and (length := file.readinto(buffer[:count])):
        found = zlib.crc32(buffer[:length], found)
        count -= length
    return found


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
