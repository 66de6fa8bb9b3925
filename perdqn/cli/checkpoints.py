"""A checkpoint as a command finds it: read whole before anything is built, and refused in one line.

Knows nothing about where it lies or what it is read for.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from holdfast.storage.parts import load_parts

from perdqn.archive import find_fault
from perdqn.assembly import RunCLI, list_changes
from perdqn.cli.command_line import Refused
from perdqn.config import read
from perdqn.module import PERDQN, STATE_KEY, STATE_VERSION
from perdqn.run.saves import Save
from perdqn.run.shape import FOR_LIFE

WRITTEN = ("state_dict", "hyper_parameters", "pytorch-lightning_version", STATE_KEY)  # by every save of ours


def read_checkpoint(save: Save) -> dict[str, Any]:
    """A checkpoint of ours, all of it checked; tensors are mapped, not read."""
    path = save.checkpoint
    if save.generation is None and (fault := find_fault(path)):
        raise Refused(f"{path} cannot be read as a checkpoint, it is damaged or something else: {fault}")
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


def read_full_checkpoint(save: Save) -> dict[str, Any]:
    """A checkpoint that training can go on from."""
    saved, path = read_checkpoint(save), save.checkpoint
    if "optimizer_states" not in saved:
        weights = "where weights are enough, load them in Python with PERDQN.load_from_checkpoint"
        raise Refused(f"{path} holds weights alone, training goes on from the run's last.ckpt; {weights}")
    return saved


def read_state(save: Save) -> dict[str, Any]:
    """A checkpoint with all of the run's state in it, also where the replay lies in parts of its own."""
    saved = read_checkpoint(save)
    if "module" in saved.get("holdfast", {}).get("parts", {}):
        module: Any = PERDQN(**saved["hyper_parameters"])
        load_parts("module", module, saved, save.folder)
        saved[STATE_KEY] = {**saved[STATE_KEY], "replay": module.memory.state_dict()}
    return saved


def refuse_other_shapes(
    cli: RunCLI, saved: dict[str, Any], path: Path, except_for: tuple[str, ...] = ()
) -> None:
    """Say so where the saved state could not fit, before anything is touched."""
    fixed = [change for change in list_fixed(cli, saved) if not change.startswith(except_for or ("-",))]
    if fixed:
        reason = "a run keeps the shape of its environments, replay and network for life"
        raise Refused(f"{path}: {reason}; take back {', '.join(fixed)}, or start a new run with perdqn fit")


def list_fixed(cli: RunCLI, saved: dict[str, Any], names: tuple[str, ...] = FOR_LIFE) -> list[str]:
    """Settings among ``names`` that differ from those the state was saved with."""
    before, _ = read(saved["hyper_parameters"])
    changes = list_changes({"model": asdict(before)}, {"model": asdict(cli.settings)})
    return [change for change in changes if change.startswith(names)]


def without_replay(saved: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What is left where the replay and the episodes in progress cannot be taken over into ``settings``."""
    shape = {name: settings[name] for name in ("env", "replay")}
    lost = ("replay", "experience", "noise", "global_rng", "num_threads")
    state = {name: value for name, value in saved[STATE_KEY].items() if name not in lost}
    kept = {key: value for key, value in saved.items() if key != "holdfast"}
    return {**kept, "hyper_parameters": {**saved["hyper_parameters"], **shape}, STATE_KEY: state}


def spell_settings(saved: dict[str, Any]) -> list[str]:
    """A checkpoint's own settings as an option, where no config.yaml lies beside it."""
    return ["--model", json.dumps(saved.get("hyper_parameters", {}))]
