"""Which checkpoints are the best so far, where a checkpoint's memory and its folder may disagree.

Knows nothing about metrics beyond their values, nor about saving.

After a resume the folder may have been moved, files may be gone, and later ones than the checkpoint knows
may be there. What lies in the folder counts: so no better checkpoint is lost to a worse one.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ..storage.generations import Generation, GenerationFolder
from .save import Run, say


@dataclass
class Wanted:
    """A file that ModelCheckpoint decided to save, and what its decision changed.

    Attributes:
        before: what ModelCheckpoint remembered until then.
        replaces: paths that go once this one is there.
    """

    path: str
    is_last: bool
    score: Tensor | None
    before: dict[str, Any]
    replaces: list[str] = field(default_factory=list)


class Scored(NamedTuple):
    """A valid checkpoint of this run with its score."""

    path: str
    score: float
    global_step: int
    is_ahead: bool


def moved_to(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """A ModelCheckpoint's state with paths where the files lie now; what is gone is forgotten.

    What was still to be saved under ``waiting`` is not gone: it is saved at the first boundary.
    """
    there = str(state.get("dirpath") or folder)
    waiting = [_moved(wanted, there, folder) for wanted in state.get("waiting", [])]
    expected = {wanted["path"] for wanted in waiting}

    def find(path: str) -> str:
        moved = _relocated(path, there, folder)
        return moved if moved in expected else next(filter(os.path.exists, (moved, path)), "") if path else ""

    best = {find(path): score for path, score in state.get("best_k_models", {}).items()}
    best.pop("", None)
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    paths = {name: find(state.get(name, "")) for name in names}
    return {**state, **paths, "best_k_models": best, "dirpath": folder, "waiting": waiting}


def _moved(wanted: dict[str, Any], there: str, here: str) -> dict[str, Any]:
    before = moved_to({**wanted["before"], "dirpath": there}, here)
    return {
        **wanted,
        "path": _relocated(wanted["path"], there, here),
        "before": {name: before[name] for name in wanted["before"]},
        "replaces": [_relocated(path, there, here) for path in wanted["replaces"]],
    }


def scored_in(folder: GenerationFolder, run: Run, saved_by: str) -> list[Scored]:
    """The valid checkpoints with a score that a callback of this run has saved, the oldest first."""
    found = []
    for generation in reversed(folder.generations()):
        if not run.owns(generation) or generation.manifest.get("saved_by") != saved_by:
            continue
        if (score := _score_of(generation)) is None:
            continue
        if faults := folder.verify(generation):
            rank_zero_warn(f"{generation.name} no longer counts among the best checkpoints: {say(faults)}")
            continue
        step = generation.counters.get("global_step", -1)
        is_ahead = run.has_yet_to_reach(generation)
        found.append(Scored(str(generation.checkpoint), score, step, is_ahead))
    return found


def merge(
    remembered: dict[str, Tensor], found: list[Scored], k: int, mode: str, expected: Collection[str] = ()
) -> dict[str, Tensor]:
    """The best ``k`` (-1: all) of what is remembered and what was found; the found score counts.

    Args:
        expected: paths about to be saved, whose remembered score counts.
    """
    scores = {path: score for path, score in remembered.items() if path in expected or os.path.exists(path)}
    for item in found:
        known = scores.get(item.path)
        if item.path not in expected and (known is None or float(known) != item.score):
            scores[item.path] = torch.tensor(item.score)
    if k < 0 or len(scores) <= k:
        return scores
    best = sorted(scores, key=lambda path: float(scores[path]), reverse=mode == "max")[:k]
    return {path: score for path, score in scores.items() if path in best}


def _score_of(generation: Generation) -> float | None:
    told = generation.manifest.get("monitor")
    try:
        return float(told["value"]) if isinstance(told, dict) else None
    except (KeyError, TypeError, ValueError):
        return None


def _relocated(path: str, there: str, here: str) -> str:
    if not path or not Path(path).is_relative_to(there):
        return path
    return str(Path(here, os.path.relpath(path, there)))
