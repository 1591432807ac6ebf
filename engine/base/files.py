"""Reads text files of others, replaces files atomically, keeps entries of caches with a checksum, and locks open files.

Temporary files say in their names which process writes them, so that what a killed one has left can be removed.

After a replacement a reader sees the old content or the new content, even after a crash of the machine. The kernel
releases a lock when its file is closed or its process ends. Network disks support locks from NFS version 4 on; Lustre
and GPFS where that is enabled.
"""

import contextlib
import errno
import fcntl
import io
import itertools
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from engine.base import host

LARGEST = 256 << 20  # bytes: more than the largest file that a run writes as a whole, a manifest of 10,000 processes
_MAGIC = b"convoy1\n"
HEADER_BYTES = len(_MAGIC) + 16  # of a file of `write_checked`
_PIECE = 64 << 10  # characters: Python allocates as much as a read asks for, however small the file is


def read_text(path: Path, largest: int = LARGEST, errors: str = "strict") -> str:
    """Returns the text of a small regular file, which a stranger may have written.

    Does not wait for a pipe, and does not read a device.

    Raises:
        OSError: the file is missing, cannot be read, is not a regular file, has more than `largest` bytes, or, with
            `errors="strict"`, is not UTF-8.
    """
    with open(path, encoding="utf-8", errors=errors, opener=open_regular) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise OSError(errno.EFBIG, f"it has {size} bytes, allowed are {largest}", str(path))
        try:
            pieces = iter(lambda: file.read(min(_PIECE, largest)), "")
            return "".join(itertools.islice(pieces, -(-largest // _PIECE)))
        except UnicodeDecodeError as error:
            raise OSError(errno.EILSEQ, f"it is not UTF-8 text: {error}", str(path)) from error


def open_regular(path: str, flags: int) -> int:
    """Opens a file for `open(opener=)`; does not wait for a pipe. Raises OSError for what is not a regular file."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", path)


def read_checked(path: str | os.PathLike[str]) -> bytes:
    """Returns the content that `write_checked` wrote to this path.

    Raises:
        FileNotFoundError: there is nothing at this path.
        OSError: the file is damaged, was written under another name, or is not a regular file.
    """
    with open(path, "rb", buffering=0, opener=open_regular) as file:  # a buffer would copy the content
        header, content = file.read(HEADER_BYTES), file.read()
    check_header(path, header, content)
    return content


def write_checked(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Replaces a file by content with its checksum, which `read_checked` compares. Raises OSError if it cannot.

    The content is not synced: after a crash of the machine, the checksum tells that it is not complete.
    """
    temporary = temporary_path(Path(path))
    try:
        with open(temporary, "xb") as file:
            file.write(header_of(path, content))
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def header_of(path: str | os.PathLike[str], content: bytes | memoryview) -> bytes:
    """Returns what stands before a content: a checksum, also of the name of the file, since files may be swapped."""
    import xxhash

    found = xxhash.xxh3_128(os.path.basename(os.fsencode(path)) + b"\0")
    found.update(content)
    return _MAGIC + found.digest()


def check_header(path: str | os.PathLike[str], header: bytes, content: bytes) -> None:
    """Raises OSError if a header is not that of a content at this path."""
    if header != header_of(path, content):
        text = "its checksum is not that of its content" if header.startswith(_MAGIC) else "it has no checksum"
        raise OSError(errno.EILSEQ, text, os.fspath(path))


def set_aside(
    path: str | os.PathLike[str], what: str, error: OSError, rename: Callable[[str, str], object] = os.rename
) -> None:
    """Renames a damaged entry of a cache, whatever it is, and says so.

    Args:
        path: the entry.
        what: what it is and what follows, such as "index, which is built again".
        error: what `read_checked` raised.
        rename: renames it.
    """
    aside = f"{os.fspath(path)}.{secrets.token_hex(4)}.damaged"
    try:
        rename(os.fspath(path), aside)
        done = f"It is now {os.path.basename(aside)}."
    except FileNotFoundError:  # another process was faster, and says it
        return
    except OSError as failure:
        done = f"It cannot be renamed ({failure.strerror}): delete it."
    print(f"warning: {path}: damaged {what}: {error.strerror or error}. {done}", file=sys.stderr)


@contextlib.contextmanager
def replacing(
    path: Path, temporary: Path | None = None, before_rename: Callable[[], None] = lambda: None, mode: int = 0o666
) -> Iterator[BinaryIO]:
    """Opens a temporary file for the new content of `path`. At the end, it is synced to the disk and renamed.

    If anything fails, the old file stays and the temporary file is removed. A process that is killed leaves it to the
    next one that writes the file.

    Args:
        path: the file.
        temporary: another path in the same folder, for a caller that lets no other process write; None:
            `temporary_path`.
        before_rename: called once the content is on disk, which may take long.
        mode: access to a new file, which the umask of the process reduces.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = temporary_path(path) if temporary is None else temporary
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def lock(file: IO | io.RawIOBase, *, shared: bool = False, wait: bool = True) -> bool:
    """Locks an open file; returns False if another process holds the lock and `wait` is False.

    Raises:
        OSError: the file system supports no locks.
    """
    try:
        fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_if_supported(file: IO | io.RawIOBase, *, shared: bool = False, wait: bool = True) -> bool:
    """Does what `lock` does; returns True if the file system supports no locks."""
    try:
        return lock(file, shared=shared, wait=wait)
    except OSError:
        return True


_TEMPORARY = re.compile(r"\.(.+)\.([\da-f]{8}-[\da-f]{8}-\d+-\d*)-\d+\.tmp", re.DOTALL)
_FOLDER = re.compile(r"(convoy-[\w-]+?)-([\da-f]{8}-[\da-f]{8}-\d+-\d*)-\w+")
_LONGEST_NAME = 150  # bytes of it in the name of a temporary file, which may have 255
_numbers = itertools.count()
_left: dict[Path, list[tuple[str, Path]]] = {}  # folder -> name and path of each leftover; read once


def temporary_path(path: Path) -> Path:
    """Returns an unused path in the folder of `path`, whose name contains the identity of this process.

    Removes what processes that have ended left of the same file or folder. What may belong to a living process stays:
    also that of another host or container, of which nothing is known here.
    """
    name, mark = _short(path.name), host.process_mark()
    if path.parent not in _left:
        _left[path.parent] = leftovers(path.parent)
    for other, leftover in _left[path.parent]:
        if other == name:
            remove(leftover)
    return path.with_name(f".{name}.{mark}-{next(_numbers)}.tmp")


def leftovers(folder: Path) -> list[tuple[str, Path]]:
    """Returns the name that each temporary file or folder of an ended process was to get, and its path."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [(match, entry.path) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
        return [(match[1], Path(path)) for match, path in found if host.has_ended(match[2])]
    return []


def _short(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])


@contextlib.contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Makes a folder `convoy-<name>-...` in TMPDIR for the block, and removes those that ended processes have left."""
    prefix = f"convoy-{name}"
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for match, path in [(_FOLDER.fullmatch(entry.name), entry.path) for entry in entries]:
            if match and match[1] == prefix and host.has_ended(match[2]):
                remove(Path(path))
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-{host.process_mark()}-"))
    try:
        yield folder
    finally:
        remove(folder)


def remove(path: Path) -> None:
    """Removes a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()
