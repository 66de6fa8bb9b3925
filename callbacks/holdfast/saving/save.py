"""One save of a trainer, on every rank; and what a resume must know of the checkpoint it starts from.

Knows nothing about when to save, nor which older saves may go.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ..around import around
from ..storage.durable import link
from ..storage.generations import Damage, Generation, GenerationFolder
from ..storage.parts import PartStore, load_parts
from .capture import VERSION, capture, facts_of, non_finite_of, stateful_of
from .environment import compare, environment_fingerprint

POST_MORTEM = "post-mortem"
_RUN = "_holdfast_run"
T = TypeVar("T")


class DamagedCheckpoint(RuntimeError):
    """The checkpoint to load is not what was written; the message says how, and what else is there."""


@dataclass
class Run:
    """What all callbacks of one trainer agree on.

    Attributes:
        id: kept from one resume to the next.
        resumed: the generation the run goes on from.
        newest_then: sequence number of the newest in that folder; those between are of a future given up.
        told: what the user has been warned of once.
        loaded: the generation that was verified and loaded last.
        is_verifying: whether what the trainer loads is verified first.
        num_saves, longest_save_s: by this process, whoever saved.
    """

    id: str
    resumed: Generation | None = None
    newest_then: int = 0
    told: set[str] = field(default_factory=set)
    loaded: Generation | None = None
    is_verifying: bool = False
    num_saves: int = 0
    longest_save_s: float = 0.0

    def owns(self, generation: Generation) -> bool:
        return bool(generation.manifest.get("run") == self.id)

    def has_yet_to_reach(self, generation: Generation) -> bool:
        """Whether it was saved before the run was cut back to an earlier one."""
        return (
            self.owns(generation)
            and self.resumed is not None
            and self.resumed.folder.absolute() == generation.folder.absolute()
            and self.resumed.sequence < generation.sequence <= self.newest_then
        )


def run_of(trainer: Trainer) -> Run:
    """The trainer's run: a new one, until a checkpoint says which it continues."""
    if _RUN not in vars(trainer):
        setattr(trainer, _RUN, Run(uuid.uuid4().hex))
    run: Run = getattr(trainer, _RUN)
    return run


def save_generation(
    trainer: Trainer,
    folder: GenerationFolder,
    name: str | None,
    kind: str,
    *,
    weights_only: bool = False,
    user: Mapping[str, Any] | None = None,
    counters: tuple[str, ...] = (),
    facts: Mapping[str, Any] | None = None,
) -> Generation:
    """Save the trainer's state; to be called on every rank, at a boundary, with the folder locked.

    Where weights are not finite, the generation is of kind "post-mortem" instead, under a name of its own,
    not resumable, and takes the place of the one before.

    Args:
        name: path in the folder without suffix; None is the kind and the sequence number.
        counters: whole numbers of the module to note, by attribute.
        facts: more for the manifest.

    Raises:
        OSError: the disk refused; nothing was added and nothing older harmed.
        Unloadable: the state holds what could not be loaded.
    """
    with timing_save(trainer), trainer.profiler.profile("save_checkpoint"):  # type: ignore[attr-defined]
        store = PartStore(folder.path)
        checkpoint, notes = capture(trainer, store, weights_only)
        checkpoint.get("holdfast", {})["run"] = run_of(trainer).id
        broken = non_finite_of(trainer.lightning_module)
        if broken:
            notes.append(f"weights are not finite: {', '.join(broken)}")
            kind, name = POST_MORTEM, None
        told = {
            **facts_of(trainer, checkpoint, counters),
            "is_resumable": not (weights_only or broken),
            "run": run_of(trainer).id,
            "user": dict(user or {}),
            "notes": notes,
            **(facts or {}),
        }

        def write() -> Generation:
            called = name or f"{kind}-{folder.next_sequence():06d}"
            generation = folder.write(
                called, kind, lambda file: torch.save(checkpoint, file), store.files, told
            )
            if kind == POST_MORTEM:
                _remove_older(folder, generation, run_of(trainer))
            return generation

        generation = on_first_rank(trainer, write)
    _tell_once(run_of(trainer), generation, notes, bool(broken))
    return generation


@contextlib.contextmanager
def timing_save(trainer: Trainer) -> Iterator[None]:
    """Remember how long a save took that came about."""
    began = time.monotonic()
    yield
    run = run_of(trainer)
    run.longest_save_s = max(run.longest_save_s, time.monotonic() - began)
    run.num_saves += 1


def verify_before_loading(trainer: Trainer) -> None:
    """From ``setup`` on, whatever checkpoint this trainer loads is compared with its manifest first.

    Loading then raises DamagedCheckpoint where it is not what was written.
    """
    run = run_of(trainer)
    if not run.is_verifying:
        run.is_verifying = True
        around(trainer._checkpoint_connector, "resume_start", partial(_verify_and_load, trainer))


def _verify_and_load(
    trainer: Trainer,
    resume_start: Callable[..., None],
    checkpoint_path: str | os.PathLike[str] | None = None,
    weights_only: bool | None = None,
) -> None:
    path = Path(checkpoint_path or "").resolve()  # SLURM's is another name of ours
    verified = on_first_rank(trainer, lambda: _verify(path)) if path.is_file() else None
    run_of(trainer).loaded = verified
    resume_start(checkpoint_path, weights_only)


def take_over(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Where a fit goes on from a checkpoint: which run it is, and parts to those who have not taken theirs.

    For every callback that may be alone; the first one's call counts.

    Raises:
        DamagedCheckpoint: a newer version wrote it.
    """
    path, ours = Path(trainer.ckpt_path or "").resolve(), checkpoint.setdefault("holdfast", {})
    if ours.get("is_taken_over") or not path.is_file():
        return
    ours["is_taken_over"] = True
    if trainer.state.fn != TrainerFn.FITTING:
        return
    if ours.get("version", VERSION) > VERSION:
        raise DamagedCheckpoint(
            f"{path} has version {ours['version']} of what lightning-holdfast keeps, and this one reads up "
            f"to {VERSION}; update lightning-holdfast"
        )
    run, generation = run_of(trainer), run_of(trainer).loaded
    run.id = ours.get("run", run.id)
    run.resumed = generation
    give_up_later(trainer)
    for owner, stateful in stateful_of(trainer).items():
        load_parts(owner, stateful, checkpoint, GenerationFolder.around(path).path)
    for owner in ours.get("parts", {}):
        rank_zero_warn(f"{path} holds parts of {owner}, which nothing in this trainer takes back")
    recorded = generation.manifest.get("environment") if generation is not None else None
    if recorded and (differences := compare(recorded, environment_fingerprint())):
        rank_zero_warn(f"{path} is restored exactly; arithmetic may differ because: {'; '.join(differences)}")


def give_up_later(trainer: Trainer) -> None:
    """What the run saved after the generation it goes on from is resumed from no more: logs are cut back.

    To be called once more after `GenerationFolder.collect`, which may bring back one of them.
    """
    run = run_of(trainer)
    if run.resumed is not None:
        resumed = run.resumed
        run.newest_then = on_first_rank(trainer, lambda: _give_up_later(run, resumed))


def _give_up_later(run: Run, resumed: Generation) -> int:
    """Sequence number of the newest of all."""
    folder = GenerationFolder(resumed.folder)
    last = folder.path / "last.ckpt"
    for later in folder.generations():
        if not (later.is_resumable and run.owns(later) and later.sequence > resumed.sequence):
            continue
        try:
            if last.exists() and last.samefile(later.checkpoint):
                link(resumed.checkpoint, last)
            folder.give_up(later, f"the run went on from {resumed.name}")
        except OSError as error:  # a full disk does not keep a run from going on
            rank_zero_warn(f"{later.name} is of a future given up, but may be resumed from still: {error}")
    return folder.next_sequence() - 1


def _verify(path: Path) -> Generation | None:
    """The generation of a checkpoint; None where it has no manifest, as stock checkpoints."""
    folder = GenerationFolder.around(path)
    generation = folder.find(path)
    beside = path.with_suffix(".json").absolute()
    faults = [fault for fault in folder.unreadable() if fault.path.absolute() == beside]
    if generation is not None:
        faults = folder.verify(generation)
    if not faults:
        return generation
    raise DamagedCheckpoint(f"{path} is not loaded: {say(faults)}{_alternative(folder)}")


def say(faults: list[Damage]) -> str:
    return "; ".join(f"{fault.path.name} {fault.reason}" for fault in faults)


def on_first_rank(trainer: Trainer, call: Callable[[], T]) -> T:
    """What the call returns or raises on the first rank, on every rank."""
    if trainer.world_size == 1:
        return call()
    outcome: tuple[Any, Exception | None] = (None, None)
    if trainer.is_global_zero:
        try:
            outcome = (call(), None)
        except Exception as error:
            outcome = (None, error)
    value, failure = trainer.strategy.broadcast(outcome)
    if failure is not None:
        raise failure
    result: T = value
    return result


def refuse_unverifiable(trainer: Trainer, dirpath: str) -> None:
    """Say so where files would be written by others, or where we could not look at them."""
    strategy = trainer.strategy
    if not _is_local_file_protocol(dirpath):
        raise MisconfigurationException(f"dirpath must be a local folder to be verified, got {dirpath!r}")
    if type(strategy).save_checkpoint is not Strategy.save_checkpoint:
        raise MisconfigurationException(
            f"{type(strategy).__name__} writes checkpoints in a form of its own, which cannot be verified "
            "here; use Lightning's ModelCheckpoint with it"
        )
    if type(strategy.checkpoint_io) is not TorchCheckpointIO:
        raise MisconfigurationException(
            f"the plugin {type(strategy.checkpoint_io).__name__} would not be used, because verified "
            "checkpoints are written directly; remove the plugin, or use Lightning's ModelCheckpoint"
        )


def _tell_once(run: Run, generation: Generation, notes: list[str], is_broken: bool) -> None:
    new = [note for note in notes if note not in run.told]
    run.told.update(new)
    fate = "is kept for a post-mortem, not to be resumed from" if is_broken else "was saved"
    if new:
        rank_zero_warn(f"{generation.checkpoint} {fate}: {'; '.join(new)}")


def _alternative(folder: GenerationFolder) -> str:
    other = folder.newest_valid(where=lambda generation: generation.is_resumable)
    return f"; the newest valid one is {other.checkpoint}" if other is not None else ""


def _remove_older(folder: GenerationFolder, newest: Generation, run: Run) -> None:
    for older in folder.generations():
        if older.kind == POST_MORTEM and run.owns(older) and older.sequence < newest.sequence:
            folder.remove(older)
