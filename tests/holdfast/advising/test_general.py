"""General rules on windows made for them, and on those of a run that goes well."""

import math
import random
from collections.abc import Callable

import pytest
from holdfast.advising.advice import Advice
from holdfast.advising.general import general_rules
from holdfast.advising.signals import Signals

Figures = dict[str, Callable[[int], float]]
NOISE = random.Random(0)
SETTINGS = {"model.lr": 1e-3, "trainer.gradient_clip_val": None, "data.batch_size": 32, "data.num_workers": 0}

HEALTHY: Figures = {
    "loss": lambda t: 2 * math.exp(-t / 20) + 0.1 + NOISE.gauss(0, 0.02),
    "val_loss": lambda t: 2 * math.exp(-t / 20) + 0.12 + NOISE.gauss(0, 0.005),
    "loss_start": lambda t: 2.0,
    "grad_norm": lambda t: math.exp(-t / 30) * (1 + NOISE.random()),
    "grad_norm_start": lambda t: 1.5,
    "grad_depth_ratio": lambda t: 0.5,
    "update_ratio": lambda t: 0.01 * math.exp(-t / 30) + 1e-3,
    "weight_norm": lambda t: 5 + t / 100,
    "learning_rate": lambda t: 1e-3,
    "dead_units": lambda t: 0.1,
    "non_finite": lambda t: 0.0,
    "clipped": lambda t: 0.0,
    "gradient_noise_scale": lambda t: 100.0,
    "time/phase_data": lambda t: 0.05,
    "resource/rss_bytes": lambda t: 1e9 + NOISE.gauss(0, 1e6),
}
FAULTS: dict[str, Figures] = {
    "not_finite": {"non_finite": lambda t: float(t > 75)},
    "loss_diverging": {"loss": lambda t: 0.2 + t / 50 + NOISE.gauss(0, 0.05)},
    "loss_above_start": {"loss": lambda t: 4 + NOISE.gauss(0, 0.05)},
    "updates_too_large": {"update_ratio": lambda t: 0.08, "loss": lambda t: 1 + NOISE.gauss(0, 0.05)},
    "first_updates_too_large": {"update_ratio": lambda t: 0.9 if t == 0 else 1e-3},
    "updates_too_small": {"update_ratio": lambda t: 1e-6, "loss": lambda t: 2 + NOISE.gauss(0, 0.05)},
    "loss_spikes": {"loss": lambda t: 9.0 if t % 16 == 5 else 1 + NOISE.gauss(0, 0.02)},
    "grad_norm_tails": {"grad_norm": lambda t: 60.0 if t % 16 == 5 else 1 + NOISE.random()},
    "gradients_explode": {
        "grad_norm": lambda t: math.exp(t / 15),
        "loss": lambda t: 1 + NOISE.gauss(0, 0.1),
    },
    "gradients_explode_towards_the_input": {"grad_depth_ratio": lambda t: 1e5},
    "gradients_vanish": {"grad_depth_ratio": lambda t: 1e-6},
    "overfitting": {"val_loss": lambda t: 1 + t / 40},
    "weights_grow": {"weight_norm": lambda t: 1 + t},
    "dead_units": {"dead_units": lambda t: 0.8},
    "batch_too_small": {"gradient_noise_scale": lambda t: 1e4},
    "data_starves": {"time/phase_data": lambda t: 0.6},
    "memory_rises": {"resource/rss_bytes": lambda t: 1e9 * (1 + t / 50)},
}


def advice_for(figures: Figures, num: int = 80, **settings: object) -> dict[str, Advice]:
    NOISE.seed(1)
    signals = Signals({**SETTINGS, **settings}, length=128)
    for step in range(num):
        signals.add(step, {name: figure(step) for name, figure in {**HEALTHY, **figures}.items()})
    found = [advice for rule in general_rules() if (advice := rule.check(signals)) is not None]
    return {advice.rule: advice for advice in found}


def test_nothing_is_said_of_a_run_that_goes_well() -> None:
    for num in (1, 5, 20, 40, 80):
        assert advice_for({}, num) == {}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_named(name: str) -> None:
    advice = advice_for(FAULTS[name])[name]
    assert "{" not in advice.message
    assert all(isinstance(value, float) for value in advice.evidence.values())
    for change in advice.changes:
        assert change.setting in SETTINGS
        assert change.proposed != change.value


def test_clipping_that_never_ends_is_named() -> None:
    figures: Figures = {"clipped": lambda t: 1.0}
    assert "mostly_clipped" in advice_for(figures, **{"trainer.gradient_clip_val": 0.01})


def test_a_learning_rate_that_a_schedule_has_lowered_is_not_called_too_low() -> None:
    low = {**FAULTS["updates_too_small"], "learning_rate": lambda t: 1e-5}
    assert advice_for(low) == {}


def test_data_in_order_matter_where_the_loss_jumps() -> None:
    assert advice_for({}, **{"data.shuffle": False})["not_shuffled"].priority == "low"
    jumps = advice_for(FAULTS["loss_spikes"], **{"data.shuffle": False})
    assert jumps["not_shuffled"].priority == "high"


def test_every_rule_has_a_fault_here() -> None:
    assert {rule.name for rule in general_rules()} == {*FAULTS, "mostly_clipped", "not_shuffled"}


def test_waiting_for_data_has_its_speed_up_by_amdahl() -> None:
    assert advice_for(FAULTS["data_starves"])["data_starves"].gain == pytest.approx(2.5)
