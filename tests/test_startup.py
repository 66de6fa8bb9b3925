"""A short version of benchmarks/startup.py, whose figures are in docs/performance.md.

Knows nothing about how long anything should take.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import startup


@pytest.mark.timeout(300)
def test_training_is_watched_from_the_start_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = startup.measure("perdqn fit", tmp_path / "kernels")
    assert 0 < seen["begins"] < seen["batch"] < seen["update"]
    assert startup.measure("python -c pass", tmp_path / "kernels").keys() == {"answer"}


def test_differences_are_taken_within_a_round() -> None:
    answers = {case: {"answer": 1.0} for case in startup.ANSWERS}
    rounds = [
        {
            **answers,
            "bare fit": {"begins": slow, "batch": slow, "update": slow + 1},
            "perdqn fit": {"begins": slow + 1, "batch": slow + 2, "update": slow + 3},
            startup.FIRST: {"begins": slow + 1, "batch": slow + extra, "update": slow + 5},
        }
        for slow, extra in ((10, 3), (4, 4), (90, 5))
    ]
    found = startup.judge(rounds)
    differences, constant = found["differences"], {"lowest": 2, "median": 2, "highest": 2}
    assert differences["perdqn fit over bare, batch"] == constant
    assert differences["perdqn fit over bare, update"] == constant
    assert differences[f"{startup.FIRST} over bare, batch"] == {"lowest": 3, "median": 4, "highest": 5}
    assert found["seconds"]["bare fit, begins"] == {"lowest": 4, "median": 10, "highest": 90}
