"""Short versions of the harnesses of docs/reliability.md, which has the long ones' figures.

Knows nothing about how a harness breaks what it breaks.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import corruption
import crash
import full_disk
import kill_sweep
import overhead
import power_cut
import pytest
import syscalls

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(crash.why_unavailable() is not None, reason=str(crash.why_unavailable()))
@pytest.mark.timeout(300)
def test_no_call_of_a_save_or_a_resume_is_a_bad_moment_to_die() -> None:
    figures = syscalls.sweep(stride=5)
    assert figures["save"] > 20
    assert figures["resume"] > 10
    assert figures["save harmed"] == figures["resume harmed"] == 0


def test_damaged_files_are_never_loaded() -> None:
    figures = corruption.sweep(number_of_flips=60)
    assert figures["truncations"] > 20
    assert figures["truncations_let_through"] == figures["bit_flips_let_through"] == 0


@pytest.mark.skipif(full_disk.why_unavailable() is not None, reason=str(full_disk.why_unavailable()))
def test_a_full_disk_harms_nothing_older_and_saving_heals_itself() -> None:
    seen = full_disk.fill_once(random.Random(0))
    assert seen["while full"] >= seen["before"] >= 0
    assert seen["steps"] == 60
    assert seen["after"] > seen["while full"]


@pytest.mark.skipif(power_cut.why_unavailable() is not None, reason=str(power_cut.why_unavailable()))
def test_what_was_called_saved_survives_a_power_cut() -> None:
    acknowledged, found = power_cut.cut_once("verified", random.Random(0))
    assert found >= acknowledged >= 0


@pytest.mark.timeout(300)
def test_killed_runs_end_as_the_one_nobody_killed() -> None:
    kill_sweep.import_everything()
    outcomes = kill_sweep.sweep("cartpole", runs=2)
    assert any(outcome.killed_in for outcome in outcomes)
    assert not [outcome.differences for outcome in outcomes if outcome.differences]


@pytest.mark.timeout(300)
def test_signals_tear_no_save_and_end_with_the_right_exit_code() -> None:
    command = [sys.executable, BENCHMARKS / "reliability" / "signals.py", "--count", "7"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False
    )  # its forks end as programs do
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["trials"] == 7
    assert summary["double"] > 0
    assert summary["faulty"] == 0


def test_what_the_callbacks_cost_is_measured_with_them_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    turns = overhead.CASES["tiny"](4)
    figures = overhead.judge(turns)
    assert figures["pairs"] == 4
    assert figures["bare_us"] > 0
    assert turns.saves
