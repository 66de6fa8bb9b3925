"""Which saved state of a run is meant: its newest valid generation, or an older run's last.ckpt.

Knows nothing about what is in a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.storage.durable import link
from holdfast.storage.generations import Damage, Generation, GenerationFolder
from holdfast.storage.manifest import FORMAT_VERSION

from perdqn.run.folder import CHECKPOINTS, RunFolder, RunNotFound, newest_run


@dataclass(frozen=True)
class Fault:
    """A generation that is not as it was written."""

    generation: Generation
    damages: list[Damage]

    def __str__(self) -> str:
        reasons = [f"{damage.path.name}: {damage.reason}" for damage in self.damages]
        return f"{self.generation.name} is damaged ({'; '.join(reasons)})"


@dataclass(frozen=True)
class Save:
    """One saved state of a run.

    Args:
        checkpoint: the file that Lightning loads.
        generation: None where the file has no manifest, as in runs of earlier versions.
        passed_over: newer generations that are damaged.
    """

    run: RunFolder
    checkpoint: Path
    generation: Generation | None = None
    passed_over: list[Fault] = field(default_factory=list)

    @property
    def damages(self) -> list[Damage]:
        """All that is wrong with the generations passed over."""
        return [damage for fault in self.passed_over for damage in fault.damages]

    @property
    def folder(self) -> Path:
        """What the checkpoint names its parts relative to."""
        return self.checkpoint.parent if self.generation is None else self.generation.folder


def find_run(reference: str | None, root: Path) -> RunFolder:
    """The run that the user means.

    Args:
        reference: a run folder, or a file of one; None is the newest run below ``root``.

    Raises:
        RunNotFound: there is none.
    """
    if reference is None:
        return newest_run(root)
    path = Path(reference)
    if path.is_file():
        above = path.absolute().parents  # names of generations may hold slashes
        return RunFolder(next((folder.parent for folder in above if folder.name == CHECKPOINTS), path.parent))
    if not path.is_dir():
        raise RunNotFound(f"{path} is neither a run folder nor a checkpoint")
    return RunFolder(path)


def find_save(reference: str | None, root: Path, best: bool = False) -> Save:
    """The saved state that the user means.

    Args:
        reference: a run folder, or a checkpoint or its manifest; None is the newest run below ``root``.
        best: take a run's best checkpoint instead of its last.

    Raises:
        RunNotFound: there is none that can be loaded, with the reason.
    """
    run = find_run(reference, root)
    if reference is None or Path(reference).is_dir():
        return _newest_save(run, best)
    if best:
        raise RunNotFound(f"--best chooses within a run, but {reference} is a file of one; leave it out")
    return _named_save(run, Path(reference))


def _named_save(run: RunFolder, path: Path) -> Save:
    """The generation of a file, which must be valid then; the file alone where it has none."""
    folder = GenerationFolder(run.checkpoints if run.checkpoints.is_dir() else run.path)
    generation = folder.find(path.with_suffix(".ckpt") if path.suffix == ".json" else path)
    beside = path.with_suffix(".json").absolute()
    if damages := [damage for damage in folder.unreadable() if damage.path.absolute() == beside]:
        raise RunNotFound(f"{path} cannot be used: {damages[0].path.name} {damages[0].reason}")
    if generation is None:
        return Save(run, path)
    if damages := folder.verify(generation):
        hint = f"perdqn resume {run.path} falls back to the newest generation that is whole"
        raise RunNotFound(f"{path} cannot be used: {Fault(generation, damages)}; {hint}")
    return Save(run, generation.checkpoint, generation)


def _newest_save(run: RunFolder, best: bool) -> Save:
    folder, passed_over = GenerationFolder(run.checkpoints), list[Fault]()
    newest = folder.newest_valid(
        lambda generation, damages: passed_over.append(Fault(generation, list(damages))),
        where=lambda generation: generation.kind == "best" if best else generation.is_resumable,
    )
    for fault in passed_over:
        if is_of_newer_format(fault.generation.path):  # to pass over it would be to lose what it holds
            raise RunNotFound(f"{fault.generation.path} {fault.damages[0].reason}")
    if newest is not None:
        return Save(run, newest.checkpoint, newest, passed_over)
    if passed_over:
        raise RunNotFound(f"{run.path} has no valid generation: {'; '.join(map(str, passed_over))}")
    checkpoint = run.best if best else run.last
    if not checkpoint.is_file():
        what = checkpoint.relative_to(run.path)
        raise RunNotFound(f"{run.path} has no {what}; {_why_missing(run, best)}")
    return Save(run, checkpoint)


def is_of_newer_format(manifest: Path) -> bool:
    """Whether this version is too old to judge what a manifest says."""
    try:
        content = json.loads(manifest.read_bytes()) if manifest.suffix == ".json" else None
    except (OSError, ValueError, RecursionError):
        return False
    version = content.get("format_version") if isinstance(content, dict) else None
    return isinstance(version, int) and version > FORMAT_VERSION


def set_aside(folder: GenerationFolder, damages: Iterable[Damage]) -> list[Path]:
    """Move damaged files out of the way, with what is of no use without them; where they lie now."""
    reasons = {path: reason for path, reason in damages if not is_of_newer_format(path)}
    sound, broken = list[Generation](), list[Generation]()
    for generation in folder.generations():
        is_broken = any(folder.path / file.path in reasons for file in generation.files)
        (broken if is_broken else sound).append(generation)
    needed = {folder.path / file.path for generation in sound for file in generation.files}
    for generation in broken:
        files = [generation.path, *(folder.path / file.path for file in generation.files)]
        for path in filter(lambda path: path not in needed, files):
            reasons.setdefault(path, f"another file of {generation.name} is damaged")
    for path in [path for path in reasons if path.suffix == ".json"]:
        reasons.setdefault(path.with_suffix(".ckpt"), "its manifest is damaged")
    last = folder.path / "last.ckpt"
    if last.exists() and any(path.exists() and last.samefile(path) for path in reasons):
        reasons.setdefault(last, "it is another name of a damaged checkpoint")
    # without its manifest it is no generation any more, so that goes first
    ordered = sorted(reasons, key=lambda path: path.suffix != ".json")
    return [folder.set_aside(path, reasons[path]) for path in ordered if path.exists()]


def adopt(save: Save, run: RunFolder) -> Path:
    """Give a run what another one saved, and its best so far: the same files by another name, or copies.

    Returns:
        The checkpoint to go on from.
    """
    newest = save.generation
    if newest is None:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        link(save.checkpoint, run.last)
        return run.last
    best = GenerationFolder(save.folder).newest_valid(
        where=lambda generation: generation.kind == "best" and generation.sequence < newest.sequence
    )
    if best is not None:
        _link(best, run)
    return _link(newest, run)


def _link(generation: Generation, run: RunFolder) -> Path:
    """The manifest comes last, as ever, so a run that dies meanwhile has all or nothing."""
    checkpoint, *parts = (file.path for file in generation.files)
    for path in (*parts, checkpoint, f"{generation.name}.json"):
        (run.checkpoints / path).parent.mkdir(parents=True, exist_ok=True)
        link(generation.folder / path, run.checkpoints / path)
    return run.checkpoints / checkpoint


def _why_missing(run: RunFolder, best: bool) -> str:
    if not run.config.is_file():
        return "without a config.yaml it is no run folder either"
    return "no evaluation took place" if best else "the run ended before its first save, so start it anew"
