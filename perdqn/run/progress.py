"""One line that says how training goes: a bar in a terminal, plain lines elsewhere.

Knows nothing about training beyond a budget, two counters and the newest metrics.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from perdqn.run.summary import format_evaluation, format_seconds, get_evaluation

SHOWN = {
    "return": ("rollout/return_mean", "{:,.1f}"),
    "length": ("rollout/length_mean", "{:,.0f}"),
    "epsilon": ("rollout/epsilon", "{:.2f}"),
    "loss": ("train/loss", "{:.3g}"),
}
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} {remaining} left{postfix}"


class RunProgress(ProgressBar):
    """Progress of one run towards its budget, in env steps or episodes.

    Args:
        refresh_seconds: least time between two refreshes of a bar.
        line_seconds: least time between two lines where ``file`` is no terminal.
        file: where to write; None is standard output.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        refresh_seconds: float = 0.2,
        line_seconds: float = 10.0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._file = sys.stdout if file is None else file
        self._is_terminal = self._file.isatty()
        self._period = refresh_seconds if self._is_terminal else line_seconds
        self._clock = clock
        self.is_enabled = True
        self._due_at = float("inf")
        self._bar: tqdm | None = None
        self._rate = Rate()

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def print(self, *args: Any, sep: str = " ", **_: Any) -> None:
        """A line of its own, above the bar where there is one."""
        line = sep.join(map(str, args))
        if self._bar is not None:
            self._bar.write(line, file=self._file)
        elif self.is_enabled:
            print(line, file=self._file, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate = Rate(self._clock(), get_done(pl_module)[0])
        self._due_at = self._clock() + self._period
        if self.is_enabled and self._is_terminal:
            done, total, unit = get_done(pl_module)
            self._bar = self._make_bar(BAR, total=total, initial=done, unit=unit)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._clock() >= self._due_at:
            self._show(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if getattr(pl_module, "is_evaluation_aborted", False):
                return
            evaluation = get_evaluation(trainer.callback_metrics, "eval")
            steps = f"{getattr(pl_module, 'env_steps', 0):,} env steps"
            self.print(f"evaluation at {steps}: {format_evaluation(evaluation)}")
        else:
            self._close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(pl_module)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._start_evaluation("evaluation", trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation("final evaluation", trainer.num_test_batches)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._bar is not None and trainer.state.fn != "fit":
            self._bar.update()

    def on_test_batch_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def _start_evaluation(self, name: str, num_batches: list[int | float]) -> None:
        if self.is_enabled and self._is_terminal:
            self._bar = self._make_bar("{desc} {bar}", total=sum(num_batches), desc=name)

    def _make_bar(self, bar_format: str, **settings: Any) -> tqdm:
        return tqdm(file=self._file, dynamic_ncols=True, leave=False, bar_format=bar_format, **settings)

    def _show(self, module: LightningModule) -> None:
        done, total, unit = get_done(module)
        now = self._clock()
        self._due_at = now + self._period
        self._rate.update(now, done)
        text = get_text(getattr(module, "latest", {}), self._rate.per_second, unit)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
            self._bar.refresh()
        elif self.is_enabled and not self._is_terminal:
            left = self._rate.get_seconds_left(done, total)
            self.print(f"{done:,}/{total:,} {unit} ({done / max(total, 1):.0%}) {left} left, {text}")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Rate:
    """Smoothed units per second."""

    def __init__(self, now: float = 0.0, done: int = 0, weight: float = 0.3) -> None:
        self.per_second = 0.0
        self._now, self._done, self._weight = now, done, weight

    def update(self, now: float, done: int) -> None:
        if now > self._now:
            newest = (done - self._done) / (now - self._now)
            weight = self._weight if self.per_second else 1.0
            self.per_second += weight * (newest - self.per_second)
            self._now, self._done = now, done

    def get_seconds_left(self, done: int, total: int) -> str:
        return format_seconds(max(total - done, 0) / self.per_second) if self.per_second else "?"


def get_done(module: Any) -> tuple[int, int, str]:
    """Units done, their budget, and their name."""
    if module.config.total_env_steps is not None:
        return module.env_steps, module.config.total_env_steps, "env steps"
    return module.episodes, module.config.total_episodes, "episodes"


def get_text(latest: Mapping[str, float], per_second: float, unit: str) -> str:
    """The metrics a person watches; those not yet known are left out."""
    parts = [f"{name} {form.format(latest[key])}" for name, (key, form) in SHOWN.items() if key in latest]
    return ", ".join([*parts, f"{per_second:,.0f} {unit}/s"])
