"""One bounded change at a time, kept or taken back."""

import random
from collections.abc import Callable

import pytest
from holdfast.advising.adapting import Adapter
from holdfast.advising.advice import Advice, Change
from holdfast.advising.rule import Adaptable
from holdfast.advising.signals import Signals


class World:
    """A loss that depends on one setting, and advice to change it."""

    def __init__(self, loss: Callable[[int, float], float], factor: float, low: float = 0.0) -> None:
        self.value, self.loss, self.factor = 1.0, loss, factor
        self.noise, self.step, self.signals = random.Random(0), 0, Signals()
        self.setting = Adaptable(lambda: self.value, self._set, low, 100.0)
        self.adapter = Adapter({"heat": self.setting}, "loss", False, 10)

    def _set(self, value: float) -> None:
        self.value = value

    def go(self, steps: int) -> list[str]:
        """Kinds of events, with the value after each."""
        told = []
        for _ in range(steps):
            self.step += 1
            self.signals.add(self.step, {"loss": self.loss(self.step, self.value) + self.noise.gauss(0, 0.1)})
            is_known = self.step > self.adapter.settled_at + 9
            typed = self.adapter.effective.get("heat", 1.0)
            change = Change("heat", typed, typed * self.factor)
            advice = [Advice("hot", "high", "", {}, "", (change,))] if is_known else []
            for event in self.adapter.decide(self.step, self.signals, advice):
                told.append(f"{event.kind} {self.value:g}")
        return told


def test_what_helps_is_kept_and_repeated_a_few_times() -> None:
    world = World(lambda step, heat: heat, 0.5)
    assert world.go(200) == ["applied 0.5", "applied 0.25", "applied 0.125"]


def test_what_makes_things_worse_is_taken_back_and_never_tried_again() -> None:
    world = World(lambda step, heat: heat, 2.0)
    assert world.go(300) == ["applied 2", "rolled back 1"]


def test_what_changes_nothing_is_kept() -> None:
    # a trial of noise alone is taken back in 1 % by design
    assert World(lambda step, heat: 0.0, 0.5).go(60)[:1] == ["applied 0.5"]
    assert "rolled back 1" not in World(lambda step, heat: 0.0, 0.5).go(60)


def test_a_loss_that_rose_anyway_does_not_speak_against_a_change() -> None:
    def rising(step: int, heat: float) -> float:
        return 0.1 * step if heat == 1 else 0.5 + 0.05 * step

    assert World(rising, 0.5).go(25) == ["applied 0.5"]


def test_a_loss_that_is_not_finite_is_taken_back_at_once() -> None:
    world = World(lambda step, heat: float("inf") if heat > 1 else 1.0, 2.0)
    assert world.go(12) == ["applied 2", "rolled back 1"]


def test_bounds_hold_and_at_a_bound_nothing_is_changed() -> None:
    world = World(lambda step, heat: heat, 0.5, low=0.4)
    assert world.go(100) == ["applied 0.5", "applied 0.4"]


def test_a_schedule_that_moves_the_setting_is_followed_by_factors() -> None:
    world = World(lambda step, heat: abs(heat), 2.0)
    world.go(10)
    assert world.value == 2.0
    world.value = 1.0  # halved by a schedule meanwhile
    world.loss = lambda step, heat: 50.0
    assert world.go(10)[0] == "rolled back 0.5"
    assert world.adapter.effective == {"heat": 1.0}


@pytest.mark.parametrize("stop", range(1, 40, 3))
def test_a_saved_adapter_decides_as_one_that_went_on(stop: int) -> None:
    whole, first, second = (World(lambda step, heat: heat, 2.0) for _ in range(3))
    expected = whole.go(60)
    told = first.go(stop)
    second.noise, second.step = first.noise, first.step
    second.signals.load_state_dict(first.signals.state_dict())
    second.adapter.load_state_dict(first.adapter.state_dict())
    assert second.value == first.value
    assert told + second.go(60 - stop) == expected
