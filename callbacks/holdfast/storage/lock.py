"""One process at a time writes to a folder; the next is told which one does.

Knows nothing about what is written there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_has_said_no_locks = False
_held: dict[str, _Held] = {}  # by real path, of this process


class FolderInUse(RuntimeError):
    """Another process writes there; the message names it."""


class _Held:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.num_holders = 1


class FolderLock:
    """The right to write to a folder, until released or until this process ends, however it ends.

    The holders of one process share it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder, LOCK_NAME)
        self._key: str | None = None

    @property
    def is_held(self) -> bool:
        return self._key is not None

    def acquire(self) -> None:
        """Take it; without waiting.

        Raises:
            FolderInUse: another process has it.
        """
        if self.is_held:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        key = os.path.realpath(self.path)
        if key in _held:
            _held[key].num_holders += 1
        else:
            _held[key] = _Held(_take(self.path))
        self._key = key

    def release(self) -> None:
        key, self._key = self._key, None
        if key is None or key not in _held:
            return
        _held[key].num_holders -= 1
        if _held[key].num_holders == 0:
            os.close(_held.pop(key).descriptor)

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Who has, or last had, the lock: host, pid and started; empty where nobody wrote it."""
    try:
        found = json.loads(Path(folder, LOCK_NAME).read_bytes()[:4096])
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _take(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        _flock(descriptor, path)
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder has no name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _flock(descriptor: int, path: Path) -> None:
    global _has_said_no_locks
    reason = "this platform has no flock"
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            raise FolderInUse(_refusal(path.parent)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            reason = str(error.strerror)
    if not _has_said_no_locks:
        _has_said_no_locks = True
        warnings.warn(
            f"{path.parent} cannot be locked ({reason}); see to it that one process writes there",
            stacklevel=2,
        )


def _refusal(folder: Path) -> str:
    holder = holder_of(folder)
    who = "another process"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('started')}"
    return f"{folder} is being written by {who}; let that end, or choose another folder"


def _forget_in_child() -> None:
    """A forked worker must not keep the folder locked after its parent has died."""
    for held in _held.values():
        with contextlib.suppress(OSError):
            os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
