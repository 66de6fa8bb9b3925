"""Leaves a run's settings and figures in its folder, and counts the seconds it trained.

Knows nothing about where a folder lies or what its figures mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from holdfast import BoundaryCallback
from holdfast.storage.durable import write_whole
from lightning.pytorch import LightningModule, Trainer

from perdqn.run.folder import RunFolder


class RunRecord(BoundaryCallback):  # whose idle hooks cost nothing
    """Writes ``config.yaml``, ``config_summary.txt`` and a first ``summary.json`` as training starts.

    Args:
        texts: what to write to files of the run folder, by name.
        figures: gives the first summary, beside a status of ``running``.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folder: RunFolder,
        texts: Mapping[str, str],
        figures: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.texts, self.figures = folder, texts, figures
        self._clock = clock
        self._seconds_before = 0.0
        self._started_at: float | None = None
        self.has_begun = False

    @property
    def seconds(self) -> float:
        """Time spent training, evaluations included, over all sittings that led here."""
        now = self._clock()
        return self._seconds_before + now - (now if self._started_at is None else self._started_at)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By now a checkpoint has been restored, so a run that cannot go on is left as it was."""
        self._started_at = self._clock()
        self.has_begun = True
        if trainer.is_global_zero:
            for name, text in self.texts.items():
                write_whole(self.folder.path / name, text)
            self.folder.write_summary({"status": "running", **self.figures()})

    def stop_clock(self) -> None:
        self._seconds_before, self._started_at = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = float(state_dict["seconds"])
