"""Readers are asked when they are due, dear ones seldom, and those that fail not for a while."""

from __future__ import annotations

from holdfast.resources.sampler import Sampler


class Reader:
    def __init__(self, name: str, every_s: float = 1.0, cost_s: float = 0.0) -> None:
        self.name, self.every_s, self.cost_s = name, every_s, cost_s
        self.asked_at: list[float] = []
        self.error: Exception | None = None
        self.spent = 0.0

    def read(self, now: float) -> dict[str, float]:
        self.asked_at.append(now)
        self.spent += self.cost_s
        if self.error is not None:
            raise self.error
        return {self.name: now}


def sample(readers: list[Reader], seconds: int) -> tuple[dict[str, float], list[str]]:
    notes: list[str] = []
    sampler = Sampler(readers, notes.append, lambda: sum(reader.spent for reader in readers))
    figures = [sampler.sample(float(now)) for now in range(seconds)]
    return figures[-1], notes


def test_each_is_asked_as_often_as_it_wants_and_keeps_its_newest_figure():
    fast, slow = Reader("fast"), Reader("slow", every_s=10.0)
    assert sample([fast, slow], 25) == ({"fast": 24.0, "slow": 20.0}, [])
    assert slow.asked_at == [0, 10, 20]


def test_a_dear_one_takes_a_thousandth_of_the_time_at_most():
    dear = Reader("dear", cost_s=0.02)
    sample([dear], 100)
    assert dear.asked_at == [0, 20, 40, 60, 80]


def test_one_that_fails_is_named_left_out_and_asked_again_a_minute_later():
    good, bad = Reader("good"), Reader("bad")
    bad.error = OSError("gone")
    figures, notes = sample([bad, good], 61)
    assert figures == {"good": 60.0}
    assert bad.asked_at == [0, 60]
    assert notes[0] == "Reader cannot be read: OSError('gone')"
