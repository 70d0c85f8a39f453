"""Files that are whole or not there, whatever happens meanwhile, and folders that outlast a power failure."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..runtime.interrupts import Uninterrupted

NAME_BYTES = 64
"""So much of a file's name begins its temporary name, which thus is short enough wherever the file's own is."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}
"""What may stand where a file is expected."""


class NotAFileError(OSError):
    """Something else than a file or a folder is where a file is expected."""


def write_whole(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], on_rename: Callable[[], None] = lambda: None
) -> None:
    """Make a file that is whole or not there: ``write`` fills it under another name, and then it takes its own.

    It keeps the permissions of the file that it replaces, and the owner where the system allows that.

    Raises
    ------
    OSError
        If what stands at ``path`` is no regular file, or as the operating system refuses; then nothing is left behind.
    """
    final, old = _place_of(path)
    beginning = os.fsencode(os.path.basename(final))[:NAME_BYTES].decode(errors="ignore")
    temporary = os.path.join(os.path.dirname(final), f"{beginning}.{secrets.token_hex(8)}.part")
    make: Callable[[str], Any] = partial(open, mode="xb")
    opened: list[BinaryIO] = []
    try:
        # No signal handler runs between the opening and the list's having the file; so none can leave it open.
        opened.extend(map(make, [temporary]))
        (file,) = opened
        if old is not None and os.name == "posix":
            _take_rights(file.fileno(), old)
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
            os.unlink(temporary)  # which is not there where the interrupt came first, or last
        raise
    sync_folder(os.path.dirname(final))


def as_path(path: Any) -> str:
    """Return a path as a string.

    Raises
    ------
    TypeError
        If it is something else, or bytes.
    """
    found = path.__fspath__() if isinstance(path, os.PathLike) else path
    if not isinstance(found, str):
        advice = "; pass os.fsdecode(path)" if isinstance(found, bytes) else ""
        raise TypeError(f"path: expected a string or a path-like object, got {type(found).__name__}{advice}")
    return found


def check_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raise OSError unless the mode is that of a regular file: others cannot be mapped, or must not be replaced."""
    kind = KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        error = IsADirectoryError if stat.S_ISDIR(mode) else NotAFileError
        raise error(f"{os.fspath(path)!r}: expected a regular file, got {kind}")


def _place_of(path: str | os.PathLike[str]) -> tuple[str, os.stat_result | None]:
    """Return where a file is to be written, and what is known of the file that is there."""
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


def _take_rights(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the permissions of an old one, and its group and owner as far as the system allows."""
    for owner in ((-1, old.st_gid), (old.st_uid, -1)):
        with suppress(OSError):
            os.fchown(descriptor, *owner)
    mode = stat.S_IMODE(old.st_mode)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:  # some file systems have one mode for all
        os.fchmod(descriptor, mode)


def is_there(path: Path) -> bool:
    """Return whether there is such a file or folder; raise OSError where that cannot be told now."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that outlasts a power failure; it may be there."""
    parent = folder.absolute().parent
    if not parent.is_dir():
        make_folder(parent)
    folder.mkdir(exist_ok=True)
    sync_folder(os.fspath(parent))


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
