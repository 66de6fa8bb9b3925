"""Files that are on the disk, and read back as they were written, before anything relies on them.

Knows nothing about what is in them, nor which of them belong together.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

_BLOCK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.part")
# what a file system answers that has no fsync for folders; anything else is a fault of the disk
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EISDIR, errno.EACCES}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS}
_has_said_no_folder_sync = False


class Content(NamedTuple):
    """What tells one file's content from another's."""

    size: int
    sha256: str


class Sink:
    """What a writer writes to: in order, each byte into the file and into the checksum.

    It has no ``seek``, and after a failure it takes nothing more: ``torch.save`` turns an error of the
    disk into another one, so the first is kept here.
    """

    def __init__(self, descriptor: int) -> None:
        self.size = 0
        self.error: BaseException | None = None
        self._descriptor = descriptor
        self._checksum = hashlib.sha256()
        self._waiting = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= _BLOCK_BYTES:  # large tensors go through without a copy
            self.flush()
            self._put(view)
        else:
            self._waiting += view
            if len(self._waiting) >= _BLOCK_BYTES:
                self.flush()
        return len(view)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, bytearray()
        self._put(memoryview(waiting))

    @property
    def content(self) -> Content:
        return Content(self.size, self._checksum.hexdigest())

    def _put(self, view: memoryview) -> None:
        if self.error is not None:
            raise self.error
        try:
            self._checksum.update(view)
            while view:
                written = os.write(self._descriptor, view)
                self.size += written
                view = view[written:]
        except BaseException as error:
            self.error = error
            raise


def temporary_of(path: Path) -> Path:
    """Where ``path`` is written before it has its name; tells the process that does."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def name_of_abandoned(temporary: Path) -> str | None:
    """Whose content a temporary file was to be, where no other living process writes it; else None."""
    match = _TEMPORARY.fullmatch(temporary.name)
    if match is None:
        return None
    pid = int(match["pid"])
    # our own number is one that was used before: containers give the same one at every start
    return match["name"] if pid == os.getpid() or not _is_alive(pid) else None


def write_durably(path: Path, write: str | Callable[[BinaryIO], Any]) -> Content:
    """Write, flush to the disk, read back and compare; where anything fails, nothing is left.

    Args:
        write: text, or a function that writes to a file without ``seek``.

    Raises:
        OSError: the disk refused, or does not hold what was written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            written = _fill(descriptor, write)
        finally:
            os.close(descriptor)
        if (found := content_of(path)) != written:
            raise OSError(errno.EIO, f"reads back as {found}, but {written} was written", str(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return written


def write_whole(path: Path, write: str | Callable[[BinaryIO], Any]) -> None:
    """Replace ``path`` durably; a reader sees all of the old file or all of the new one, also after a crash.

    Folders above are made. Raises as `write_durably` does; the old file stays then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    write_durably(temporary, write)
    try:
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    sync_folder(path.parent)


def content_of(path: Path) -> Content:
    """Size and SHA-256 of a regular file, read from the disk where the platform lets caches be dropped."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size, checksum = 0, hashlib.sha256()
        while block := os.read(descriptor, _BLOCK_BYTES):
            size += len(block)
            checksum.update(block)
        return Content(size, checksum.hexdigest())
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; says once where there is no such thing."""
    global _has_said_no_folder_sync
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        if not _has_said_no_folder_sync:
            _has_said_no_folder_sync = True
            warnings.warn(
                f"{path}: folders cannot be flushed here ({error.strerror}); "
                "a power cut may lose the newest checkpoint",
                stacklevel=2,
            )


def link(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``, at once, whatever it was; where that is refused, a copy."""
    temporary = temporary_of(target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with source.open("rb") as file:
                write_durably(temporary, lambda sink: shutil.copyfileobj(file, sink))
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # replacing a name by another of the same file does nothing
    sync_folder(target.parent)


def is_inside(path: str) -> bool:
    """Whether a recorded path, relative and with forward slashes, cannot lead out of its folder."""
    pure = PurePosixPath(path)
    is_plain = str(pure) == path and "\\" not in path and "\0" not in path and len(path) <= 1024
    return is_plain and not pure.is_absolute() and path != "." and ".." not in pure.parts


def find_inside(folder: Path, path: str) -> Path:
    """The regular file at a recorded path, whose symbolic links do not lead out of the folder either.

    Raises:
        OSError: there is none.
    """
    if not is_inside(path):
        raise OSError(errno.EACCES, "is no path inside its folder", path)
    real = Path(os.path.realpath(folder / path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise OSError(errno.EACCES, f"leads out of {folder}", path)
    if not stat.S_ISREG(os.stat(real).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return real


def _fill(descriptor: int, write: str | Callable[[BinaryIO], Any]) -> Content:
    sink = Sink(descriptor)
    try:
        if isinstance(write, str):
            sink.write(write.encode())
        else:
            write(cast(BinaryIO, sink))
        sink.flush()
    except Exception:
        if sink.error is not None:
            raise sink.error from None
        raise
    os.fsync(descriptor)
    return sink.content


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
