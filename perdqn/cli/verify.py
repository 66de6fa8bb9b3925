"""The command `perdqn verify`: what of a run's saved states is whole, damaged, or left over.

Knows nothing about what is in a checkpoint, and imports nothing heavy: checksums tell.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.storage.generations import Damage, Generation, GenerationFolder
from holdfast.storage.lock import FolderLock

from perdqn.archive import find_fault
from perdqn.run.folder import RunNotFound
from perdqn.run.saves import find_run, set_aside

PLAIN = ("last.ckpt", "best.ckpt")  # of runs of earlier versions


def verify(given: Namespace) -> int:
    """Exit code 0 where all is good, 1 where something is damaged, also if it has been set aside now."""
    run = find_run(given.path, given.root)
    folder = GenerationFolder(run.checkpoints if run.checkpoints.is_dir() else run.path)
    finding = _look(folder)
    moved = _repair(folder, finding) if given.repair else []
    print(json.dumps(_as_dict(finding, moved), indent=2) if given.json else _as_text(finding, moved))
    return 1 if finding.damaged else 0


class Finding(NamedTuple):
    """What there is: generations, damage, left-over files, and files of earlier versions that are whole."""

    good: list[Generation]
    damaged: list[Damage]
    orphaned: list[Path]
    plain: list[Path]


def _look(folder: GenerationFolder) -> Finding:
    """Files without manifest, as earlier versions wrote them, are judged by the checksums in them."""
    good, damaged, orphaned = folder.audit()
    faults = {path: find_fault(path) for path in orphaned if path.name in PLAIN}
    found = Finding(
        good,
        [*damaged, *(Damage(path, fault) for path, fault in faults.items() if fault)],
        [path for path in orphaned if path not in faults],
        [path for path, fault in faults.items() if not fault],
    )
    if not any(found):
        raise RunNotFound(f"{folder.path} holds no checkpoint; name a run folder")
    return found


def _repair(folder: GenerationFolder, finding: Finding) -> list[Path]:
    """Set damaged files aside, and clear away what a process that died has left."""
    with FolderLock(folder.path):
        folder.collect()  # first, or it would clear away what is left of a generation set aside
        return set_aside(folder, finding.damaged)


def _as_dict(finding: Finding, moved: list[Path]) -> dict[str, Any]:
    return {
        "good": [
            {"name": g.name, "sequence": g.sequence, "kind": g.kind, "counters": dict(g.counters)}
            for g in finding.good
        ],
        "damaged": [{"path": str(path), "reason": reason} for path, reason in finding.damaged],
        "orphaned": [str(path) for path in finding.orphaned],
        "without_manifest": [str(path) for path in finding.plain],
        "set_aside": [str(path) for path in moved],
    }


def _as_text(finding: Finding, moved: list[Path]) -> str:
    lines = [
        *(f"good       {_describe(generation)}" for generation in finding.good),
        *(f"good       {path}, without a manifest, as earlier versions wrote it" for path in finding.plain),
        *(f"damaged    {path} {reason}" for path, reason in finding.damaged),
        *(f"orphaned   {path}" for path in finding.orphaned),
        *(f"set aside  {path}" for path in moved),
    ]
    good, damaged = len(finding.good) + len(finding.plain), len(finding.damaged)
    return "\n".join([*lines, f"{good} good, {damaged} damaged, {len(finding.orphaned)} orphaned"])


def _describe(generation: Generation) -> str:
    num_bytes = sum(file.size for file in generation.files)
    counters = ", ".join(f"{name} {count:,}" for name, count in generation.counters.items())
    files = f"{len(generation.files)} files of {num_bytes / 2**20:,.1f} MiB"
    return (
        f"{generation.checkpoint}: generation {generation.sequence}, {generation.kind}, {files}; {counters}"
    )
