"""Safetensors files with checksums: every byte is checked when they are read.

The format is that of https://github.com/huggingface/safetensors: the length of a JSON header (8 bytes), the header, and
the arrays one after the other. Any other tool can read it, and nothing in it can run. The library of that name reads
the header. It is not used to write, since it has no checksums, and would copy arrays that are not contiguous.

The metadata in the header begins with ``crc32``, the checksum of the header with eight zeros in that place. The
checksum of an array ``x`` is the metadata ``crc32 x``. All are CRC-32 as in zlib, in eight hexadecimal digits.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from typing import Any, BinaryIO, TypeAlias

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import NDArray

from .atomic_file import NotAFileError, check_regular, write_atomically

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
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
"""The dtypes of the format, by their names there."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

CHUNK_ITEMS = 1 << 19
"""The most elements that are copied at a time from an array that is not contiguous."""

MAX_HEADER = 100_000_000
"""The most bytes of a header: readers of the format refuse longer ones."""

OPENING, BLANK = b'{"__metadata__":{"crc32":"', b"0" * 8
"""The beginning of a header, and the place of its checksum."""

ALIGNMENT = 8


@dataclass(frozen=True)
class SomeRows:
    """Some rows of an array, which are copied only while they are written."""

    array: NDArray[Any]
    rows: NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``array[rows]``."""
        return (len(self.rows), *self.array.shape[1:])

    def part(self, begin: int, end: int) -> NDArray[Any]:
        """Return some of the rows."""
        return self.array[self.rows[begin:end]]


@dataclass(frozen=True)
class ComputedRows:
    """An array whose rows are made only while they are written; ``part(begin, end)`` returns some of them."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: Callable[[int, int], NDArray[Any]]


Tensor: TypeAlias = NDArray[Any] | SomeRows | ComputedRows

Entry: TypeAlias = tuple[str, np.dtype[Any], list[int]]
"""The name, dtype and shape of an array in a file."""


class DamagedCheckpointError(ValueError):
    """A file is not a whole checkpoint: it was cut short, was changed, or never was one."""


NO_CHECKPOINT = (DamagedCheckpointError, IsADirectoryError, NotAFileError)
"""Errors which show that a file is not a checkpoint. After any other error, the next attempt may succeed."""


def cannot_read_now(name: str, error: OSError | MemoryError) -> OSError:
    """Return the error for a checkpoint that cannot be read, and may still be good."""
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
    """Write a file of arrays, which replaces an old one only when it is complete and on the disk.

    Parameters
    ----------
    path : path-like
        The file to write, or a symbolic link to it.
    tensors : mapping of str to ndarray, SomeRows or ComputedRows
        The arrays. Those that are not contiguous are copied in chunks.
    metadata : dict of str to str
        Texts to store in the header.
    on_written : callable
        Called when all arrays have been written. If it raises, no file is made.
    on_rename : callable
        Called when the file has taken its name. No signal handler runs between the two.

    Raises
    ------
    TypeError
        If the format has no such dtype.
    ValueError
        If names and metadata are longer than readers of the format accept.
    OSError
        As from :func:`write_atomically`.
    """
    for name, tensor in tensors.items():
        if _little_endian(tensor.dtype) not in DTYPE_NAMES:
            raise TypeError(
                f"{name}: safetensors files cannot hold dtype {tensor.dtype}; expected one of {list(DTYPE_NAMES)}"
            )
    # Large items first, so that each array begins at a multiple of its item size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    blank = _header(ordered, metadata, {})
    if len(blank) - 8 > MAX_HEADER:
        raise ValueError(f"{path}: expected names and metadata of at most {MAX_HEADER:,} bytes, got {len(blank) - 8:,}")

    def write(file: BinaryIO) -> None:
        file.write(blank)
        checksums = {name: _checksum(_chunks(tensor), file.write) for name, tensor in ordered.items()}
        file.seek(0)
        file.write(_header(ordered, metadata, checksums))
        on_written()

    write_atomically(path, write, on_rename)


def checksum(array: NDArray[Any]) -> int:
    """Return the CRC-32 of an array's elements in C order, which is its checksum in a file."""
    return _checksum(_chunks(array))


def map_tensors(
    path: str | os.PathLike[str], accept: Callable[[dict[str, str]], None] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays and the metadata of a file, after checking its header.

    The arrays are read-only views of the file, which is mapped into memory.

    Parameters
    ----------
    path : path-like
        The file.
    accept : callable, optional
        Called with the metadata; it raises to refuse the file. With it, every byte of the arrays is checked, too.

    Raises
    ------
    DamagedCheckpointError
        If it is not a safetensors file, or a checksum is wrong or missing.
    OSError
        If it cannot be read.
    """
    while True:
        check_regular(path, os.stat(path).st_mode)  # opening a pipe would wait for ever
        with open(path, "rb") as file:
            has_checksum = _check_header(file, path)
            entries, metadata = _entries(path)
            # The library opens the path again, and another process may have replaced the file before it did.
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                continue
            if not has_checksum:
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
    """Check all arrays of a file, which is at the end of its header.

    They are read and not mapped: if the disk fails, a read raises an error, where a mapping ends the process.
    """
    if "crc32" not in metadata:
        raise DamagedCheckpointError(f"{path}: the header has no checksum; the file is damaged, or was rewritten")
    for name, dtype, shape in entries:
        found = _checksum(_read(file, math.prod(shape) * dtype.itemsize))
        if metadata.get(f"crc32 {name}") != _hexadecimal(found):
            raise DamagedCheckpointError(f"{path}: the checksum of {name!r} does not fit; the file is damaged")


def _entries(path: str | os.PathLike[str]) -> tuple[list[Entry], dict[str, str]]:
    """Return the name, dtype and shape of each array, in the order of the file, and the metadata."""
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
    except FileNotFoundError as error:  # the library raises it for all files that it cannot open
        os.stat(path)
        raise OSError(f"{path}: is there, but could not be opened once more; no descriptors left?") from error
    return entries, metadata


def _check_header(file: BufferedReader, path: str | os.PathLike[str]) -> bool:
    """Read the header, check it if it begins with a checksum, and return whether it does."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise DamagedCheckpointError(f"{path}: expected a safetensors file; its {size} bytes are too few for one")
    opening = file.read(len(OPENING))
    if opening != OPENING:
        return False
    expected = file.read(len(BLANK))
    rest = _read(file, length - len(OPENING) - len(BLANK))
    if expected != _hexadecimal(_checksum(chain([OPENING, BLANK], rest))).encode():
        raise DamagedCheckpointError(f"{path}: the checksum of the header does not fit; the file is damaged")
    return True


def _read(file: BufferedReader, count: int) -> Iterator[memoryview]:
    """Yield the next ``count`` bytes of a file, or as many as there are, in chunks that share one buffer."""
    buffer = memoryview(bytearray(min(max(count, 0), 1 << 20)))
    while count > 0 and (length := file.readinto(buffer[:count])):
        yield buffer[:length]
        count -= length


def _checksum(chunks: Iterable[bytes | memoryview], write: Callable[[Any], object] | None = None) -> int:
    """Return the CRC-32 of bytes, each chunk of which is written to a file on the way."""
    found = 0
    for chunk in chunks:
        found = zlib.crc32(chunk, found)
        if write is not None:
            write(chunk)
    return found


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str], checksums: dict[str, int]) -> bytes:
    """Return the length of the header, and the header; a missing checksum is written as zeros of the same length."""
    sums = {f"crc32 {name}": _hexadecimal(checksums.get(name, 0)) for name in tensors}
    entries: dict[str, Any] = {"__metadata__": {"crc32": _hexadecimal(0), **metadata, **sums}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + math.prod(tensor.shape) * tensor.dtype.itemsize
        dtype = DTYPE_NAMES[_little_endian(tensor.dtype)]
        entries[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    own = _hexadecimal(zlib.crc32(text)).encode()
    return len(text).to_bytes(8, "little") + OPENING + own + text[len(OPENING + own) :]


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the elements of an array in C order, little-endian, as bytes."""
    if not isinstance(tensor, np.ndarray):
        at_once = max(1, CHUNK_ITEMS // max(1, math.prod(tensor.shape[1:])))
        for begin in range(0, tensor.shape[0], at_once):
            yield from _chunks(tensor.part(begin, min(begin + at_once, tensor.shape[0])))
        return
    pieces = np.nditer(
        tensor,
        flags=["external_loop", "buffered", "zerosize_ok"],
        order="C",
        op_dtypes=[_little_endian(tensor.dtype)],
        casting="equiv",
        buffersize=CHUNK_ITEMS,
    )
    for piece in pieces:  # a view where the array is contiguous
        yield np.ascontiguousarray(piece).view(np.uint8).data


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _hexadecimal(checksum: int) -> str:
    return f"{checksum:08x}"
