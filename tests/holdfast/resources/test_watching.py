"""One turn of the thread after another, on a clock of the test's own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from holdfast.resources.alerts import Threshold
from holdfast.resources.journal import read_lines
from holdfast.resources.watching import Progress, Watching

GIB = 2**30


class Machine:
    """A reader of what the test says."""

    every_s = 1.0

    def __init__(self, **figures: float) -> None:
        self.figures = figures

    def use(self, used: float, limit: float = 10 * GIB) -> None:
        shares = {"memory_free_share": 1 - used / limit, "memory_share": used / limit}
        sizes = {"memory_used_bytes": used, "memory_free_bytes": limit - used, "memory_limit_bytes": limit}
        self.figures |= {**shares, **sizes}

    def read(self, now: float) -> dict[str, float]:
        return dict(self.figures)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(machine: Machine, folder: Path | None = None, **settings) -> tuple[Watching, Clock]:
    clock = Clock()
    return Watching([machine], folder, clock=clock, wall_clock=lambda: 1e9 + clock.now, **settings), clock


def run(watching: Watching, clock: Clock, seconds: int, each=lambda second: None) -> None:
    for second in range(seconds):
        each(second)
        watching.poll()
        clock.now += 1


def test_lines_are_written_now_and_then_with_time_and_step(tmp_path):
    watching, clock = make(Machine(threads=3), tmp_path)
    watching.progress = Progress(step=70)
    run(watching, clock, 25)
    lines = read_lines(tmp_path / "resources.jsonl")
    assert [line["time"] - 1e9 for line in lines] == [0, 10, 20]
    assert lines[0] == {"time": 1e9, "step": 70, "resource/threads": 3}


def test_a_leak_is_alarming_before_little_is_left_and_asks_for_memory(tmp_path):
    machine = Machine()
    watching, clock = make(machine, tmp_path)
    run(watching, clock, 200, lambda second: machine.use((5 + 0.01 * second) * GIB))
    events = read_lines(tmp_path / "alerts.jsonl")
    assert [(event["kind"], event["state"]) for event in events] == [("memory_forecast", "raised")]
    assert events[0]["figures"]["memory_full_at_latest_s"] < 600
    assert "look for what grows" in events[0]["remedy"]
    assert watching.is_release_due
    assert 250 < watching.newest["memory_full_in_s"] < 350


def test_growth_that_was_announced_is_no_leak():
    machine = Machine()
    watching, clock = make(machine)

    def fill(second: int) -> None:
        machine.use((5 + 0.01 * second) * GIB)
        watching.progress = Progress(memory_to_come_bytes=int((2 - 0.01 * second) * GIB))

    run(watching, clock, 200, fill)
    assert watching.alerts.raised == {}
    assert watching.forecast()["memory"].shape == "flat"


def test_announced_growth_that_will_not_fit_is_known_at_once():
    machine = Machine()
    watching, clock = make(machine)

    def fill(second: int) -> None:
        machine.use((5 + 0.01 * second) * GIB)
        watching.progress = Progress(memory_to_come_bytes=int((8 - 0.01 * second) * GIB))

    run(watching, clock, 60, fill)
    assert [event["kind"] for event in watching.recent] == ["memory_plan", "memory_forecast"]
    assert "13.0 GiB of memory are in use once what was announced is there" in watching.messages[0]
    assert watching.forecast()["memory"].seconds == pytest.approx(440, rel=0.1)  # as it fills


def test_memory_is_asked_for_again_while_it_stays_critical():
    machine = Machine()
    watching, clock = make(machine)
    asked_at = []

    def crowd(second: int) -> None:
        machine.use(9.5 * GIB if second < 130 else 5 * GIB)
        if watching.is_release_due:
            watching.is_release_due = False
            asked_at.append(second)

    run(watching, clock, 200, crowd)
    assert asked_at == [3, 63, 123]
    assert [event["state"] for event in watching.recent] == ["raised", "cleared"]


def test_a_disk_that_fills_is_foretold():
    machine = Machine(disk_size_bytes=100.0 * GIB)
    watching, clock = make(machine)
    run(watching, clock, 150, lambda s: machine.figures.update(disk_free_bytes=(20 - 0.05 * s) * GIB))
    assert [*watching.alerts.raised] == ["disk_forecast"]
    found = watching.forecast()["disk"]
    assert found.low_s <= 20 / 0.05 - 150 <= found.high_s


def test_the_end_of_the_run_is_foretold():
    watching, clock = make(Machine())

    def advance(second: int) -> None:
        watching.progress = Progress(share=second / 1000)

    run(watching, clock, 200, advance)
    assert watching.forecast()["end"].seconds == pytest.approx(800, rel=0.05)
    assert watching.newest["end_in_s"] == pytest.approx(800, rel=0.05)


def test_a_rank_writes_files_of_its_own_and_not_what_its_machine_shares(tmp_path):
    machine = Machine(threads=3)
    machine.use(9.9 * GIB)
    watching, clock = make(machine, tmp_path, who={"rank": 3, "local_rank": 1})
    run(watching, clock, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["resources-rank3.jsonl"]
    (line,) = read_lines(tmp_path / "resources-rank3.jsonl")
    assert line == {"time": 1e9, "step": 0, "rank": 3, "local_rank": 1, "resource/threads": 3}
    assert watching.is_release_due  # of its own memory


def test_the_first_rank_of_another_machine_writes_what_is_of_that_machine(tmp_path):
    machine = Machine()
    machine.use(5 * GIB)
    watching, _ = make(machine, tmp_path, who={"rank": 4, "local_rank": 0})
    watching.poll()
    assert "resource/memory_share" in read_lines(tmp_path / "resources-rank4.jsonl")[0]


def test_alarms_of_ones_own_are_said_with_what_to_do():
    own = Threshold("busy", "threads", 100.0, 50.0, 0.0, "{threads} threads", "use fewer")
    watching, _ = make(Machine(threads=200), thresholds=[own])
    watching.poll()
    assert watching.messages[0] == "200 threads; use fewer"


def test_nothing_that_fails_ends_the_thread():
    ended, polls = threading.Event(), []

    class Broken(Machine):
        def read(self, now: float) -> dict[str, float]:
            polls.append(now)
            if len(polls) > 3:
                ended.set()
            raise MemoryError

    watching = Watching([Broken()], interval_s=0.001, clock=lambda: 100.0 * len(polls))
    watching.start()
    watching.start()
    assert ended.wait(10)
    watching.stop()
    assert threading.active_count() == len([t for t in threading.enumerate() if "resources" not in t.name])
    assert list(watching.messages) == ["Broken cannot be read: MemoryError()"]
