"""EmergencyCheckpoint: whatever threatens a run, its state is saved before, at a clean boundary.

Knows nothing about how a checkpoint is written, nor how dangers are recognised.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import _TunerExitException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from .around import around
from .boundary import BoundaryCallback, StopRun, abort_evaluation, is_at_boundary
from .checkpoint import VerifiedCheckpoint
from .ending import isolate_end, outlast_signals, requeue_job, requeue_signal
from .resources.release import free_memory
from .saving.save import (
    POST_MORTEM,
    on_first_rank,
    refuse_unverifiable,
    run_of,
    save_generation,
    take_over,
    timing_save,
    verify_before_loading,
)
from .saving.save_costs import SaveCosts
from .saving.schedule import Schedule
from .storage.durable import link
from .storage.generations import Generation, GenerationFolder
from .storage.lock import FolderLock
from .triggers import (
    Context,
    Deadline,
    Disk,
    Memory,
    Numerics,
    Pace,
    Preemption,
    Reason,
    Signals,
    Trigger,
    Watch,
)
from .triggers.preemption import Source
from .triggers.signals import SAVING, STOPPING
from .triggers.slurm import Ask, ask_program

EMERGENCY = "emergency"
_MOST_RECORDS = 200  # in `history`
_LAST = "last.ckpt"


class NonFiniteState(StopRun):
    """NaN or infinity in loss, gradients, weights, or what the module declares; the message says where."""


class EmergencyCheckpoint(BoundaryCallback):
    """Saves before a run is killed, and ends it with the exit code that says why.

    | what | then | exit code |
    |-|-|-|
    | a signal of ``signals`` | save, end | 128 + signal |
    | a signal of ``save_signals`` | save, go on | |
    | memory running out | free memory, save, go on; where that does not help, save, end | 137 |
    | disk running out | warn, save early, go on | |
    | ``max_seconds``, ``until``, the end of a SLURM job | save, end | 124 |
    | a notice of ``notices`` | save, end | 143 |
    | NaN or infinity | keep a post-mortem, end by `NonFiniteState` | 1 |
    | any other exception | keep a post-mortem, say what resumes | as without |

    Saves are made at the next clean boundary; a validation in progress is given up for that, and is played
    whole on resume. They are generations of kind "emergency", in the folder of the VerifiedCheckpoint beside
    this callback if there is one. A *post-mortem* is never resumed from, and the newest good generation stays
    the newest. An exception leaves a step half done, so what resumes then is the newest generation from a
    boundary; ``every`` bounds what is lost. No save hides the exception it was made for, nor does a callback
    or logger that fails while the run ends.

    Under SLURM's auto-requeue, Lightning's handler of the requeue signal would save in the middle of a step;
    here the job is queued again after the save at the boundary, from which Lightning then resumes.

    In distributed runs the ranks ask one another every so many boundaries; a danger that one sees counts.

    What it did is in ``history``, one line each in the log, and saved with its state.

    Args:
        dirpath: folder of the generations where there is no VerifiedCheckpoint; None is ModelCheckpoint's.
        every: when to save in any case, as in VerifiedCheckpoint: "steps", "minutes", "epochs", or a counter
            of the module.
        keep: how many emergency generations of this run to keep.
        grace_seconds: from a signal or notice to the kill that follows.
        signals: after which the run ends.
        save_signals: after which it goes on.
        max_seconds: of training in this process.
        until: wall-clock end, as seconds since 1970 or ISO 8601 text.
        notices: of preemption: paths, URLs, ``gcp``, ``aws``, ``azure``, callables returning a text or None.
        check_every_n_steps: how often losses and gradients are looked at for NaN; None is never.
        reserve: whether to set disk space aside for emergency saves.
        triggers: others, or of a kind above with settings of their own, in place of ours.
        agree_every_n_boundaries: in distributed runs.
        user: plain values for the manifests.
        clock: seconds, monotonic.
        ask: runs a program (squeue, scontrol) and returns what it prints.
    """

    # A module that compiles its updates makes those whose loss is not finite where we see them.
    follows_compiled_updates = True

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        every: Mapping[str, int | float] | None = None,
        keep: int = 1,
        *,
        grace_seconds: float = 30.0,
        signals: Sequence[str] = STOPPING,
        save_signals: Sequence[str] = SAVING,
        max_seconds: float | None = None,
        until: float | str | None = None,
        notices: Sequence[str | os.PathLike[str] | Source] = (),
        check_every_n_steps: int | None = 100,
        reserve: bool = True,
        triggers: Sequence[Trigger] = (),
        agree_every_n_boundaries: int = 10,
        user: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        ask: Ask = ask_program,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}; use 1 to keep the newest")
        if not grace_seconds > 0:
            raise ValueError(f"grace_seconds must be positive, got {grace_seconds}; use 30")
        if agree_every_n_boundaries < 1:
            raise ValueError(
                f"agree_every_n_boundaries must be at least 1, got {agree_every_n_boundaries}; use 10"
            )
        own: list[Trigger | None] = [
            Signals(signals, save_signals, grace_seconds),
            Memory(),
            Disk(reserve=reserve),
            Deadline(max_seconds, until, ask=ask),
            Preemption(notices, grace_seconds) if notices else None,
            Numerics(check_every_n_steps) if check_every_n_steps is not None else None,
        ]
        self.triggers = {trigger.kind: trigger for trigger in (*own, *triggers) if trigger is not None}
        self.signals = cast(Signals, self.triggers[Signals.kind])
        self.numerics = cast(Numerics | None, self.triggers.get(Numerics.kind))
        self.schedule = Schedule(every, 1.0, clock)
        self.keep, self.user = keep, dict(user or {})
        self.agree_every_n_boundaries = agree_every_n_boundaries
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._dirpath, self._clock, self._ask = dirpath, clock, ask
        self._folder: GenerationFolder | None = None
        self._lock: FolderLock | None = None
        self._trainer: Any = None
        self._watch: Watch | None = None
        self._ending: BaseException | None = None
        self._is_alarmed = False
        self._is_alone = True
        self._num_boundaries = self._num_batches = self._num_optimizer_steps = 0
        self._checks_every = 0
        self._costs: SaveCosts | None = None

    # -- what it did -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What is watched, what this platform lacks, and the newest records; plain values."""
        disk = self.triggers.get("disk")
        return {
            "watched": sorted(self.triggers),
            "notes": list(self.notes),
            "signals_received": list(self.signals.received),
            "longest_save_s": self._costs.longest_s if self._costs else 0.0,
            "reserved_bytes": disk.reserved_bytes if isinstance(disk, Disk) else 0,
            "history": [dict(record) for record in self.history[-20:]],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "history": [dict(record) for record in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(record) for record in state_dict["history"]]

    def _record(self, kind: str, message: str, **more: Any) -> dict[str, Any]:
        record = {
            "kind": kind,
            "message": message,
            "global_step": self._trainer.global_step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **more,
        }
        self.history.append(record)
        del self.history[:-_MOST_RECORDS]
        return record

    def _tell(self, text: str) -> None:
        rank_zero_info(f"step {self._trainer.global_step}: {text}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            rank_zero_info(f"EmergencyCheckpoint: {text}")

    # -- a fit -----------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        verify_before_loading(trainer)
        if stage == "fit" and not _is_dry(trainer):
            self.schedule.check(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        take_over(trainer, checkpoint)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_dry(trainer):
            return
        if self._trainer is not trainer:
            around(trainer.fit_loop, "run", self._run)
            around(trainer, "save_checkpoint", partial(_save_timed, trainer))
        self._trainer, self._ending, self._is_alarmed = trainer, None, False
        self._find_folder(trainer)

    def _find_folder(self, trainer: Trainer) -> None:
        self._leave_folder()
        beside = _beside(trainer)
        if beside is not None:
            path = beside.folder.path
        else:
            path = Path(trainer.strategy.broadcast(self._dirpath or _default_folder(trainer)))
            refuse_unverifiable(trainer, str(path))
        self._folder, self._lock = GenerationFolder(path), FolderLock(path)
        on_first_rank(trainer, self._lock.acquire)
        if beside is None:
            on_first_rank(trainer, self._folder.collect)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is None or self._ending is not None:  # a rollback must not undo a decision to end
            return
        self._stop_watching()
        self._is_alone = trainer.world_size == 1
        pace = Pace(partial(_iterations_of, trainer), self._clock)
        self._costs = SaveCosts(run_of(trainer), self._folder, pl_module, pace)
        self._choose_checks(trainer, pl_module)
        self.schedule.start(trainer, pl_module)
        self._start_watching(trainer)

    def _choose_checks(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A callback that recovers from NaN sees it first, and before every step."""
        recovers = any(getattr(c, "recovers_from_non_finite", False) for c in _callbacks_of(trainer))
        self._checks_every = 0 if recovers or self.numerics is None else self.numerics.check_every_n_steps
        self._num_batches = self._num_optimizer_steps = 0

    def _start_watching(self, trainer: Trainer) -> None:
        if (name := requeue_signal(trainer)) is not None and name not in self.signals.stopping:
            self.signals.stopping += (name,)
        assert self._folder is not None
        assert self._costs is not None
        context = Context(
            self._folder.path,
            self._costs.seconds,
            self._costs.num_bytes,
            lambda: is_at_boundary(trainer),
            self._note,
            self._alarm,
            self._clock,
        )
        for trigger in self.triggers.values():
            trigger.start(context)
        if self.numerics is not None:
            self.numerics.accept(trainer.lightning_module.named_buffers())
        self._watch = Watch(list(self.triggers.values()))
        self._watch.start(context)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
            for trigger in self.triggers.values():
                trigger.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave_folder()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave_folder()

    def _leave_folder(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = self._folder = None

    # -- NaN and infinity ------------------------------------------------------------------------

    def idle_hooks(self) -> set[str]:
        looks = ("on_train_batch_end", "on_before_optimizer_step")
        own = {name for name in looks if getattr(type(self), name) is getattr(EmergencyCheckpoint, name)}
        return super().idle_hooks() | (set() if self._checks_every else own)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._num_batches += 1
        if self._num_batches % self._checks_every == 0 and self.numerics is not None:
            self.numerics.check_loss(outputs)
            self.numerics.check_declared(pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._num_optimizer_steps += 1
        if self._num_optimizer_steps % self._checks_every or self.numerics is None:
            return
        # a GradScaler looks for its scale by letting gradients overflow, and leaves such steps out
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            self.numerics.check_gradients(pl_module.named_parameters())

    # -- alarms ----------------------------------------------------------------------------------

    def _alarm(self) -> None:
        """A trigger fired: in a signal handler, in a watching thread or in a hook."""
        self._is_alarmed = True
        reason, module = self._most_urgent(), self._trainer.lightning_module
        if reason is not None and reason.signal is None:  # a handler must not log, and has spoken already
            self._tell(f"{reason.message}: saving at the next boundary")
        # ranks must leave a validation together, so in distributed runs none is cut short
        is_urgent = self._is_alone and reason is not None
        is_urgent = is_urgent and (reason.is_stopping or reason.kind == Memory.kind)  # type: ignore[union-attr]
        # a module's own way may be final, so it is only asked to where the run ends
        if is_urgent and (reason.is_stopping or not hasattr(module, "abort_evaluation")):  # type: ignore[union-attr]
            abort_evaluation(self._trainer)

    def _most_urgent(self) -> Reason | None:
        reasons = [reason for trigger in self.triggers.values() if (reason := trigger.fired()) is not None]
        return min(reasons, key=lambda reason: (not reason.is_stopping, reason.at), default=None)

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is None:
            return
        if self._ending is not None:
            raise self._ending
        if self._is_alarmed or not self._is_alone:
            self._answer(trainer)
        if self.schedule.every and self.schedule.is_due(trainer, pl_module):
            self._save_regularly(trainer)

    def _answer(self, trainer: Trainer) -> None:
        self._num_boundaries += 1
        if not self._is_alone and self._num_boundaries % self.agree_every_n_boundaries:
            return
        self._is_alarmed = False
        reason = self._most_urgent() if self._is_alone else self._agree(trainer)
        if reason is None:
            return
        if reason.kind == Numerics.kind:
            self._end_as_non_finite(trainer, reason)
        if reason.kind == Memory.kind:
            free_memory(trainer)
        generation = self._save_for(trainer, reason)
        if reason.is_stopping:
            self._end(trainer, reason, generation)
        for trigger in self.triggers.values():
            trigger.rearm(reason)
        self._is_alarmed = self._most_urgent() is not None

    def _agree(self, trainer: Trainer) -> Reason | None:
        """The most urgent of any rank's reasons, on every rank."""
        mine, strategy = self._most_urgent(), trainer.strategy
        if not strategy.reduce_boolean_decision(mine is not None, all=False):
            return None
        code = 0
        if mine is not None:
            code = 512 * (mine.kind == Numerics.kind) + 256 * mine.is_stopping + (mine.signal or 0) + 1
        highest = int(strategy.reduce(torch.tensor(code, device=strategy.root_device), reduce_op="max"))
        if code == highest:
            return mine
        kind = Numerics.kind if highest > 512 else "another rank"
        number, is_stopping = (highest - 1) % 256 or None, highest % 512 > 256
        return Reason(kind, "another rank asks for it", number, None, is_stopping, self._clock())

    # -- saves -----------------------------------------------------------------------------------

    def _save_for(self, trainer: Trainer, reason: Reason) -> Generation | None:
        if isinstance(disk := self.triggers.get("disk"), Disk):
            disk.release()
        record = self._record(reason.kind, reason.message, signal=reason.signal, grace_s=reason.grace_s)
        generation = self._save(trainer, EMERGENCY, record)
        since = self._clock() - reason.at
        record["seconds_since_alarm"] = since
        if generation is not None:
            is_late = reason.grace_s is not None and since > reason.grace_s
            grace = (
                f", {'LATER THAN' if is_late else 'within'} {reason.grace_s:.1f} s" if reason.grace_s else ""
            )
            self._tell(f"{reason.message}: {generation.name} saved {since:.2f} s after that{grace}")
        return generation

    def _save_regularly(self, trainer: Trainer) -> None:
        record = self._record("every", "periodic emergency point")
        generation = self._save(trainer, EMERGENCY, record)
        self.schedule.saved(trainer, trainer.lightning_module, record["seconds"])
        if generation is not None:
            self._tell(f"{generation.name} saved in {record['seconds']:.2f} s")

    def _save(
        self, trainer: Trainer, kind: str, record: dict[str, Any], weights_only: bool = False, **facts: Any
    ) -> Generation | None:
        """One save that may fail; then the record and a warning say why, and nothing else happens."""
        assert self._folder is not None
        record["generation"], record["seconds"], started = None, 0.0, self._clock()
        try:
            generation = save_generation(
                trainer,
                self._folder,
                None,
                kind,
                weights_only=weights_only,
                user={**self.user, "reason": record["message"]},
                counters=self.schedule.counters,
                facts=facts,
            )
            record["generation"], record["seconds"] = generation.name, self._clock() - started
            on_first_rank(trainer, partial(self._tidy, trainer, generation))
        except Exception as error:
            record["error"] = repr(error)
            rank_zero_warn(f"the emergency save in {self._folder.path} failed: {error!r}")
            return None
        if generation.kind == kind:
            return generation
        record["error"] = "the weights are not finite"
        self._tell(f"{generation.name} is not resumed from, its weights are not finite")
        return None

    def _tidy(self, trainer: Trainer, newest: Generation) -> None:
        """Let ``last.ckpt`` point to a save that resumes, and older ones of its kind go."""
        assert self._folder is not None
        if not newest.is_resumable:
            return
        beside = _beside(trainer)
        link(newest.checkpoint, Path((beside and beside.last_model_path) or self._folder.path / _LAST))
        mine = [g for g in self._folder.generations() if g.kind == EMERGENCY and run_of(trainer).owns(g)]
        for generation in mine[self.keep :]:
            self._folder.remove(generation)

    def _what_resumes(self) -> str:
        folder, step = self._folder, self._trainer.global_step
        run, known = run_of(self._trainer), folder.generations() if folder else []
        newest = next((found for found in known if found.is_resumable and run.owns(found)), None)
        if newest is None:
            return "there is nothing to resume from"
        lost = step - newest.counters.get("global_step", 0)
        return f"{newest.checkpoint} resumes, {lost} steps are lost"

    # -- ends ------------------------------------------------------------------------------------

    def _end(self, trainer: Trainer, reason: Reason, generation: Generation | None) -> None:
        if generation is None:
            self._tell(f"{reason.message}: {self._what_resumes()}")
        if reason.signal is not None:
            if signal.Signals(reason.signal).name == requeue_signal(trainer):
                checkpoint = generation.checkpoint if generation else None
                self._tell(on_first_rank(trainer, lambda: requeue_job(trainer, checkpoint, self._ask)))
            outlast_signals(trainer, self.signals)
        self._tell(f"the run ends with exit code {reason.exit_code}: {reason.message}")
        self._ending = SystemExit(reason.exit_code)
        raise self._ending

    def _end_as_non_finite(self, trainer: Trainer, reason: Reason) -> None:
        record = self._record(reason.kind, reason.message)
        generation = self._save(trainer, POST_MORTEM, record, is_resumable=False)
        kept = (
            f"the state is kept for a post-mortem in {generation.checkpoint}" if generation else "not saved"
        )
        self._ending = NonFiniteState(f"{reason.message}; {kept}; {self._what_resumes()}")
        self._tell(str(self._ending))
        raise self._ending

    def _run(self, run: Callable[[], None]) -> None:
        """Around all of training, so that it sees every exception before any other callback does."""
        try:
            run()
        except BaseException as error:
            if self._folder is not None:
                self._fail(error)
            raise
        finally:
            self._stop_watching()

    def _fail(self, error: BaseException) -> None:
        trainer = self._trainer
        isolate_end(trainer)
        if error is self._ending or isinstance(error, _TunerExitException):
            return
        is_torn = isinstance(error, Exception) and not isinstance(error, StopRun)
        name = type(error).__name__
        if is_torn and self._is_alone:  # other ranks may still be in a collective of their own
            record = self._record("exception", f"{name}: {error}")
            text = "".join(traceback.format_exception(error))
            self._save(trainer, POST_MORTEM, record, weights_only=True, exception=text)
        self._tell(f"{name} ended the run; {self._what_resumes()}")
        reason = self._most_urgent()
        if is_torn and reason is not None and reason.signal is not None and reason.is_stopping:
            outlast_signals(trainer, self.signals)
            raise SystemExit(reason.exit_code) from error  # it came of the signal, as far as anyone can tell


def _callbacks_of(trainer: Trainer) -> list[Any]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]


def _beside(trainer: Trainer) -> VerifiedCheckpoint | None:
    """The one that saves regularly, if there is one: another may keep the best alone."""
    found = [c for c in _callbacks_of(trainer) if isinstance(c, VerifiedCheckpoint)]
    return max(found, key=lambda checkpoint: bool(checkpoint.schedule.every), default=None)


def _is_dry(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _default_folder(trainer: Trainer) -> Any:
    return ModelCheckpoint()._ModelCheckpoint__resolve_ckpt_dir(trainer)  # type: ignore[attr-defined]


def _iterations_of(trainer: Trainer) -> int | None:
    """Complete ones; None in a validation, which is given up for an alarm."""
    if trainer.validating or trainer.sanity_checking:
        return None
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.completed)


def _save_timed(trainer: Trainer, save_checkpoint: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    with timing_save(trainer):
        save_checkpoint(*args, **kwargs)
