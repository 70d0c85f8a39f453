"""Atomic writes: a file is complete or not there, and it and its folder outlast a power failure."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..runtime.interrupts import Uninterrupted

NAME_BYTES = 64
"""The most bytes of a file's name in its temporary name, which is so no longer than file systems allow."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}
"""Names of what may be at a path in place of a file."""


class NotAFileError(OSError):
    """Something other than a file or a folder is at the path of a file."""


def write_atomically(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], on_rename: Callable[[], None] = lambda: None
) -> None:
    """Write a file under a temporary name with ``write``, and rename it when it is complete and on the disk.

    It takes over the permissions of the file that it replaces, and the owner where the system allows it.

    Raises
    ------
    OSError
        If there is something other than a regular file at ``path``, or the operating system refuses. The temporary file
        is deleted then.
    """
    final, old = _resolve(path)
    beginning = os.fsencode(os.path.basename(final))[:NAME_BYTES].decode(errors="ignore")
    temporary = os.path.join(os.path.dirname(final), f"{beginning}.{secrets.token_hex(8)}.part")
    make: Callable[[str], Any] = partial(open, mode="xb")
    opened: list[BinaryIO] = []
    try:
        # No signal handler can run after the file is opened and before it is in the list, so none can leave it open.
        opened.extend(map(make, [temporary]))
        (file,) = opened
        if old is not None and os.name == "posix":
            _copy_rights(file.fileno(), old)
        write(file)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        with Uninterrupted():
            os.replace(temporary, final)
            on_rename()
    except BaseException:
        with Uninterrupted(), suppress(OSError):
            for file in opened:
                with suppress(OSError):
                    file.close()
            os.unlink(temporary)  # it does not exist before it is opened, nor after it is renamed
        raise
    sync_folder(os.path.dirname(final))


def as_paths(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return one path or several as a list."""
    return [as_path(each) for each in ([path] if isinstance(path, (str, bytes, os.PathLike)) else path)]


def as_path(path: Any) -> str:
    """Return a path as a string; raise TypeError if it is neither a string nor a path-like object, or is bytes."""
    found = path.__fspath__() if isinstance(path, os.PathLike) else path
    if not isinstance(found, str):
        advice = "; pass os.fsdecode(path)" if isinstance(found, bytes) else ""
        raise TypeError(f"path: expected a string or a path-like object, got {type(found).__name__}{advice}")
    return found


def check_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raise OSError unless the mode is that of a regular file, which can be mapped and replaced."""
    kind = KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        error = IsADirectoryError if stat.S_ISDIR(mode) else NotAFileError
        raise error(f"{os.fspath(path)!r}: expected a regular file, got {kind}")


def _resolve(path: str | os.PathLike[str]) -> tuple[str, os.stat_result | None]:
    """Return the path behind symbolic links, and the status of the file there if there is one."""
    given = as_path(path)
    final = os.path.realpath(given)
    if not os.path.basename(given):
        check_regular(path, stat.S_IFDIR)
    try:
        old = os.stat(final)
    except FileNotFoundError:
        return final, None
    check_regular(path, old.st_mode)
    return final, old


def _copy_rights(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the permissions of an old one, and its group and owner if the system allows it."""
    for owner in ((-1, old.st_gid), (old.st_uid, -1)):
        with suppress(OSError):
            os.fchown(descriptor, *owner)
    mode = stat.S_IMODE(old.st_mode)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:  # some file systems have one mode for all files
        os.fchmod(descriptor, mode)


def is_there(path: Path) -> bool:
    """Return whether a file or folder exists; raise OSError if the system cannot tell now."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it exists; it outlasts a power failure."""
    parent = folder.absolute().parent
    if not parent.is_dir():
        make_folder(parent)
    folder.mkdir(exist_ok=True)
    sync_folder(os.fspath(parent))


def sync_folder(folder: str) -> None:
    """Put new names in a folder on the disk; Windows does so by itself."""
    if os.name != "posix":
        return
    with suppress(PermissionError):  # the user may be allowed to write to the folder and not to read it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems cannot do this for folders
                raise
        finally:
            os.close(descriptor)
