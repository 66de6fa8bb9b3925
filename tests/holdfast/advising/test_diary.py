"""The diary of advice: bounded to what was saved where a run resumes, and never in the run's way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from holdfast.advising.advice import Advice
from holdfast.advising.diary import Diary

ADVICE = Advice(
    rule="one", priority="low", message="something is the matter", evidence={}, source="by definition"
)


def rules_in(path: Path) -> list[float]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_run_goes_on_behind_what_it_had_written_when_it_was_saved(tmp_path: Path) -> None:
    diary = Diary(tmp_path)
    for step in range(4):
        diary.write(0.0, step, "advised", ADVICE)
    with diary.path.open("a") as file:
        file.write('{"time": 4.0, "st')  # killed as it wrote
    resumed = Diary(tmp_path)
    resumed.begin(2)
    resumed.write(0.0, 9, "withdrawn", ADVICE)
    assert rules_in(resumed.path) == [0, 1, 9]


def test_a_file_that_cannot_be_replaced_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diary = Diary(tmp_path)
    for step in range(4):
        diary.write(0.0, step, "advised", ADVICE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, full)
    Diary(tmp_path).begin(2)
    assert rules_in(diary.path) == [0, 1, 2, 3]
