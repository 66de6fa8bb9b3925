"""A checkpoint as a command finds it: read whole before anything is built, and refused in one line.

Knows nothing about where it lies or what it is read for.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from perdqn.assembly import RunCLI, list_changes
from perdqn.cli.command_line import Refused
from perdqn.config import read
from perdqn.module import STATE_KEY, STATE_VERSION

FOR_LIFE = (
    "model.env.id",
    "model.env.kwargs",
    "model.env.num_envs",
    "model.env.vectorization",
    "model.env.wrappers",
    "model.env.frame_stack",
    "model.env.stack_padding",
    "model.replay.capacity",
    "model.network.",
    "model.head.",
    "model.learner.dueling",
    "model.seed",
)
WRITTEN = ("state_dict", "hyper_parameters", "pytorch-lightning_version", STATE_KEY)  # by every save of ours


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours; tensors are mapped, not read."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise Refused(f"{path} cannot be read as a checkpoint: it is damaged, or something else")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes the reader raise almost anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Refused(f"{path} cannot be read as a checkpoint: {reason}") from None
    missing = [key for key in WRITTEN if not isinstance(saved, dict) or key not in saved]
    if missing:
        raise Refused(f"{path} is no checkpoint of perdqn: it has no {', '.join(missing)}")
    if (version := saved[STATE_KEY]["version"]) > STATE_VERSION:
        raise Refused(f"{path} has format {version}, this perdqn reads up to {STATE_VERSION}; upgrade")
    return dict(saved)


def read_full_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that training can go on from."""
    saved = read_checkpoint(path)
    if "optimizer_states" not in saved:
        weights = "where weights are enough, load them in Python with PERDQN.load_from_checkpoint"
        raise Refused(f"{path} holds weights alone, training goes on from the run's last.ckpt; {weights}")
    return saved


def refuse_other_shapes(cli: RunCLI, saved: dict[str, Any], path: Path) -> None:
    """Say so where the saved state could not fit, before anything is touched."""
    before, _ = read(saved["hyper_parameters"])
    changes = list_changes({"model": asdict(before)}, {"model": asdict(cli.settings)})
    fixed = [change for change in changes if change.startswith(FOR_LIFE)]
    if fixed:
        reason = "a run keeps the shape of its environments, replay and network for life"
        raise Refused(f"{path}: {reason}; take back {', '.join(fixed)}, or start a new run with perdqn fit")


def spell_settings(saved: dict[str, Any]) -> list[str]:
    """A checkpoint's own settings as an option, where no config.yaml lies beside it."""
    return ["--model", json.dumps(saved.get("hyper_parameters", {}))]
