"""Short versions of the harnesses in benchmarks/reliability; docs/reliability.md has the long ones' figures.

Knows nothing about how a harness breaks what it breaks.
"""

from __future__ import annotations

import random

import corruption
import crash
import full_disk
import kill_sweep
import power_cut
import pytest
import syscalls


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
