"""Disk space running out, and space set aside so that a save fits all the same.

Knows nothing about what is saved but its size.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from ..resources.disk import Free, free_space
from .reason import Context, Trigger

MIB = 2**20
NUM_FILES = 32  # what a save may create
Allocate = Callable[[int, int, int], None]
_ALLOCATE: Allocate | None = getattr(os, "posix_fallocate", None)


class Reserve:
    """A file of real blocks that is given up so that a save fits on a full disk.

    Args:
        folder: where the saves go.
        note: says a sentence to the user, the same one only once.
        allocate: as `os.posix_fallocate`; None where the platform has none.
    """

    NAME = ".holdfast-reserve"

    def __init__(
        self,
        folder: Path,
        note: Callable[[str], None],
        allocate: Allocate | None = _ALLOCATE,
    ) -> None:
        self.path, self._note, self._allocate = folder / self.NAME, note, allocate

    @property
    def size(self) -> int:
        """Bytes held now."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def hold(self, size: int) -> bool:
        """Whether ``size`` bytes are held; never takes the last of a disk that is nearly full."""
        if self._allocate is None:
            self._note("no space can be reserved for emergency saves: this platform has no posix_fallocate")
            return False
        if self.size >= size:
            return True
        try:
            self._write(size, self._allocate)
        except OSError as error:
            self.release()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._note(f"no space can be reserved for emergency saves in {self.path.parent}: {error}")
            return False
        return True

    def _write(self, size: int, allocate: Allocate) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            allocate(descriptor, 0, size)
            blocks = getattr(os.fstat(descriptor), "st_blocks", None)
        finally:
            os.close(descriptor)
        if blocks is not None and 512 * blocks < size:
            self._note(
                f"{self.path.parent} promises space without setting it aside: a full disk may refuse a save"
            )

    def release(self) -> None:
        """Give the space back to the disk."""
        self.path.unlink(missing_ok=True)


class Disk(Trigger):
    """Fires when less is free than a save may need; the run saves early and goes on.

    Args:
        factor: a save may need this many times what the last one wrote.
        least_bytes: and at least this much.
        reserve: whether to set space aside for emergency saves.
        look: what is free beside a folder's files.
    """

    kind = "disk"

    def __init__(
        self,
        factor: float = 1.5,
        least_bytes: int = 16 * MIB,
        reserve: bool = True,
        look: Callable[[Path], Free] = free_space,
    ) -> None:
        super().__init__()
        if not factor >= 1:
            raise ValueError(f"factor must be at least 1, the size of the last save, got {factor}; use 1.5")
        self.factor, self.least_bytes = factor, least_bytes
        self._does_reserve, self._look = reserve, look
        self._reserve: Reserve | None = None
        self._is_low = False

    @property
    def needed_bytes(self) -> int:
        return max(self.least_bytes, int(self.factor * self._context.save_bytes()))

    @property
    def reserved_bytes(self) -> int:
        return self._reserve.size if self._reserve else 0

    def start(self, context: Context) -> None:
        super().start(context)
        self._is_low = False
        self._reserve = Reserve(context.folder, context.note) if self._does_reserve else None

    def stop(self) -> None:
        self.release()
        self._reserve = None

    def release(self) -> None:
        """Before an emergency save: give up what was set aside, for it."""
        if self._reserve:
            self._reserve.release()

    def poll(self) -> None:
        if self._context.is_saving():
            return
        free, needed = self._look(self._context.folder), self.needed_bytes
        is_low = free.num_bytes < needed or (free.num_files is not None and free.num_files < NUM_FILES)
        if is_low and not self._is_low:
            self.fire(self._message(free, needed), is_stopping=False)
        # twice as much as raises the alarm ends it, so that a disk at the edge does not save all the time
        self._is_low = is_low or (self._is_low and free.num_bytes < 2 * needed)
        if self._reserve and free.num_bytes > 2 * needed + self._reserve.size:
            self._reserve.hold(needed)

    def _message(self, free: Free, needed: int) -> str:
        files = (
            "" if free.num_files is None or free.num_files >= NUM_FILES else f" and {free.num_files} files"
        )
        folder, space = self._context.folder, f"{free.num_bytes / MIB:.0f} MiB{files}"
        return f"{space} are free in {folder}, and a save may need {needed / MIB:.0f} MiB"
