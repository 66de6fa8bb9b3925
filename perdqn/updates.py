"""`Updates`: a run's gradient steps, eager ones through Lightning or compiled ones that pass it by.

Knows nothing about replay, environments or when an update is owed.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from perdqn.backend import COMPILES, GOES_ON, NOT_COMPILED, STARTS, choose_backend, obstacle
from perdqn.config import ConfigError
from perdqn.learning.objective import Report, eager_report, objective
from perdqn.transition import TransitionBatch

if TYPE_CHECKING:
    from perdqn.module import PERDQN


class Updates:
    """Steps of a module's online network by its own optimiser.

    Args:
        module: its ``update_watch``, where one is set, hears of the updates that do not pass Lightning.

    Attributes:
        backend: ``eager`` or ``compiled``, what the run began with; None before it has begun.
    """

    def __init__(self, module: PERDQN) -> None:
        self._module = module
        self.backend: str | None = None
        self._compiled: Any = None  # a CompiledStep

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one inside Lightning's."""
        return cast(LightningOptimizer, self._module.optimizers()).optimizer

    def choose_backend(self, batch: TransitionBatch) -> None:
        """Once training starts: compile, or load what was compiled, where that is wished and can be had.

        Args:
            batch: one with the shapes and dtypes of all that will come, where the networks are.

        Raises:
            ConfigError: a new run shall be compiled by its settings, and cannot be.
        """
        module = self._module
        learner, before = module.config.learner, self.backend
        self.backend = choose_backend(module.config, before)
        self._compiled = None
        if self.backend == "eager":
            return
        from perdqn.learning.compiled import CompiledStep, NotCompilable  # brings in torch's compiler

        try:
            if (why := obstacle(module.trainer)) is not None:
                raise NotCompilable(why)
            self._compiled = CompiledStep(
                module.online,
                module.target,
                self.optimizer,
                batch,
                learner.double,
                learner.max_grad_norm,
                module.trainer.precision_plugin.forward_context,
                learner.act_ahead,
                lambda: module.print(COMPILES),
            )
        except NotCompilable as error:
            if learner.backend == "compiled" and before is None:
                raise ConfigError([NOT_COMPILED.format(why=error)]) from error
            self.backend = "eager"
            warnings.warn((GOES_ON if before else STARTS).format(why=error), UserWarning, stacklevel=2)

    def open_group(self) -> None:
        """Before some updates."""
        if self._compiled is not None:
            self._compiled.begin()

    def close_group(self) -> None:
        """After them: Lightning counts optimiser steps, so it is told of those it did not see."""
        if self._compiled is None:
            return
        num_steps = self._compiled.end()
        progress = self._module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += num_steps
            tracker.completed += num_steps

    def start(self, batch: TransitionBatch) -> Any:
        """Begin a compiled update, for `finish`.

        Returns:
            None where updates are eager, or this one must be seen by those who stand around
            `manual_backward`.
        """
        watch = self._module.update_watch
        if self._compiled is None or (watch is not None and watch.must_see_next()):
            return None
        return self._compiled.start(batch)

    def finish(self, started: Any, batch: TransitionBatch) -> Report:
        """The update that was started; an eager one where none was, or its loss was not finite."""
        report = None if started is None else self._compiled.finish(started)
        if report is None:
            return self._step_eagerly(batch)
        if self._module.update_watch is not None:
            self._module.update_watch.note_loss(report.loss)
        return cast(Report, report)

    def _step_eagerly(self, batch: TransitionBatch) -> Report:
        """Through Lightning, so that precision, hooks and holdfast's ErrorRecovery have their part in it."""
        module, learner = self._module, self._module.config.learner
        self.close_group()
        if self._compiled is not None and module.update_watch is not None:
            module.update_watch.mark()
        optimizer = cast(LightningOptimizer, module.optimizers())
        learned = objective(module.online, module.target, batch, learner.double)
        optimizer.zero_grad()
        module.manual_backward(learned.loss)
        parameters = self.optimizer.param_groups[0]["params"]
        max_norm = learner.max_grad_norm
        norm = None if max_norm is None else nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        self.open_group()
        return eager_report(learned, parameters, norm)

    def timed_methods(self) -> list[tuple[Any, str, str]]:
        """Part of holdfast's `TellsItsPhases`."""
        module = self._module
        whole = "forward/forward, backward, optimiser as one graph"
        compiled = [
            (self._compiled, "start", whole),
            (self._compiled, "finish", "forward/waiting for the graph"),
        ]
        return [
            *(compiled if self._compiled is not None else ()),
            (self, "_step_eagerly", "forward/forward"),
            (module, "manual_backward", "backward/backward"),
            (module.trainer.strategy, "optimizer_step", "optimiser/optimiser"),
        ]
