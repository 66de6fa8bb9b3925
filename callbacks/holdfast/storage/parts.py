"""Large state that is written in parts of its own, so that a save costs what is new.

Knows nothing about what the parts hold, nor which checkpoint will name them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, runtime_checkable

from .durable import Content, find_inside, is_inside, temporary_of, write_durably
from .generations import PARTS, File

_is_saving_parts: ContextVar[bool] = ContextVar("is_saving_parts", default=False)


class DamagedPart(OSError):
    """A part is missing or not what its checksum says; the message names path and reason."""


class PartStore:
    """The parts of one save or one load, in the folder ``parts`` beside the checkpoints.

    A part never changes once it is written: half of its checksum stands in its name, which
    ``write`` returns, and the parts of a save that did not come about are cleared away by name.

    Args:
        folder: that of the checkpoints.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._files: dict[str, File] = {}

    @property
    def files(self) -> list[File]:
        """All that were written or kept; the manifest of this save names them."""
        return list(self._files.values())

    def write(self, path: str, chunks: Iterable[bytes | memoryview]) -> File:
        """Write a part, flushed and read back.

        Args:
            path: a name, with slashes if you like; the checksum is put before its suffix.

        Returns:
            Where it lies and what is in it: ``dataclasses.asdict`` of it belongs into the entry.
        """
        if not is_inside(path):
            raise ValueError(f"a part's path must stay inside its folder, got {path!r}")
        wanted = self.folder / PARTS / path
        wanted.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_of(wanted)

        def write_chunks(file: BinaryIO) -> None:
            for chunk in chunks:
                file.write(chunk)

        try:
            content = write_durably(temporary, write_chunks)
            named = wanted.with_name(f"{wanted.stem}.{content.sha256[:16]}{wanted.suffix}")
            self._refuse_other_content(named, content)
            os.replace(temporary, named)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return self._note(File(named.relative_to(self.folder).as_posix(), *content))

    def keep(self, file: File) -> File:
        """Reuse a part of an older generation; only its size is looked at.

        Raises:
            DamagedPart: it is gone, or has another size.
        """
        self._find(file)
        return self._note(file)

    def read(self, file: File) -> bytes:
        """A part's content, compared with its checksum.

        Raises:
            DamagedPart: it is not that content.
        """
        path = self._find(file)
        content = path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
            raise DamagedPart(f"{path} has the checksum {found} instead of {file.sha256}")
        return content

    def _find(self, file: File) -> Path:
        path = self.folder / str(file.path)
        try:
            if PurePosixPath(file.path).parts[:1] != (PARTS,):
                raise DamagedPart(f"{path} is no part: parts lie in {PARTS}/")
            found = find_inside(self.folder, file.path)
            if (size := found.stat().st_size) != file.size:
                raise DamagedPart(f"{path} has {size} bytes instead of {file.size}")
        except DamagedPart:
            raise
        except OSError as error:
            raise DamagedPart(f"{path}: {error.strerror or error}") from None
        return found

    def _refuse_other_content(self, path: Path, content: Content) -> None:
        if os.path.lexists(path) and path.stat().st_size != content.size:
            raise FileExistsError(f"{path} exists with other content; parts are never overwritten")

    def _note(self, file: File) -> File:
        self._files[file.path] = file
        return file


@runtime_checkable
class Stateful(Protocol):
    """A LightningModule, LightningDataModule or Callback joins by having both methods."""

    def save_parts(self, store: PartStore) -> dict[str, Any]:
        """Write what is new, keep what is not; the entry says which parts, in plain types."""
        ...

    def load_parts(self, store: PartStore, entry: dict[str, Any]) -> None:
        """Take the state back from what ``save_parts`` returned."""
        ...


def saving_parts() -> bool:
    """Whether parts are written in the save under way, so that ``on_save_checkpoint`` leaves them out."""
    return _is_saving_parts.get()


@contextlib.contextmanager
def save_with_parts(does: bool = True) -> Iterator[None]:
    """Let ``saving_parts`` answer ``does`` meanwhile."""
    token = _is_saving_parts.set(does)
    try:
        yield
    finally:
        _is_saving_parts.reset(token)


def load_parts(
    owner: str, stateful: Stateful, checkpoint: dict[str, Any], folder: str | os.PathLike[str]
) -> bool:
    """Give ``stateful`` the owner's entry of a checkpoint and take it out; False where there is none.

    A module may call this in its ``on_load_checkpoint``, so that it resumes without our callback too.

    Args:
        owner: "module", "datamodule", or a callback's ``state_key``.
        folder: that of the checkpoint.
    """
    entries = checkpoint.get("holdfast", {}).get("parts", {})
    if owner not in entries:
        return False
    stateful.load_parts(PartStore(folder), entries.pop(owner))
    return True
