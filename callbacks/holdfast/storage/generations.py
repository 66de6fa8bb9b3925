"""Checkpoints on disk as generations: written so that there is always a valid one, and checked before use.

Knows nothing about Lightning, nor what is inside a checkpoint or its parts.

A generation is ``<name>.ckpt``, its manifest ``<name>.json``, and the parts that the manifest names. It
exists once its manifest has its name, which comes last. The newest is the one with the highest sequence
number; clocks are never asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from . import manifest as manifests
from .durable import (
    content_of,
    find_inside,
    is_inside,
    link,
    name_of_abandoned,
    sync_folder,
    temporary_of,
    write_durably,
    write_whole,
)
from .manifest import PARTS, ManifestError

SET_ASIDE = "set-aside"
# the first half of its checksum stands in the name of each part, so one content never replaces another
PART_NAME = re.compile(r".+\.[0-9a-f]{16}(\.[^.]+)?")
_DEEPEST_NAME = 4  # folders that a name with slashes may go down
_DISPLACED = re.compile(r"(?P<name>.+)~(?P<sequence>\d+)")


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a generation: its path relative to the folder, with forward slashes, and its content."""

    path: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a manifest says; ``verify`` of its folder tells whether the files agree."""

    folder: Path
    name: str
    manifest: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.ckpt"

    @property
    def path(self) -> Path:
        """The manifest's."""
        return self.folder / f"{self.name}.json"

    @property
    def sequence(self) -> int:
        return int(self.manifest.get("sequence", 0))

    @property
    def kind(self) -> str:
        return str(self.manifest.get("kind", ""))

    @property
    def files(self) -> list[File]:
        """The checkpoint, then its parts."""
        return [File(**file) for file in self.manifest.get("files", ())]

    @property
    def counters(self) -> Mapping[str, int]:
        return self.manifest.get("counters", {})

    @property
    def is_resumable(self) -> bool:
        return bool(self.manifest.get("is_resumable", False))

    @property
    def is_given_up(self) -> bool:
        """Whether its run went on from an older one."""
        return "given_up" in self.manifest


class Damage(NamedTuple):
    path: Path
    reason: str


class Audit(NamedTuple):
    """A folder looked through: sound generations, what is damaged, and files no manifest knows."""

    good: list[Generation]
    damaged: list[Damage]
    orphaned: list[Path]


class GenerationFolder:
    """The generations of one folder, which may be moved or copied as a whole.

    Writing needs one process at a time (``lock.py``); reading needs nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def generations(self) -> list[Generation]:
        """All whose manifest can be read, the newest first; their files are not looked at."""
        return self._scan()[0]

    def unreadable(self) -> list[Damage]:
        """Manifests that cannot be believed, those of newer formats included."""
        return self._scan()[1]

    @classmethod
    def around(cls, path: str | os.PathLike[str]) -> GenerationFolder:
        """The folder to which the checkpoint at ``path`` belongs; names may hold slashes."""
        path = Path(os.path.abspath(path))
        above = path.parents[:_DEEPEST_NAME]
        for folder in above:
            name = path.relative_to(folder).with_suffix(".json").as_posix()
            with contextlib.suppress(ManifestError):
                manifests.read(folder, name, name.removesuffix(".json"))
                return cls(folder)
        return cls(above[0])

    def find(self, path: str | os.PathLike[str]) -> Generation | None:
        """The generation whose checkpoint is at ``path``, or has the same content (``last.ckpt``)."""
        path, known = Path(path), self.generations()
        for generation in known:
            if os.path.abspath(generation.checkpoint) == os.path.abspath(path):
                return generation
        return next((generation for generation in known if _is_same(generation, path)), None)

    def verify(self, generation: Generation) -> list[Damage]:
        """Read every file of a generation and compare size and checksum."""
        faults = ((file, self._fault_in(file)) for file in generation.files)
        return [Damage(self.path / file.path, fault) for file, fault in faults if fault is not None]

    def newest_valid(
        self,
        on_damage: Callable[[Generation, list[Damage]], Any] = lambda generation, faults: None,
        where: Callable[[Generation], bool] = lambda generation: True,
    ) -> Generation | None:
        """The newest generation of which every file is whole.

        Args:
            on_damage: told of each newer one that is passed over, and of each unreadable manifest, which
                may have been of any age: a generation with nothing but its name.
            where: only these are looked at.
        """
        generations, damages = self._scan()
        for damage in damages:
            on_damage(Generation(self.path, self._name_of(damage.path), {}), [damage])
        for generation in filter(where, generations):
            if not (faults := self.verify(generation)):
                return generation
            on_damage(generation, faults)
        return None

    def write(
        self,
        name: str,
        kind: str,
        write: Callable[[BinaryIO], Any],
        parts: Sequence[File] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Generation:
        """Add a generation. Until it is whole and on the disk, one of the same name stays valid.

        Args:
            name: path in the folder, without suffix.
            write: called once with a file that cannot seek.
            parts: files that a ``PartStore`` has written or kept.
            facts: more for the manifest; what it says of ``is_resumable`` (True), ``counters`` and ``user``
                takes the place of the defaults.

        Raises:
            OSError: nothing was added, and what was there is as it was.
        """
        if not is_inside(f"{name}.json"):
            raise ValueError(f"a checkpoint's name must stay inside its folder, got {name!r}")
        checkpoint, text = self.path / f"{name}.ckpt", self.path / f"{name}.json"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        new_checkpoint, new_text = temporary_of(checkpoint), temporary_of(text)
        try:
            content = write_durably(new_checkpoint, write)
            files = [File(f"{name}.ckpt", *content), *self._on_disk(parts)]
            described = manifests.signed(self._describe(name, kind, files, facts or {}))
            write_durably(new_text, manifests.text_of(described))
            with self._displaced(name):
                os.replace(new_checkpoint, checkpoint)
                sync_folder(checkpoint.parent)
                os.replace(new_text, text)
            sync_folder(checkpoint.parent)
        finally:
            _discard(new_checkpoint, new_text)
        self._forget_displaced(name)
        return Generation(self.path, name, described)

    def remove(self, generation: Generation, with_parts: bool = True) -> None:
        """Take a generation away; where that is cut short, ``collect`` brings it back or ends it.

        Args:
            with_parts: those too that no other manifest needs; else the next save may keep them.
        """
        grave = temporary_of(generation.path)
        with contextlib.suppress(FileNotFoundError):
            os.replace(generation.path, grave)
        sync_folder(grave.parent)
        generation.checkpoint.unlink(missing_ok=True)
        grave.unlink(missing_ok=True)
        if with_parts:
            self._collect_parts(file.path for file in generation.files[1:])

    def give_up(self, generation: Generation, reason: str) -> Generation:
        """Let nothing resume from it any more; its files stay until they are retired."""
        described = {**generation.manifest, "is_resumable": False, "given_up": reason}
        described = manifests.signed(described)
        write_whole(generation.path, manifests.text_of(described))
        return Generation(self.path, generation.name, described)

    def collect(self) -> None:
        """Finish or clear away what a process that died has left: temporary files, parts nobody needs.

        A generation that lacked nothing but its last renaming gets it. Only files named as ours are
        touched; while any manifest cannot be read, no part is.
        """
        for temporary, name in list(self._abandoned()):
            if not self._complete(temporary, name):
                temporary.unlink(missing_ok=True)
        for generation in self.generations():
            if match := _DISPLACED.fullmatch(generation.name):
                self._settle(generation, match["name"])
        self._collect_parts(self._parts_on_disk())

    def set_aside(self, path: str | os.PathLike[str], reason: str) -> Path:
        """Move a file of this folder to ``set-aside/``, with the reason beside it; nothing is deleted."""
        path = Path(path)
        target = self._free(self.path / SET_ASIDE / path.relative_to(self.path))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target.with_name(f"{target.name}.reason.txt"), f"{reason}\n")
        os.replace(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)
        return target

    def audit(self) -> Audit:
        """Read everything. Files that are not ours are left out, checkpoints without manifest are not."""
        generations, damaged = self._scan()
        faults = {generation.name: self.verify(generation) for generation in generations}
        good = [generation for generation in generations if not faults[generation.name]]
        damaged = [*damaged, *(fault for found in faults.values() for fault in found)]
        return Audit(good, damaged, sorted(self._orphans(generations, damaged)))

    def next_sequence(self) -> int:
        """The number of the next generation; also those that cannot be believed count."""
        return 1 + max((sequence for sequence, _ in self._read_all()), default=0)

    def _scan(self) -> tuple[list[Generation], list[Damage]]:
        found = [item for _, item in self._read_all()]
        generations = [item for item in found if isinstance(item, Generation)]
        generations.sort(key=lambda generation: (generation.sequence, generation.name), reverse=True)
        return generations, [item for item in found if isinstance(item, Damage)]

    def _read_all(self) -> Iterator[tuple[int, Generation | Damage]]:
        for path in self._files(".json"):
            name = self._name_of(path)
            try:
                content = manifests.read(self.path, f"{name}.json", name)
                yield content["sequence"], Generation(self.path, name, content)
            except ManifestError as error:
                if not error.is_foreign:
                    yield error.sequence, Damage(path, str(error))

    def _files(self, suffix: str) -> Iterator[Path]:
        """Files of the folder and of those below it (names may hold slashes), never parts nor set aside."""
        for folder, below, names in os.walk(self.path):
            below[:] = sorted(name for name in below if name not in (PARTS, SET_ASIDE) and name[0] != ".")
            yield from (Path(folder, name) for name in sorted(names) if name.endswith(suffix))

    def _name_of(self, manifest: Path) -> str:
        return manifest.relative_to(self.path).with_suffix("").as_posix()

    def _fault_in(self, file: File) -> str | None:
        try:
            path = find_inside(self.path, file.path)
            if (size := path.stat().st_size) != file.size:
                return f"has {size} bytes instead of {file.size}"
            if (found := content_of(path)) != (file.size, file.sha256):
                return f"has the checksum {found.sha256} instead of {file.sha256}"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return None

    def _on_disk(self, parts: Sequence[File]) -> list[File]:
        """The parts, each still of its size (their store has read them back), their names flushed."""
        for part in parts:
            if (size := find_inside(self.path, part.path).stat().st_size) != part.size:
                raise OSError(f"{self.path / part.path} has {size} bytes instead of {part.size}")
        folders = {folder for part in parts for folder in Path(part.path).parents}
        for folder in folders:
            sync_folder(self.path / folder)
        return list(parts)

    def _describe(
        self, name: str, kind: str, files: Sequence[File], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "format": manifests.FORMAT,
            "format_version": manifests.FORMAT_VERSION,
            "name": name,
            "sequence": self.next_sequence(),
            "kind": kind,
            "is_resumable": True,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "counters": {},
            "user": {},
            **manifests.plain(facts),
            "files": [dataclasses.asdict(file) for file in files],
        }

    @contextlib.contextmanager
    def _displaced(self, name: str) -> Iterator[None]:
        """Keep what has the name already: a generation under another name, all else set aside."""
        checkpoint, text = self.path / f"{name}.ckpt", self.path / f"{name}.json"
        old = next((generation for generation in self.generations() if generation.name == name), None)
        kept = self._rename(old, f"{name}~{old.sequence}") if old is not None else None
        if old is None:
            for path in filter(os.path.lexists, (text, checkpoint)):
                self.set_aside(path, "stood where a new checkpoint was written, and had no valid manifest")
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                if kept is None:
                    _discard(checkpoint)
                else:
                    link(kept.checkpoint, checkpoint)
                    self._settle(kept, name)
            raise

    def _rename(self, generation: Generation, name: str) -> Generation:
        """The same generation under a second name; its manifest is ready before the checkpoint has it."""
        files = [{**dataclasses.asdict(generation.files[0]), "path": f"{name}.ckpt"}]
        files += [dataclasses.asdict(file) for file in generation.files[1:]]
        described = manifests.signed({**generation.manifest, "name": name, "files": files})
        renamed = Generation(self.path, name, described)
        temporary = temporary_of(renamed.path)
        try:
            write_durably(temporary, manifests.text_of(described))
            link(generation.checkpoint, renamed.checkpoint)
            os.replace(temporary, renamed.path)
        except BaseException:
            _discard(renamed.checkpoint, temporary)
            raise
        sync_folder(renamed.path.parent)
        return renamed

    def _forget_displaced(self, name: str) -> None:
        for generation in self.generations():
            match = _DISPLACED.fullmatch(generation.name)
            if match and match["name"] == name:
                self.remove(generation)

    def _settle(self, displaced: Generation, name: str) -> None:
        """Where writing over a generation was cut short: the new or the old one has the name, whole."""
        if not any(known.name == name and not self.verify(known) for known in self.generations()):
            for path in filter(os.path.lexists, (self.path / f"{name}.json", self.path / f"{name}.ckpt")):
                self.set_aside(path, f"was being written over {displaced.name} when the process died")
            self._rename(displaced, name)
        self.remove(displaced)

    def _complete(self, temporary: Path, name: str) -> bool:
        """Give a manifest its name where the checkpoint it describes has got its own."""
        if not name.endswith(".json") or temporary.parent.name == PARTS:
            return False
        target = temporary.with_name(name)
        relative = temporary.relative_to(self.path).as_posix()
        try:
            content = manifests.read(self.path, relative, self._name_of(target))
        except ManifestError:
            return False
        if self.verify(Generation(self.path, content["name"], content)):
            return False
        os.replace(temporary, target)
        sync_folder(target.parent)
        return True

    def _abandoned(self) -> Iterator[tuple[Path, str]]:
        ours = re.compile(r".+\.(ckpt|json)")
        for path in self._files(".part"):
            name = name_of_abandoned(path)
            if name is not None and ours.fullmatch(name):
                yield path, name
        for path in (self.path / PARTS).rglob(".*.part"):
            if (name := name_of_abandoned(path)) is not None:
                yield path, name

    def _parts_on_disk(self) -> Iterator[str]:
        for path in (self.path / PARTS).rglob("*"):
            if PART_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                yield path.relative_to(self.path).as_posix()

    def _collect_parts(self, candidates: Iterable[str]) -> None:
        generations, damages = self._scan()
        if damages:
            return
        needed = {file.path for generation in generations for file in generation.files}
        for path in set(candidates) - needed:
            if PART_NAME.fullmatch(Path(path).name):
                with contextlib.suppress(OSError):
                    find_inside(self.path, path).unlink()

    def _orphans(self, generations: Sequence[Generation], damaged: Sequence[Damage]) -> Iterator[Path]:
        known = {self.path / file.path for generation in generations for file in generation.files}
        known |= {fault.path.with_suffix(".ckpt") for fault in damaged}
        for path in self._files(".ckpt"):
            if path not in known and not any(_is_same(generation, path) for generation in generations):
                yield path
        yield from (path for path in map(self.path.joinpath, self._parts_on_disk()) if path not in known)
        yield from (path for path, _ in self._abandoned())

    def _free(self, path: Path) -> Path:
        """``path``, or the first like it that is not taken."""
        number, free = 1, path
        while os.path.lexists(free):
            number, free = number + 1, path.with_name(f"{path.name}~{number}")
        return free


def _is_same(generation: Generation, path: Path) -> bool:
    """Whether a file is a generation's checkpoint, by another name or as a copy."""
    with contextlib.suppress(OSError):
        if os.path.samefile(generation.checkpoint, path):
            return True
        file = generation.files[0]
        return path.stat().st_size == file.size and content_of(path) == (file.size, file.sha256)
    return False


def _discard(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
