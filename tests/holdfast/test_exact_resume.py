"""Programs of many kinds, resumed from a boundary, end bit for bit where they end uninterrupted."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import programs
import pytest
from programs import NAMES, Memory, Outcome, Resumed, SaveAt, Trace, build, differences, run

IS_FULL = bool(os.environ.get("HOLDFAST_EVERY_BOUNDARY"))


@pytest.fixture(autouse=True)
def _lightning_says_little() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torchmetrics")
        yield


class Straight:
    """One uninterrupted run, saved at its boundaries on the way."""

    def __init__(self, name: str, folder: Path) -> None:
        self.savers: list[SaveAt] = []
        self.outcome = run(build(name), folder, make_callbacks=lambda *a: self._saver(folder, *a))
        self.saver = self.savers[0]

    def _saver(self, folder: Path, trace: Trace, log: Memory) -> list[Any]:
        self.savers.append(SaveAt(folder, trace, log))
        return list(self.savers)

    def chosen(self) -> list[int]:
        """First and last boundaries of epochs and every third, or all; but not those of the finished run."""
        notes = self.saver.notes[:-2]
        starts = {k for k, note in enumerate(notes) if note.endswith("batch 0")}
        ends = {k - 1 for k in starts - {0}} | {len(notes) - 1}
        picked = sorted(starts | ends | set(range(2, len(notes), 3)))
        return list(range(len(notes))) if IS_FULL else picked[:: max(1, len(picked) // 8)]


def check_resume(name: str, straight: Straight, index: int, folder: Path) -> list[str]:
    path, num_events, num_lines = straight.saver.saved[index]
    resumed = run(build(name), folder, path, lambda trace, log: [Resumed()])
    whole = straight.outcome
    rest = Outcome(whole.state, whole.events[num_events:], whole.lines[num_lines:])
    return differences(vars(rest), vars(resumed))


@pytest.mark.parametrize("name", NAMES)
def test_program_resumed_at_a_boundary_ends_bit_for_bit_as_if_uninterrupted(
    name: str, tmp_path: Path
) -> None:
    straight = Straight(name, tmp_path)
    faults = {}
    for index in straight.chosen() if not IS_FULL else straight.saver.saved:
        if found := check_resume(name, straight, index, tmp_path):
            faults[f"{index} ({straight.saver.notes[index]})"] = found[:6]
    assert not faults, "\n".join(f"boundary {k}: {v}" for k, v in faults.items())


@pytest.mark.parametrize("name", NAMES)
def test_saving_changes_nothing(name: str, tmp_path: Path) -> None:
    plain, saved = run(build(name), tmp_path), Straight(name, tmp_path).outcome
    assert not differences(vars(plain), vars(saved))


def test_programs_are_those_in_the_folder() -> None:
    found = {path.stem for path in Path(programs.__file__).parent.glob("*.py")}
    assert found - {"__init__", "__main__", "regression"} == set(NAMES)
