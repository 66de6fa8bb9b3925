"""The clean boundary between two iterations of Lightning's training loop, and the callbacks called there.

Knows nothing about what they do there, nor what a resume restores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from .around import around
from .exact.evaluation import EvaluationAborted
from .exact.logs import restore_log_positions, resume_logging
from .exact.resume import ExactResume

_ATTRIBUTE = "_holdfast_boundary"
_BATCH_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class StopRun(Exception):
    """Raised in `on_boundary` to end the run; every other callback has its turn first."""


class BoundaryCallback(Callback):
    """A callback that is also called where nothing is half done: saves belong there and nowhere else.

    `on_boundary` is called after every iteration of the training loop: the validation that was due is over,
    progress is counted, loggers are saved. Also where an epoch's loop starts (so in warm-up, before the
    first batch, and right after a resume), and at the end of training for what still waits.

    A subclass that overrides `setup`, `on_load_checkpoint` or `on_validation_batch_start` calls `super()`.

    An exception in `on_boundary` becomes a warning and touches no other callback. `SystemExit` and `StopRun`
    end the run once every callback has had its turn; a `SystemExit(n)` becomes the exit code.
    """

    # One that neither saves nor restores: with nobody else, how exactly the run resumes is not worth a word.
    only_watches = False

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Weights, optimiser, counters, data and metrics are of one instant."""

    def idle_hooks(self) -> set[str]:
        """Names of those called for every batch that have nothing to do in this fit: they are not called.

        Lightning spends about 2 us on a hook of a callback, six times a batch, also where it does nothing.
        Asked as each epoch starts.
        """
        return {name for name in _BATCH_HOOKS if getattr(type(self), name) is getattr(Callback, name)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        resume_logging(trainer)  # muted by a resume that never began to train
        if stage == "fit":
            _boundary_of(trainer).begin()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn == TrainerFn.FITTING:
            _boundary_of(trainer).load(checkpoint)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if trainer.state.fn == TrainerFn.FITTING:
            _boundary_of(trainer).exact.evaluation.check()


class _Boundary:
    """Of one trainer: its loops call this where the boundary is."""

    def __init__(self, trainer: Any) -> None:
        self.exact = ExactResume(trainer)
        self.is_open = False
        self.is_evaluation_due = False
        self._has_cycles = False
        self._trainer = trainer
        self._callbacks: list[BoundaryCallback] = []
        self._hidden: list[tuple[BoundaryCallback, str]] = []
        fit_loop = trainer.fit_loop
        around(fit_loop.epoch_loop, "on_run_start", self._start_epoch)
        around(fit_loop.epoch_loop, "on_advance_end", self._end_iteration)
        around(fit_loop, "on_run_end", self._end_run)

    def begin(self) -> None:
        """A fit begins."""
        self.exact.begin()
        self.exact.is_quiet = all(callback.only_watches for callback in self._present)
        self._show_hooks()
        for callback in self._present:  # another trainer's fit may have failed
            for name in _BATCH_HOOKS:
                if vars(callback).get(name, name) is None:
                    delattr(callback, name)

    def _hide_idle_hooks(self) -> None:
        """Lightning calls what is callable."""
        self._show_hooks()
        self._hidden = [(callback, name) for callback in self._present for name in callback.idle_hooks()]
        for callback, name in self._hidden:
            setattr(callback, name, None)

    @property
    def _present(self) -> list[BoundaryCallback]:
        """None while Lightning looks for a learning rate or batch size: it sets callbacks aside then."""
        return [callback for callback in self._trainer.callbacks if isinstance(callback, BoundaryCallback)]

    def _show_hooks(self) -> None:
        while self._hidden:
            callback, name = self._hidden.pop()
            vars(callback).pop(name, None)

    def load(self, checkpoint: dict[str, Any]) -> None:
        """The fit that begins resumes from ``checkpoint``; several callbacks may say so."""
        self.exact.load(checkpoint)
        positions = checkpoint.get("holdfast", {}).pop("logs", None)
        if positions is not None:
            restore_log_positions(self._trainer, positions)

    def _start_epoch(self, on_run_start: Callable[[Any], None], data_fetcher: Any) -> None:
        self.exact.start_epoch(on_run_start, data_fetcher)
        self._hide_idle_hooks()
        idle = BoundaryCallback.on_boundary
        self._callbacks = [callback for callback in self._present if type(callback).on_boundary is not idle]
        self._has_cycles = self.exact.data.has_cycles
        resume_logging(self._trainer)
        self._dispatch()

    def _end_iteration(self, on_advance_end: Callable[[Any], None], data_fetcher: Any) -> None:
        try:
            on_advance_end(data_fetcher)
        except EvaluationAborted:
            self._go_back()
            self._end_iteration(on_advance_end, data_fetcher)  # the run goes on, so it is played now
            return
        if self._has_cycles:
            self.exact.data.note_cycle()
        self._dispatch()

    def _go_back(self) -> None:
        self.exact.evaluation.go_back()
        self.is_evaluation_due = True
        try:
            self._dispatch()
        finally:
            self.is_evaluation_due = False

    def _end_run(self, on_run_end: Callable[[], None]) -> None:
        self.exact.finish()
        resume_logging(self._trainer)
        self._dispatch()  # what the last epoch's end left waiting, before anything changes the weights
        on_run_end()
        self._dispatch()
        self._show_hooks()

    def _dispatch(self) -> None:
        trainer, stop = self._trainer, None
        module = trainer.lightning_module
        self.exact.evaluation.is_abort_requested = False  # this is the boundary it was for
        self.is_open = True
        try:
            for callback in self._callbacks:
                try:
                    callback.on_boundary(trainer, module)
                except (SystemExit, StopRun) as wish:
                    stop = stop or wish
                except Exception as error:
                    rank_zero_warn(
                        f"{type(callback).__name__} failed at a boundary: {error!r}; the run goes on"
                    )
        finally:
            self.is_open = False
        if stop is not None:
            raise stop


def is_at_boundary(trainer: Trainer) -> bool:
    """Whether `on_boundary` is being called."""
    boundary = vars(trainer).get(_ATTRIBUTE)
    return boundary is not None and boundary.is_open


def exact_state(trainer: Trainer) -> dict[str, Any]:
    """What Lightning leaves out of a checkpoint, as plain types; for ``checkpoint["holdfast"]["exact"]``.

    {} anywhere but at a boundary: nothing else could be resumed exactly, and stock Lightning resumes it.
    """
    boundary = _boundary_of(trainer)
    if not boundary.is_open:
        return {}
    try:
        return boundary.exact.capture(boundary.is_evaluation_due)
    except Exception as error:  # better a save that resumes as Lightning's own than none
        rank_zero_warn(f"what an exact resume needs could not be saved: {error!r}")
        return {}


def exactness(trainer: Trainer) -> str:
    """Whether a resumed run ends bit for bit as an uninterrupted one; known from the first boundary on.

    Returns:
        ``bit-exact``, ``bit-exact, provided that ...``, ``not exact: ...``, or nothing if not known yet.
    """
    return _boundary_of(trainer).exact.exactness


def abort_evaluation(trainer: Trainer) -> None:
    """Give up a validation in progress, or the next one: it stays due, and a boundary follows.

    It is finished instead where it has changed weights, and a module with ``abort_evaluation()`` does it its
    own way. Where the run goes on after that boundary, the validation is played whole. Safe in a signal
    handler: it sets a flag.
    """
    own = getattr(trainer.lightning_module, "abort_evaluation", None)
    if callable(own):
        own()
    else:
        _boundary_of(trainer).exact.evaluation.is_abort_requested = True


def _boundary_of(trainer: Trainer) -> _Boundary:
    if _ATTRIBUTE not in vars(trainer):
        setattr(trainer, _ATTRIBUTE, _Boundary(trainer))
    boundary: _Boundary = getattr(trainer, _ATTRIBUTE)
    return boundary
