"""A run that is only pretended: its clock goes when told to, and what it says is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from holdfast.triggers import Context, Trigger


class Run:
    """What triggers ask about, all of it set by the test."""

    def __init__(self, folder: Path) -> None:
        self.now, self.today = 0.0, 1_700_000_000.0
        self.save_seconds, self.save_bytes, self.is_saving = 1.0, 0, False
        self.notes: list[str] = []
        self.num_alarms = 0
        self.context = Context(
            folder,
            lambda: self.save_seconds,
            lambda: self.save_bytes,
            lambda: self.is_saving,
            lambda text: None if text in self.notes else self.notes.append(text),
            self._alarm,
            lambda: self.now,
            lambda: self.today,
        )

    def _alarm(self) -> None:
        self.num_alarms += 1

    def in_folder(self, folder: Path) -> Context:
        return replace(self.context, folder=folder)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.today += seconds

    def watch(self, trigger: Trigger, seconds: float) -> float | None:
        """Poll as the watching thread would; when it fired, if it did."""
        end = self.now + seconds
        while self.now < end and trigger.fired() is None:
            trigger.poll()
            self.wait(trigger.interval_s)
        return self.now if trigger.fired() is not None else None


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)
