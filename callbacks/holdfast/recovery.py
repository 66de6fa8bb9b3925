"""ErrorRecovery: what is not worth ending a run for does not end it, and is told.

Knows nothing about what is trained, nor how a checkpoint is written.
"""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from .around import around
from .attempts import Attempts, are_finite, is_out_of_memory
from .boundary import BoundaryCallback, StopRun
from .flaky_loggers import LoggerGuard
from .learning_rates import scale_learning_rates
from .resources.release import free_memory
from .saving.save import run_of
from .storage.generations import Generation, GenerationFolder

_MOST_RECORDS = 1_000  # in `history`; the counts go on
_SHARE_WINDOW = 100  # losses over which the share of skipped ones is taken
_MEDIAN_EVERY, _MEDIAN_OF = 50, 500  # losses
_SEEN = ("draws", "moving", "next_look")  # of what batches change
Condition = Callable[[Trainer, LightningModule], str | None]


class Diverged(RuntimeError):
    """Training diverged, and going back did not help or was not possible."""


class _GoBack(StopRun):
    """Ends the loops, for them to begin again from a checkpoint."""


class ErrorRecovery(BoundaryCallback):
    """Non-critical errors do not end a run. What it did is in `history`, the log, the metrics and `status`.

    - **A batch whose loss is not finite** is left out: weights, optimiser, buffers, torch's random streams
      and aggregated `self.log` values stay as if it had not been there. Lightning's counters
      and schedulers count it. In manual optimisation the rest of the training step is left out with it;
      optimiser steps that were taken before in the same training step stay.
    - **A run that diverged** goes back to the newest sound generation from before: more than
      ``max_skipped`` losses in a row or ``max_skipped_share`` of the last 100 left out, weights not finite,
      losses above ``spike_factor`` times their running median ``spike_losses`` times in a row, or what
      ``is_diverged`` says. It would diverge again, bit for bit, so the learning rate is lowered by
      ``lr_factor``; with 1, the losses that led there are left out instead: 8 the first time, then 16, and
      so on. After ``max_rollbacks``, `Diverged` is raised. The decision is a function of the checkpoint's
      state, so that a run that is killed and resumed decides the same.
    - **Out of memory**: caches are freed (``release_memory()`` of the module, its data and callbacks;
      Python's and CUDA's) and the batch is tried again from where it began. Where that is not exact, since
      the optimiser has stepped, gradients were accumulated or a ``dataloader_iter`` was read, training goes
      back to the newest generation instead. Draws from python's and numpy's global streams inside the
      training step are not taken back; torch's are.
    - **A logger that fails** is silenced with one warning and comes back when it works. Its rows wait in
      memory.

    Metrics ``recovery/...`` are logged when they change, against the module's ``log_step`` where it has one.

    Args:
        max_skipped: losses left out in a row before the run counts as diverged.
        max_skipped_share: of the last 100, before it does.
        max_rollbacks: in the whole run, resumed or not.
        lr_factor: for every learning rate, at each rollback; 1 leaves them alone.
        spike_factor: None for no such condition.
        is_diverged: asked at every boundary; returns the reason, or None.
        folder: of generations; None: that of VerifiedCheckpoint.
        check_gradients: look at gradients, too, before each step: one pass over them, and 10 us. Without,
            a finite loss with other gradients shows at the next loss, and the run goes back.
        oom_retries: of one batch.
        logger_retry_seconds: until a silenced logger is tried again; doubles up to 5 minutes.
        max_waiting_rows: of a silenced logger.
    """

    recovers_from_non_finite = True  # EmergencyCheckpoint leaves it to us, and acts on what we raise

    def __init__(
        self,
        max_skipped: int = 10,
        max_skipped_share: float = 0.5,
        max_rollbacks: int = 3,
        lr_factor: float = 0.5,
        spike_factor: float | None = None,
        spike_losses: int = 50,
        is_diverged: Condition | None = None,
        folder: str | Path | None = None,
        check_gradients: bool = False,
        oom_retries: int = 2,
        logger_retry_seconds: float = 10.0,
        max_waiting_rows: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_range("max_skipped", max_skipped, 1, math.inf, "use 10")
        _check_range("max_skipped_share", max_skipped_share, 0.01, 1, "use 0.5")
        _check_range("max_rollbacks", max_rollbacks, 0, math.inf, "use 3, or 0 to stop instead")
        _check_range("lr_factor", lr_factor, 1e-6, 1, "use 0.5, or 1 to leave the learning rate alone")
        if spike_factor is not None:
            _check_range("spike_factor", spike_factor, 1, math.inf, "use 10, or None for no such condition")
        _check_range("spike_losses", spike_losses, 1, math.inf, "use 50")
        _check_range("oom_retries", oom_retries, 0, math.inf, "use 2")
        _check_range("logger_retry_seconds", logger_retry_seconds, 0.001, math.inf, "use 10")
        _check_range("max_waiting_rows", max_waiting_rows, 1, math.inf, "use 10000")
        self.max_skipped, self.max_skipped_share = max_skipped, max_skipped_share
        self.max_rollbacks, self.lr_factor = max_rollbacks, lr_factor
        self.spike_factor, self.spike_losses, self.is_diverged = spike_factor, spike_losses, is_diverged
        self.folder = None if folder is None else GenerationFolder(folder)
        self.history: list[dict[str, Any]] = []
        self.counts = {"skipped_batches": 0, "rollbacks": 0, "oom_retries": 0, "logger_failures": 0}
        self.lr_scale = 1.0
        self._check_gradients, self._oom_retries = check_gradients, oom_retries
        self._guard_settings = (logger_retry_seconds, max_waiting_rows)
        self._clock = clock
        self._trainer: Any = None
        self._attempts: Attempts | None = None
        self._guards: list[LoggerGuard] = []
        self._skipped: deque[int] = deque(maxlen=_SHARE_WINDOW)  # numbers of the losses
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._median = math.inf
        self._num_spikes = 0
        self._bad_since = 0  # global step at which the present trouble began
        self._verdict: str | None = None
        self._has_changed = False
        self._is_going_back = False
        self._loaded: dict[str, Any] = {}

    # -- what it did -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Counts, and the newest records, for a summary."""
        lost = sum(guard.num_lost for guard in self._guards)
        return {**self.counts, "rows_lost": lost, "lr_scale": self.lr_scale, "history": self.history[-20:]}

    def _record(self, what: str, why: str, decision: str, is_warning: bool = False) -> None:
        trainer = self._trainer
        when = {"global_step": trainer.global_step, "epoch": trainer.current_epoch}
        self.history.append({"what": what, **when, "why": why, "decision": decision})
        del self.history[:-_MOST_RECORDS]
        self._has_changed = True
        tell = rank_zero_warn if is_warning else rank_zero_info
        tell(f"step {trainer.global_step}: {what}: {why}; {decision}")

    def _log_counts(self) -> None:
        self._has_changed = False
        loop = self._trainer.fit_loop.epoch_loop
        step = getattr(self._trainer.lightning_module, "log_step", loop._batches_that_stepped)
        for logger in self._trainer.loggers:
            logger.log_metrics({f"recovery/{name}": float(n) for name, n in self.counts.items()}, step=step)

    # -- a fit -----------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self._attempts is not None:
            return
        if self._trainer is not trainer:
            around(trainer.fit_loop, "run", self._run)
        self._trainer = trainer
        on_loss = self._note_loss if self.spike_factor else None
        self._attempts = Attempts(
            trainer, self._check_gradients, self._oom_retries, self._note_skip, self._note_retry, on_loss
        )
        self._attempts.install()
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if not any(guard.logger is logger for guard in self._guards):
                self._guards.append(self._guard(logger))
                self._guards[-1].install()

    def _guard(self, logger: Any) -> LoggerGuard:
        name = type(logger).__name__

        def on_failure(why: str) -> None:
            self.counts["logger_failures"] += 1
            self._record(f"{name} failed", why, "its rows wait until it works again", is_warning=True)

        def on_return(seconds: float, num_written: int, num_lost: int) -> None:
            rows = f"{num_written} rows were written, {num_lost} lost"
            what = f"{name} works again" if num_written else f"{name} did not come back"
            self._record(what, f"after {seconds:.0f} s", rows, is_warning=not num_written)

        return LoggerGuard(logger, *self._guard_settings, on_failure, on_return, self._clock)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._attempts is not None
        self._attempts.find_buffers()
        for guard in self._guards:
            guard.flush()  # a resume has cut the files

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._verdict is None and self.is_diverged is not None:
            self._verdict = self.is_diverged(trainer, pl_module)
            self._begin_trouble(is_new=self._verdict is not None)
        if self._has_changed:
            self._log_counts()
        if self._verdict is not None:
            raise _GoBack(self._verdict)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._attempts is not None and stage == "fit":
            self._attempts.remove()
            self._attempts = None  # loggers stay guarded: they are closed after this, and used by a test

    # -- what is left out ------------------------------------------------------------------------

    def _note_skip(self, why: str) -> None:
        assert self._attempts is not None
        number = self._attempts.num_losses
        window = self._trainer.accumulate_grad_batches  # gradients are looked at once in it
        is_next = bool(self._skipped) and number - self._skipped[-1] <= window
        self._in_a_row = self._in_a_row + 1 if is_next else 1
        self._skipped.append(number)
        self._begin_trouble(is_new=not is_next)
        self.counts["skipped_batches"] += 1
        self._record(
            "batch left out", why, f"{self._in_a_row} in a row, {self.counts['skipped_batches']} in all"
        )
        if why.startswith("left out"):
            return
        recent = sum(1 for skipped in self._skipped if skipped > number - _SHARE_WINDOW)
        if not self._attempts.has_finite_state():
            self._verdict = "weights or buffers are not finite"
        elif self._in_a_row > self.max_skipped:
            self._verdict = f"{self._in_a_row} batches in a row were not finite"
        elif recent > self.max_skipped_share * _SHARE_WINDOW:
            self._verdict = f"{recent} of the last {_SHARE_WINDOW} batches were not finite"

    def _note_loss(self, loss: float) -> None:
        """One that is finite, where spikes count."""
        assert self._attempts is not None
        assert self.spike_factor is not None
        self._losses.append(loss)
        if self._attempts.num_losses % _MEDIAN_EVERY == 0:
            self._median = statistics.median(self._losses)
        if loss <= self.spike_factor * self._median:
            self._num_spikes = 0
            return
        self._begin_trouble(is_new=self._num_spikes == 0)
        self._num_spikes += 1
        if self._num_spikes >= self.spike_losses:
            factor = f"{self.spike_factor:g} times their median {self._median:.3g}"
            self._verdict = f"{self._num_spikes} losses in a row above {factor}"

    def _begin_trouble(self, is_new: bool = True) -> None:
        if is_new:
            self._bad_since = self._trainer.global_step

    def _note_retry(self, why: str) -> None:
        self.counts["oom_retries"] += 1
        self._record(
            "out of memory", why.splitlines()[0] if why else "", "caches freed, the batch is tried again"
        )

    # -- going back ------------------------------------------------------------------------------

    def _run(self, run: Callable[[], None]) -> None:
        """Around Lightning's whole training: it begins again from a checkpoint as a resumed process does."""
        while True:
            try:
                return run()
            except _GoBack as wish:
                why, cause = str(wish), None
            except Exception as error:
                if self._attempts is None or not is_out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)
                why, cause = f"out of memory: {error}".splitlines()[0], error
            self._go_back(why, cause)

    def _go_back(self, why: str, out_of_memory: Exception | None) -> None:
        trainer = self._trainer
        if self.counts["rollbacks"] >= self.max_rollbacks:
            self._give_up(f"{why}, after {self.counts['rollbacks']} rollbacks", out_of_memory)
        # a step was taken on what went wrong: what was saved at that step has it
        before = trainer.global_step + 1 if out_of_memory is not None else max(self._bad_since, 1)
        free_memory(trainer)
        leave_out = self._losses_that_led_here() if out_of_memory is None and self.lr_factor == 1 else None
        generation = self._choose(before, leave_out)
        if generation is None:
            self._give_up(f"{why}, and there is no sound checkpoint from before step {before}", out_of_memory)
        assert generation is not None
        self.counts["rollbacks"] += 1
        decision = f"back to {generation.name} of step {generation.counters.get('global_step')}"
        if out_of_memory is None:
            decision += f", {self._differ(leave_out)}"
        self._record("rollback", why, decision, is_warning=True)
        self._restore(generation)

    def _give_up(self, why: str, out_of_memory: Exception | None) -> None:
        self._record("gave up", why, "the run ends", is_warning=True)
        if out_of_memory is not None:
            raise out_of_memory
        raise Diverged(
            f"training diverged: {why}; lower the learning rate, clip gradients, or raise max_rollbacks "
            f"({self.max_rollbacks}) of ErrorRecovery"
        )

    def _losses_that_led_here(self) -> tuple[int, int]:
        assert self._attempts is not None
        last, num_bad = self._attempts.num_losses, max(self._in_a_row, self._num_spikes)
        return max(1, last - num_bad + 1 - 8 * 2 ** self.counts["rollbacks"]), last

    def _differ(self, leave_out: tuple[int, int] | None) -> str:
        assert self._attempts is not None
        if leave_out is None:
            self.lr_scale *= self.lr_factor
            return f"with {self.lr_scale:g} times the learning rate"
        self._attempts.leave_out.append(leave_out)
        return f"leaving out losses {leave_out[0]} to {leave_out[1]}"

    def _choose(self, before_step: int, leave_out: tuple[int, int] | None) -> Generation | None:
        """The newest sound one; where losses are left out, from before them if there is one."""
        oldest = None
        for generation, num_losses in self._sound(before_step):
            oldest = generation
            if leave_out is None or num_losses < leave_out[0]:
                break
        return oldest

    def _sound(self, before_step: int) -> Iterator[tuple[Generation, int]]:
        """Valid generations from before a step whose weights are finite, and the losses seen until then."""
        folder = self.folder or next((c.folder for c in self._trainer.callbacks if _has_folder(c)), None)
        tried: set[int] = set()

        def is_wanted(generation: Generation) -> bool:
            is_before = generation.counters.get("global_step", 0) < before_step
            is_ours = run_of(self._trainer).owns(generation)
            return generation.is_resumable and is_ours and is_before and generation.sequence not in tried

        def pass_over(generation: Generation, faults: Any) -> None:
            if generation.sequence not in tried:
                self._record("damaged checkpoint", f"{generation.name}: {faults[0].reason}", "passed over")
            tried.add(generation.sequence)

        while folder is not None:
            found = folder.newest_valid(pass_over, is_wanted)
            if found is None:
                return
            tried.add(found.sequence)
            saved = torch.load(found.checkpoint, map_location="cpu", weights_only=True)
            if are_finite(value for value in saved["state_dict"].values() if isinstance(value, torch.Tensor)):
                yield found, saved["callbacks"].get(self.state_key, {}).get("num_losses", 0)

    def _restore(self, generation: Generation) -> None:
        """As `Trainer.fit(ckpt_path=...)` does, between its setup and its loops."""
        trainer, loop = self._trainer, self._trainer.fit_loop
        connector, logged = trainer._checkpoint_connector, trainer._logger_connector
        loop.teardown()
        loop._combined_loader = loop.epoch_loop.val_loop._combined_loader = None
        trainer.training, trainer.should_stop = True, False
        super().setup(trainer, trainer.lightning_module, "fit")
        chosen, connector._ckpt_path = connector._ckpt_path, str(generation.checkpoint)
        self._is_going_back, self._verdict, self._loaded = True, None, {}
        try:
            connector._restore_modules_and_callbacks(generation.checkpoint, weights_only=True)
            logged.reset_results()
            logged.reset_metrics()
            connector.restore_training_state()
            connector.resume_end()
        finally:
            self._is_going_back, connector._ckpt_path = False, chosen
        trainer.lightning_module.zero_grad()
        scale_learning_rates(trainer, self.lr_scale / self._loaded.get("lr_scale", 1.0))

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was decided, and what the next decision depends on."""
        return {
            "version": 1,
            "counts": dict(self.counts),
            "history": [dict(record) for record in self.history],
            "lr_scale": self.lr_scale,
            "leave_out": list(self._attempts.leave_out) if self._attempts else [],
            "num_losses": self._attempts.num_losses if self._attempts else 0,
            **({name: getattr(self._attempts, name) for name in _SEEN} if self._attempts else {}),
            "skipped": list(self._skipped),
            "in_a_row": self._in_a_row,
            "losses": list(self._losses),
            "median": self._median,
            "num_spikes": self._num_spikes,
            "bad_since": self._bad_since,
            "verdict": self._verdict,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """On resume everything; going back, only where training stood: what was decided stays."""
        self._loaded = state
        self._skipped.clear()
        self._skipped.extend(state["skipped"])
        self._losses.clear()
        self._losses.extend(state["losses"])
        self._in_a_row, self._num_spikes = state["in_a_row"], state["num_spikes"]
        self._median, self._bad_since = state["median"], state["bad_since"]
        self._verdict = None if self._is_going_back else state.get("verdict")
        if self._attempts is not None:
            self._attempts.num_losses = state["num_losses"]
            for name in state.keys() & set(_SEEN):
                setattr(self._attempts, name, state[name])
        if self._is_going_back:
            return
        self.counts |= state["counts"]
        self.history = [dict(record) for record in state["history"]]
        self.lr_scale = state["lr_scale"]
        if self._attempts is not None:
            self._attempts.leave_out = [(first, last) for first, last in state["leave_out"]]


def _has_folder(callback: Any) -> bool:
    return isinstance(getattr(callback, "folder", None), GenerationFolder) and callback.folder is not None


def _check_range(name: str, value: float, low: float, high: float, remedy: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value}; {remedy}")
