"""Time limits: one's own, a wall-clock time, SLURM's."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from holdfast.triggers import Deadline
from holdfast.triggers.slurm import ask_program, end_of, job_of, requeue


def start(run, **settings) -> Deadline:
    trigger = Deadline(**{"environment": {}, **settings})
    trigger.start(run.context)
    return trigger


def test_it_fires_early_enough_for_a_save_as_slow_as_the_slowest(run):
    run.save_seconds = 40.0
    deadline = start(run, max_seconds=1000, factor=2, margin_s=10)
    assert run.watch(deadline, 2000) == pytest.approx(1000 - 90 + 1, abs=1.5)
    assert deadline.fired().is_stopping
    assert "max_seconds=1000" in deadline.fired().message


def test_a_save_that_grew_slower_moves_the_alarm_forward(run):
    deadline = start(run, max_seconds=1000)
    run.wait(500)
    deadline.poll()
    assert deadline.fired() is None
    run.save_seconds = 300
    deadline.poll()
    assert deadline.fired().grace_s == 500


@pytest.mark.parametrize("form", ["text", "number"])
def test_a_wall_clock_time_may_be_text_or_seconds(run, form):
    end = run.today + 100
    until = datetime.fromtimestamp(end).isoformat() if form == "text" else end
    assert run.watch(start(run, until=until, margin_s=8), 200) == pytest.approx(91, abs=1.5)


def test_without_any_limit_it_never_fires(run):
    assert run.watch(start(run), 1000) is None


def test_the_earliest_of_several_ends_counts(run):
    deadline = start(run, max_seconds=500, until=run.today + 100)
    assert deadline.seconds_left().seconds == pytest.approx(100)


def slurm(run, answers: dict[str, str], **variables: str) -> Deadline:
    asked: list[str] = []

    def ask(command):
        asked.append(command[0])
        return answers.get(command[0], "")

    deadline = start(run, environment={"SLURM_JOB_ID": "12", **variables}, ask=ask)
    deadline.asked = asked
    return deadline


def local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat()


def test_slurm_is_asked_through_squeue(run):
    deadline = slurm(run, {"squeue": local(run.today + 300) + "\n"})
    assert run.watch(deadline, 400) == pytest.approx(293, abs=2)
    assert "the SLURM job" in deadline.fired().message


def test_scontrol_answers_where_squeue_does_not(run):
    text = f"JobId=12 StartTime=Unknown EndTime={local(run.today + 300)} Deadline=N/A"
    assert slurm(run, {"squeue": "N/A\n", "scontrol": text}).seconds_left().seconds == pytest.approx(
        300, abs=1
    )


def test_the_jobs_own_variable_serves_where_no_program_answers(run):
    deadline = slurm(run, {}, SLURM_JOB_END_TIME=str(int(run.today) + 300))
    assert deadline.seconds_left().seconds == pytest.approx(300, abs=1)


def test_a_limit_changed_later_is_seen(run):
    answers = {"squeue": local(run.today + 300)}
    deadline = slurm(run, answers)
    deadline.poll()
    answers["squeue"] = local(run.today + 90_000)
    run.wait(100)
    deadline.poll()
    assert deadline.asked == ["squeue"]  # not asked again and again
    run.wait(550)
    deadline.poll()
    assert deadline.seconds_left().seconds > 80_000


def test_a_job_whose_end_is_unknown_is_mentioned_once(run):
    deadline = slurm(run, {"squeue": "N/A", "scontrol": "EndTime=Unknown"})
    run.watch(deadline, 2000)
    assert run.notes == ["SLURM does not say when job 12 ends; set max_seconds to be safe"]


def test_outside_of_slurm_nobody_is_asked(run):
    deadline = slurm(run, {})
    deadline._environment = {"SLURM_JOB_ID": "; rm -rf"}
    deadline.poll()
    assert deadline.asked == []


def test_programs_that_are_missing_or_fail_answer_nothing():
    assert ask_program(["no-such-program-anywhere"]) is None
    assert ask_program(["false"]) is None
    assert end_of("1", {}, lambda _: None) is None


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2"),
        ({"SLURM_JOB_ID": "; rm -rf"}, None),
        ({}, None),
    ],
)
def test_jobs_are_called_as_slurm_calls_them(variables, job):
    assert job_of(variables) == job


def test_a_job_is_queued_again_by_scontrol():
    asked = []
    assert requeue("7_2", lambda command: asked.append(command) or "")
    assert asked == [["scontrol", "requeue", "7_2"]]
    assert not requeue("7", lambda _: None)


@pytest.mark.parametrize("settings", [{"max_seconds": 0}, {"max_seconds": -1}, {"until": "tomorrow"}])
def test_settings_that_are_no_time_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Deadline(**settings)


def test_a_time_with_a_zone_is_that_instant(run):
    at = datetime.fromisoformat("2030-01-01T00:00:00+00:00")
    assert Deadline(until="2030-01-01T01:00:00+01:00").until == at.timestamp()
    assert Deadline(until=(at + timedelta(0)).timestamp()).until == at.timestamp()
