"""Where the time of a run goes: act, env step, add, sample, transfer, update, priorities, logging, loop.

Knows nothing about what the phases do. A run without this callback does not pay for it: as training starts it
puts a clock around the methods that the module says are phases, and as it ends takes the clocks away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from holdfast.timing.clock import PhaseClock
from holdfast.timing.clocked import ClockedMethods
from lightning.pytorch import Callback, LightningModule, Trainer

REST = "Lightning's loop, callbacks, saves"


class PhaseTimer(Callback):
    """Seconds by phase, each without those of phases within it; together they are the run's wall time.

    ``perdqn fit --trainer.callbacks+=perdqn.phases.PhaseTimer`` prints the table at the end. A clock costs
    about 1 us a call, which the phase around it is charged with.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._clock = PhaseClock(clock)
        self._methods = ClockedMethods(self._clock)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase."""
        return {_detail(name): phase.seconds for name, phase in self._clock.totals().items()}

    @property
    def calls(self) -> dict[str, int]:
        """By phase."""
        return {_detail(name): phase.durations.count for name, phase in self._clock.totals().items()}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._methods:
            self._begin(pl_module)

    def _begin(self, module: Any) -> None:
        self._methods.put(module.timed_methods())
        self._methods.around(module.experience, "_open", self._time_actor)
        self._clock.enter(REST)

    def _time_actor(self, open_: Callable[[], Any]) -> Any:
        actor = open_()
        self._methods.put(actor.timed_methods())
        return actor

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.enter("validation/evaluation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.charge()
        pl_module.print(self.table())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._methods.take_away()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._methods.take_away()

    def table(self) -> str:
        """Phases, most seconds first: share of the time, seconds, calls, microseconds a call."""
        total = sum(self.seconds.values()) or 1.0
        calls = self.calls
        lines = [f"{'where the time went':<42} {'share':>6} {'s':>9} {'calls':>11} {'us a call':>10}"]
        for phase, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            each = f"{1e6 * seconds / calls[phase]:,.1f}" if calls[phase] else ""
            lines.append(
                f"{phase:<42} {seconds / total:>6.1%} {seconds:>9.2f} {calls[phase]:>11,} {each:>10}"
            )
        return "\n".join(lines)


def _detail(phase: str) -> str:
    return phase.rpartition("/")[2]
