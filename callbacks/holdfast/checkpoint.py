"""ModelCheckpoint whose files are verified generations, saved where nothing is half done.

Knows nothing about what is trained, nor why a state is worth saving beyond counters, time and a metric.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import proxy

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from .boundary import BoundaryCallback, StopRun
from .saving.save import (
    POST_MORTEM,
    DamagedCheckpoint,
    Run,
    give_up_later,
    on_first_rank,
    refuse_unverifiable,
    run_of,
    save_generation,
    say,
    take_over,
    verify_before_loading,
)
from .saving.schedule import Schedule
from .saving.standing import Wanted, merge, moved_to, scored_in
from .storage.durable import link
from .storage.generations import Damage, Generation, GenerationFolder
from .storage.lock import FolderLock
from .storage.manifest import plain
from .storage.parts import PartStore

__all__ = ["DamagedCheckpoint", "RehearsalFailed", "VerifiedCheckpoint", "save_generation"]

REGULAR, BEST, CHECKPOINT = "regular", "best", "checkpoint"
_TRIGGERS = ("every_n_train_steps", "every_n_epochs", "train_time_interval", "save_on_train_epoch_end")
_BOOKKEEPING = (
    "_last_checkpoint_saved",
    "_last_global_step_saved",
    "best_k_models",
    "best_model_path",
    "best_model_score",
    "current_score",
    "kth_best_model_path",
    "kth_value",
    "last_model_path",
)


class RehearsalFailed(StopRun):
    """Saving does not work, found out at the start of the run instead of its end."""


class VerifiedCheckpoint(BoundaryCallback, ModelCheckpoint):
    """A ModelCheckpoint with all its options, of which every file is a verified generation.

    ModelCheckpoint's hooks decide what to save; it is saved at the next clean boundary, under the path
    decided. ``last.ckpt`` is another name of the newest resumable generation, replaced at once. A save that
    fails warns, harms nothing older, and training goes on. Weights that are not finite are kept apart.
    ``ckpt_path="last"`` is the newest generation that is whole, "best" survives a moved folder.

    Args:
        dirpath, filename, monitor: as in ModelCheckpoint, whose other arguments are keywords.
        every: when to save regular generations, whichever comes first: "steps" (of the optimiser, also in
            manual optimisation), "minutes", "epochs", or any counter that is an attribute of the module.
            The end of training is saved too. Without ``monitor`` or a trigger, nothing else is saved then.
        keep: how many valid regular generations of this run to keep.
        at_start: save before the first batch, too, where nothing can be resumed yet.
        rehearse: save, verify and load once before the first batch; end the run where that fails.
        max_time_fraction: largest share of the run spent on regular saves; slow ones become rarer.
        user: plain values for the manifest.
        clock: seconds, monotonic.
        options: ModelCheckpoint's. ``save_on_exception`` keeps a state that may be torn, for a post-mortem.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        *,
        every: Mapping[str, int | float] | None = None,
        keep: int = 2,
        at_start: bool = False,
        rehearse: bool = False,
        max_time_fraction: float = 1.0,
        user: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}; use 2, so that one may be damaged")
        if every and monitor is None and not any(options.get(name) for name in _TRIGGERS):
            options.setdefault("save_top_k", 0)
        super().__init__(os.fspath(dirpath) if dirpath else None, filename, monitor, **options)
        self.schedule = Schedule(every, max_time_fraction, clock)
        self.keep = keep
        self.at_start = at_start
        self.rehearse = rehearse
        self.user = plain(dict(user or {}))
        self.num_saves = 0
        self._clock = clock
        self._lock: FolderLock | None = None
        self._waiting: list[Wanted] = []
        self._before: dict[str, Any] = {}
        self._progress_saved = (0, 0, 0)
        self._needs_rehearsal = self._needs_start = self._may_finish = False
        self._failure: tuple[Any, ...] = ()
        self._trusted: set[int] = set()  # sequence numbers of what this process has written or verified
        self._ahead: dict[int, float] = {}
        self._manual_step = 0

    @property
    def folder(self) -> GenerationFolder:
        """Where the generations are, from ``setup`` on."""
        assert self.dirpath is not None
        return GenerationFolder(self.dirpath)

    def save_now(self, trainer: Trainer) -> None:
        """Save a regular generation at once; to be called at a boundary, on every rank."""
        self._save_all(trainer, trainer.lightning_module, is_due=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():  # other files in the folder are in no danger
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        verify_before_loading(trainer)
        if stage != "fit" or _is_dry(trainer):
            return
        if self.FILE_EXTENSION != ".ckpt":
            raise MisconfigurationException(f"FILE_EXTENSION must be .ckpt, got {self.FILE_EXTENSION!r}")
        refuse_unverifiable(trainer, str(self.dirpath))
        self.schedule.check(pl_module)
        on_first_rank(trainer, self._claim_folder)
        self._needs_rehearsal = self.rehearse

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        take_over(trainer, checkpoint)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """With what is decided and not saved yet: another callback's save, or its own, may come before it."""
        more: dict[str, Any] = {}
        if self._waiting:
            more["waiting"] = [asdict(wanted) for wanted in self._waiting]
        if self._defer_save_until_validation:
            more["is_deferred"] = True
        return {**super().state_dict(), **more}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = moved_to(state_dict, str(self.dirpath))
        super().load_state_dict(state_dict)
        self._defer_save_until_validation = state_dict.get("is_deferred", False)
        self._waiting = [Wanted(**wanted) for wanted in state_dict["waiting"]]
        self.current_score = state_dict.get("current_score")  # which ModelCheckpoint saves, but forgets here

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not _is_dry(trainer):
            on_first_rank(trainer, self._clear_up)  # not before what is resumed from has been loaded
            give_up_later(trainer)
        if self.monitor is not None and self.save_top_k != 0 and not _is_dry(trainer):
            self._believe_folder(trainer)
        self._progress_saved = _progress_of(trainer)
        self._manual_step = trainer.global_step
        self._needs_start = self.at_start and on_first_rank(
            trainer, lambda: self._has_nothing_to_resume(run_of(trainer))
        )
        self._may_finish = hasattr(pl_module, "is_finished")
        self.schedule.start(trainer, pl_module)

    def idle_hooks(self) -> set[str]:
        decides = self._every_n_train_steps >= 1 or self._train_time_interval is not None
        is_ours = type(self).on_train_batch_end is VerifiedCheckpoint.on_train_batch_end
        return super().idle_hooks() | ({"on_train_batch_end"} if is_ours and not decides else set())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.automatic_optimization:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        else:
            self._decide_in_manual_optimization(trainer)

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._needs_rehearsal:
            self._needs_rehearsal = False
            self._rehearse(trainer)
        is_due = self._is_due(trainer, pl_module)
        if (is_due or self._waiting) and not _is_dry(trainer):
            self._save_all(trainer, pl_module, is_due)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._waiting:  # decided, but there is no boundary any more
            self._take_back(self._waiting[0])
        self._waiting = []
        if self._should_save_on_exception(trainer) and self._lock is not None:
            self._save_torn(trainer, exception)
        self._leave_folder()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._leave_folder()

    # What ModelCheckpoint decides

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        ahead = self._ahead.pop(trainer.global_step, None)
        if current is not None and ahead == float(current):  # saved already, before the run was cut back
            self.current_score = current
            return False
        return super().check_monitor_top_k(trainer, current)

    def file_exists(self, filepath: str | os.PathLike[str], trainer: Trainer) -> bool:
        is_taken = trainer.is_global_zero and self._is_taken(str(filepath), run_of(trainer))
        return trainer.strategy.reduce_boolean_decision(is_taken, all=False)

    def _decide_in_manual_optimization(self, trainer: Trainer) -> None:
        """As in automatic optimisation, but a batch may take several steps, or none."""
        step, steps, interval = trainer.global_step, self._every_n_train_steps, self._train_time_interval
        is_due = steps >= 1 and step // steps > self._manual_step // steps
        self._manual_step = step
        if interval is not None:
            now, before = time.monotonic(), self._last_time_checked
            has_passed = before is not None and now - before >= interval.total_seconds()
            if trainer.strategy.broadcast(has_passed):
                is_due, self._last_time_checked = True, now
        if not is_due or self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor is not None and self.monitor not in candidates:
            self._defer_save_until_validation = True
            return
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self._before = self._bookkeeping()
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self._before = self._bookkeeping()
        super()._save_last_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        is_last = filepath == self.last_model_path
        score = None if is_last or self.monitor is None else self.best_k_models.get(filepath)
        self._waiting.append(Wanted(filepath, is_last, score, self._before))
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath

    def _link_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, filepath: str, linkpath: str
    ) -> None:
        self._waiting.append(Wanted(linkpath, True, None, self._before))

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._waiting[-1].replaces.append(filepath)  # it goes once what takes its place is there

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """What ``ckpt_path="last"`` chooses from: the newest generation that is whole."""
        folder = GenerationFolder(self._ModelCheckpoint__resolve_ckpt_dir(trainer))  # type: ignore[attr-defined]
        found = folder.newest_valid(_say_passed_over, lambda generation: generation.is_resumable)
        return {str(found.checkpoint)} if found is not None else super()._find_last_checkpoints(trainer)

    def _bookkeeping(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in _BOOKKEEPING}
        return {**kept, "best_k_models": dict(self.best_k_models)}

    def _take_back(self, wanted: Wanted) -> None:
        """Nothing came of a decision, so it was not made."""
        for name, value in wanted.before.items():
            setattr(self, name, value)

    # What is saved at a boundary

    def _is_due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        if not self.schedule.every:
            return False
        is_start, self._needs_start = self._needs_start, False
        return is_start or self.schedule.is_due(trainer, pl_module) or self._is_ending(trainer, pl_module)

    def _is_ending(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether nothing will be saved after this boundary unless it is now.

        A run that stops within an epoch is saved while that is open, because Lightning cannot extend a
        closed one; a run whose last epoch has come to its end is saved once that is closed.
        """
        loop = trainer.fit_loop
        stops_here = (
            (trainer.should_stop and loop._can_stop_early)
            or 0 <= loop.epoch_loop.max_steps <= trainer.global_step
            or (self._may_finish and pl_module.is_finished)
        )
        if stops_here:
            return _progress_of(trainer)[:2] != self._progress_saved[:2]
        epochs = loop.epoch_progress.current
        return epochs.ready == epochs.completed and _progress_of(trainer) != self._progress_saved

    def _save_all(self, trainer: Trainer, pl_module: LightningModule, is_due: bool) -> None:
        started = self._clock()
        if is_due and self.save_last is None and not self.last_model_path:
            self.last_model_path = self._free_last_path(trainer)
        newest: Generation | None = None
        while self._waiting:
            wanted = self._waiting.pop(0)
            serves = wanted.is_last and self._is_good(newest)
            saved = newest if serves else self._save(trainer, wanted)
            if saved is None:
                self._take_back(wanted)
                self._waiting = []
                break
            newest = saved
            self._follow_up(trainer, newest, wanted.replaces)
        else:
            if is_due and not self._is_good(newest):
                newest = self._save(trainer) or newest
                self._follow_up(trainer, newest, [])
        self._progress_saved = _progress_of(trainer)
        if is_due or newest is not None:
            self.schedule.saved(trainer, pl_module, self._clock() - started if is_due else 0.0)
        if newest is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _is_good(self, generation: Generation | None) -> bool:
        return generation is not None and (generation.is_resumable or self.save_weights_only)

    def _save(self, trainer: Trainer, wanted: Wanted | None = None) -> Generation | None:
        """One save, which may fail: a regular one, or what was decided."""
        is_regular = wanted is None or wanted.is_last
        facts: dict[str, Any] = {"saved_by": self.state_key}
        if wanted is not None and wanted.score is not None:
            facts["monitor"] = {"name": self.monitor, "mode": self.mode, "value": float(wanted.score)}
        kind = REGULAR if is_regular else BEST if "monitor" in facts else CHECKPOINT
        try:
            generation = save_generation(
                trainer,
                self.folder,
                None if is_regular or wanted is None else self._name_of(wanted.path),
                kind,
                weights_only=self.save_weights_only,
                user=self.user,
                counters=self.schedule.counters,
                facts=facts,
            )
        except Exception as error:
            what = f"{error} ({type(error).__name__})" if not isinstance(error, OSError) else f"{error}"
            key = (type(error), getattr(error, "errno", str(error)))
            self._complain(key, f"no checkpoint was saved in {self.dirpath}: {what}; older ones are kept")
            return None
        if generation.kind == POST_MORTEM:  # of which the user has been told
            self._failure = (POST_MORTEM,)
            return None
        self._count(generation)
        return generation

    def _count(self, generation: Generation) -> None:
        if self._failure:
            rank_zero_info(f"Checkpoints are saved in {self.dirpath} again")
        self._failure = ()
        self._trusted.add(generation.sequence)
        self.num_saves += 1
        self._last_time_checked = time.monotonic()

    def _complain(self, key: tuple[Any, ...], sentence: str) -> None:
        if key != self._failure:
            rank_zero_warn(f"{sentence}, and training goes on")
        self._failure = key

    def _follow_up(self, trainer: Trainer, newest: Generation | None, replaced: list[str]) -> None:
        """After a save: ``last`` points there, and what may go goes."""
        if newest is None:
            return
        run = run_of(trainer)

        def work() -> None:
            if self.last_model_path and self._is_good(newest):
                link(newest.checkpoint, Path(self.last_model_path))
            for path in replaced:
                self._remove(path)
            if newest.kind == REGULAR:
                self._retire(run)

        try:
            on_first_rank(trainer, work)
        except OSError as error:
            rank_zero_warn(f"{newest.checkpoint} is saved, but clearing up after it failed: {error}")

    def _retire(self, run: Run) -> None:
        """Keep so many regular generations of this run that are whole; older ones go."""
        num_valid = 0
        for generation in self.folder.generations():
            if generation.kind != REGULAR or not run.owns(generation):
                continue
            if generation.manifest.get("saved_by") != self.state_key:
                continue
            if num_valid == self.keep or generation.is_given_up:
                self.folder.remove(generation)
            elif self._is_whole(generation):
                num_valid += 1

    def _is_whole(self, generation: Generation) -> bool:
        if generation.sequence not in self._trusted and not self.folder.verify(generation):
            self._trusted.add(generation.sequence)
        return generation.sequence in self._trusted and generation.checkpoint.exists()

    def _save_torn(self, trainer: Trainer, exception: BaseException) -> None:
        """What ``save_on_exception`` asks for; a step may be half done, so nothing resumes from it."""
        facts = {"is_resumable": False, "exception": repr(exception), "saved_by": self.state_key}
        try:
            save_generation(trainer, self.folder, None, POST_MORTEM, user=self.user, facts=facts)
        except Exception as error:  # never hides the first exception
            rank_zero_warn(f"the state at the exception was not saved: {error!r}")

    def _rehearse(self, trainer: Trainer) -> None:
        try:
            generation = save_generation(trainer, self.folder, None, "rehearsal", user=self.user)
            on_first_rank(trainer, lambda: self._try_out(generation))
        except Exception as error:
            raise RehearsalFailed(f"the rehearsal of a save in {self.dirpath} failed: {error}") from error

    def _try_out(self, generation: Generation) -> None:
        try:
            if generation.kind == POST_MORTEM:
                raise ValueError("; ".join(generation.manifest["notes"]))
            if faults := self.folder.verify(generation):
                raise DamagedCheckpoint(say(faults))
            torch.load(generation.checkpoint, map_location="cpu", weights_only=True)
            store = PartStore(self.folder.path)
            for part in generation.files[1:]:
                store.read(part)
        finally:
            self.folder.remove(generation, with_parts=False)

    # The folder

    def _has_nothing_to_resume(self, run: Run) -> bool:
        return not any(found.is_resumable and run.owns(found) for found in self.folder.generations())

    def _claim_folder(self) -> None:
        if self._lock is None:
            lock = FolderLock(self.folder.path)
            lock.acquire()
            self._lock = lock

    def _clear_up(self) -> None:
        try:
            self.folder.collect()
        except OSError as error:
            rank_zero_warn(f"what a run before has left in {self.dirpath} stays there: {error}")

    def _leave_folder(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def _name_of(self, path: str) -> str:
        relative = os.path.relpath(path, self.folder.path)
        return Path(relative).as_posix().removesuffix(self.FILE_EXTENSION)

    def _at(self, path: str) -> Generation | None:
        name = self._name_of(path)
        return next((found for found in self.folder.generations() if found.name == name), None)

    def _remove(self, path: str) -> None:
        generation = self._at(path)
        if generation is not None:
            self.folder.remove(generation)
        elif os.path.exists(manifest := Path(path).with_suffix(".json")):
            self.folder.set_aside(manifest, "was to be removed, but could not be read")
            self.folder.set_aside(path, "was to be removed, but its manifest could not be read")
        else:  # a link, or a stock checkpoint
            Path(path).unlink(missing_ok=True)

    def _is_taken(self, path: str, run: Run) -> bool:
        """Whether a new checkpoint needs another name: not for those of a future that was given up."""
        if any(path == wanted.path for wanted in self._waiting):
            return True
        is_going = any(path in wanted.replaces for wanted in self._waiting)
        if is_going or not os.path.lexists(path):
            return False
        if (generation := self._at(path)) is None:
            return self.folder.find(path) is None  # a link to one of ours is free to point elsewhere
        return path in self.best_k_models or not run.has_yet_to_reach(generation)

    def _free_last_path(self, trainer: Trainer) -> str:
        candidates, version = self._monitor_candidates(trainer), self.STARTING_VERSION
        path = self.format_checkpoint_name(candidates, self.CHECKPOINT_NAME_LAST)
        while self._enable_version_counter and self.file_exists(path, trainer):
            path = self.format_checkpoint_name(candidates, self.CHECKPOINT_NAME_LAST, ver=version)
            version += 1
        return path

    def _believe_folder(self, trainer: Trainer) -> None:
        """Take the best checkpoints from what is there, so that none is lost to a worse one."""
        run = run_of(trainer)
        found = on_first_rank(trainer, lambda: scored_in(self.folder, run, self.state_key))
        known = {item.path for item in found if item.is_ahead}  # saved, before the run was cut back
        self._waiting = [wanted for wanted in self._waiting if wanted.path not in known]
        expected = {wanted.path for wanted in self._waiting}
        replaced = {path for wanted in self._waiting for path in wanted.replaces}
        best = merge(self.best_k_models, found, self.save_top_k, self.mode, expected)
        self._waiting = [wanted for wanted in self._waiting if wanted.is_last or wanted.path in best]
        for item in found:
            if item.path not in {*best, *replaced}:  # beaten, but the process died before it was removed
                on_first_rank(trainer, lambda path=item.path: self._remove(path))  # type: ignore[misc]
        self._ahead = {item.global_step: item.score for item in found if item.is_ahead and item.path in best}
        if {path: float(score) for path, score in best.items()} != {
            path: float(score) for path, score in self.best_k_models.items()
        }:
            self._rank(best)

    def _rank(self, best: dict[str, Tensor]) -> None:
        """As ModelCheckpoint does where it saves."""
        first, last = (min, max) if self.mode == "min" else (max, min)
        worst_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        self.best_k_models = best
        self.best_model_path = first(best, key=lambda path: float(best[path]), default="")
        self.best_model_score = best.get(self.best_model_path)
        is_full = bool(best) and self.save_top_k in (-1, len(best))
        self.kth_best_model_path = last(best, key=lambda path: float(best[path])) if is_full else ""
        self.kth_value = best.get(self.kth_best_model_path, worst_value)


def _is_dry(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _progress_of(trainer: Trainer) -> tuple[int, int, int]:
    loop = trainer.fit_loop
    return (
        trainer.global_step,
        loop.epoch_loop.batch_progress.total.completed,
        loop.epoch_progress.total.completed,
    )


def _say_passed_over(generation: Generation, faults: list[Damage]) -> None:
    rank_zero_warn(f"{generation.name} is passed over: {say(faults)}")
