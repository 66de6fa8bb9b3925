"""Where the time of a run goes: act, env step, add, sample, transfer, update, priorities, logging, loop.

Knows nothing about what the phases do. A run without this callback does not pay for it: as training starts it
puts a clock around the methods that are the phases, and as it ends takes the clocks away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

REST = "Lightning's loop, callbacks, saves"


class PhaseTimer(Callback):
    """Seconds by phase, each without those of phases within it; together they are the run's wall time.

    ``perdqn fit --trainer.callbacks+=perdqn.phases.PhaseTimer`` prints the table at the end. A clock costs
    about 0.5 us a call, which the phase around it is charged with.

    Attributes:
        seconds: by phase.
        calls: by phase.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._clock = clock
        self._phases: list[str] = []
        self._since = 0.0
        self._removals: list[Callable[[], None]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._removals:
            self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, module: Any) -> None:
        experience, memory = module.experience, module.memory
        if module.backend == "compiled":
            self._place(module._compiled, "start", "forward, backward, optimiser as one graph")
            self._place(module._compiled, "finish", "waiting for the graph")
        for owner, name, phase in (
            (module, "training_step", "groups of updates"),
            (experience, "fetch", "what is owed"),
            (experience, "_policy", "act"),
            (memory, "add", "add"),
            (memory, "sample", "sample"),
            (memory, "update_priorities", "priority update"),
            (module, "to_device", "transfer"),
            (module, "_update", "one update's own"),
            (module, "_act_ahead", "acting ahead"),
            (module, "_step_eagerly", "forward"),
            (module, "manual_backward", "backward"),
            (trainer.strategy, "optimizer_step", "optimiser"),
            (module, "_update_target", "target network"),
            (module, "_log", "logging"),
        ):
            self._place(owner, name, phase)
        self._around(experience, "_open", self._time_environments)
        self._phases, self._since = [REST], self._clock()

    def _time_environments(self, open_: Callable[[], Any]) -> Any:
        actor = open_()
        self._place(actor.environments, "step", "env step")
        self._place(actor.environments, "reset", "env reset")
        return actor

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("evaluation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._charge()
        pl_module.print(self.table())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        while self._removals:
            self._removals.pop()()

    def table(self) -> str:
        """Phases, most seconds first: share of the time, seconds, calls, microseconds a call."""
        total = sum(self.seconds.values()) or 1.0
        lines = [f"{'where the time went':<42} {'share':>6} {'s':>9} {'calls':>11} {'us a call':>10}"]
        for phase, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            calls = self.calls.get(phase, 0)
            each = f"{1e6 * seconds / calls:,.1f}" if calls else ""
            lines.append(f"{phase:<42} {seconds / total:>6.1%} {seconds:>9.2f} {calls:>11,} {each:>10}")
        return "\n".join(lines)

    def _place(self, owner: Any, name: str, phase: str) -> None:
        def timed(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self._enter(phase)
            try:
                return method(*args, **kwargs)
            finally:
                self._leave()

        self._around(owner, name, timed)

    def _around(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        own = vars(owner).get(name)
        setattr(owner, name, partial(around, getattr(owner, name)))
        put_back = partial(delattr, owner, name) if own is None else partial(setattr, owner, name, own)
        self._removals.append(put_back)

    def _enter(self, phase: str) -> None:
        self._charge()
        self._phases.append(phase)
        self.calls[phase] = self.calls.get(phase, 0) + 1

    def _leave(self) -> None:
        self._charge()
        self._phases.pop()

    def _charge(self) -> None:
        now, phase = self._clock(), self._phases[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now
