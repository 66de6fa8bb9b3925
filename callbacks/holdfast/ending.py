"""How Lightning ends a run, arranged so that nothing hides why it ends, and that SLURM starts it again.

Knows nothing about saving.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from .storage.durable import link
from .triggers import Signals
from .triggers.slurm import Ask, job_of, requeue


def isolate_end(trainer: Trainer) -> None:
    """What Lightning calls next for an exception must not put another in its place."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        _isolate(callback, "on_exception")
    for logger in trainer.loggers:
        _isolate(logger, "finalize")
    _isolate(trainer.datamodule, "on_exception")  # type: ignore[attr-defined]


def outlast_signals(trainer: Trainer, signals: Signals) -> None:
    """A second signal while the process ends must not change its exit code; Lightning resets handlers."""
    trainer._signal_connector._original_handlers.update(signals.linger())  # type: ignore[attr-defined]


def requeue_signal(trainer: Trainer) -> str | None:
    """The signal upon which Lightning would save and queue a SLURM job again; None elsewhere."""
    environment = trainer._accelerator_connector.cluster_environment  # type: ignore[attr-defined]
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal.name if environment.requeue_signal else None


def requeue_job(trainer: Trainer, checkpoint: Path | None, ask: Ask) -> str:
    """What Lightning's handler of that signal does beside saving, in a sentence.

    Args:
        checkpoint: shown to Lightning under the name it resumes from in a job that was queued again.
    """
    if checkpoint is not None:
        path = Path(trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.symlink_to(checkpoint.resolve())
        except OSError:
            link(checkpoint, path)
    if (job := job_of(os.environ)) is None:
        return "SLURM's number of this job is unknown, so it is not queued again"
    return f"SLURM job {job} {'is queued again' if requeue(job, ask) else 'could not be queued again'}"


def _isolate(owner: Any, name: str) -> None:
    """The next call of a method, and only that, ends in a warning where it would raise."""
    if (method := getattr(owner, name, None)) is None:
        return
    before = vars(owner).get(name)

    def once(*args: Any, **kwargs: Any) -> Any:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
        try:
            return method(*args, **kwargs)
        except Exception as error:
            rank_zero_warn(f"{type(owner).__name__}.{name} failed while the run was ending: {error!r}")

    setattr(owner, name, once)
