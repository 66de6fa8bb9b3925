"""Statistics by hand-computed vectors and slow oracles, and the text they are asked for by."""

import itertools
import math
import random

import numpy as np
import pytest
from holdfast.advising.expression import Condition, Expression
from holdfast.advising.signals import Signals
from holdfast.advising.statistics import STATISTICS, noise, rank_sum, slope, spikes, tail, trend
from scipy import stats


def signals_of(**windows: list[float]) -> Signals:
    signals = Signals({"model.lr": 0.1, "trainer.gradient_clip_val": None})
    for name, values in windows.items():
        for step, value in enumerate(values):
            signals.add(step, {name: value})
    return signals


def test_trend_is_that_of_the_textbook() -> None:
    x = np.array([5.0, 1.0, 2.0, 2.0, 7.0, 8.0, 9.0, 9.0, 12.0])
    pairs = itertools.combinations(range(9), 2)
    score = sum(int(np.sign(x[j] - x[i])) for i, j in pairs)
    variance = (9 * 8 * 23 - 2 * (2 * 1 * 9)) / 18  # two ties of two
    assert trend(x) == pytest.approx((score - 1) / math.sqrt(variance))
    assert trend(-x) == pytest.approx(-trend(x))


def test_trend_of_noise_is_seldom_sure() -> None:
    # alpha of Z > 1.96 is 2.5 % on either side; 2,000 windows give 50 +- 4 sigma of 7
    generator = np.random.default_rng(0)
    found = [trend(generator.normal(size=40)) for _ in range(2_000)]
    assert abs(sum(z > 1.96 for z in found) - 50) < 28
    assert math.isnan(trend(np.arange(7.0)))


def test_rank_sum_agrees_with_scipy() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=12), generator.normal(0.8, size=15)
    other = stats.mannwhitneyu(y, x, use_continuity=False, method="asymptotic", alternative="greater")
    assert stats.norm.sf(rank_sum(x, y)) == pytest.approx(other.pvalue)


def test_slope_agrees_with_scipy() -> None:
    x = np.random.default_rng(2).normal(size=30).cumsum()
    assert slope(x) == pytest.approx(stats.theilslopes(x).slope)


def test_noise_is_the_standard_deviation_about_a_slow_trend() -> None:
    x = np.random.default_rng(3).normal(0, 2, 4_000)
    assert noise(x + np.linspace(0, 50, 4_000)) == pytest.approx(2, rel=0.1)


def test_a_spike_is_counted_and_a_decay_is_not() -> None:
    generator = np.random.default_rng(4)
    decay = np.exp(-np.arange(100) / 2) * (1 + 0.01 * generator.normal(size=100)) + 1e-3
    assert tail(decay) < 1.1
    assert spikes(decay) == 0
    calm = generator.normal(size=100)
    assert spikes(calm) == 0
    calm[[10, 40, 70]] += 30
    assert spikes(calm) == pytest.approx(3 / 92)  # the outermost four have nobody beside them
    assert tail(np.abs(calm) + 1) > 10


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_a_constant_or_infinite_window_breaks_no_statistic(name: str) -> None:
    values = random.Random(0).choices([1.0, math.inf], k=20)
    for window in ([1.0], [1.0] * 20, [0.0] * 20, values):
        Expression(f"{name}(x)")(signals_of(x=window))  # warnings are errors


def test_expression_computes_what_it_says() -> None:
    signals = signals_of(**{"train/loss": [1.0, 2.0, 3.0, 10.0]})
    assert Expression("max(train/loss) / median(train/loss)")(signals) == 4.0
    assert Expression("-2 * abs(1 - mean(train/loss, 2)) ** 2")(signals) == -2 * 5.5**2
    assert Expression("share_above(train/loss, 2.5)")(signals) == 0.5
    assert Expression("share_below(train/loss, 5, 2)")(signals) == 0.5
    assert Expression("setting(learning_rate) * value")(signals, value=3.0) == pytest.approx(0.3)
    assert Expression("p90(train/loss)").signals == {"train/loss"}


def test_what_is_not_known_gives_nothing() -> None:
    signals = signals_of(loss=[1.0, 2.0])
    for text in ("median(other)", "setting(gradient_clip_val)", "setting(nothing)", "1 / (max(loss) - 2)"):
        assert Expression(text)(signals) is None
    assert Expression("median(loss)")(signals, least=3) is None
    assert Expression("median(loss, 2)")(signals, least=3) == 1.5  # it asks for two
    assert Expression("value * 2")(signals) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("middle(loss)", "there is no middle"),
        ("loss > 3", "Write newest\\(loss\\)"),
        ("median(loss, few)", "takes numbers"),
        ("share_above(loss)", "a name and a bound"),
        ("median(loss).real", "no place"),
        ("[median(loss)]", "no place"),
        ("'text' * 3", "no place"),
        ("abs(value)(1)", "no place"),
    ],
)
def test_text_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Condition(text) if ">" in text else Expression(text)


def test_condition_shows_both_sides() -> None:
    signals = signals_of(loss=[1.0, 5.0])
    assert Condition("max(loss) > 2 * min(loss)")(signals, 1, None) == {
        "max(loss)": 5.0,
        "max(loss) >": 2.0,
    }
    assert Condition("max(loss) < 5")(signals, 1, None) is None
    with pytest.raises(ValueError, match="compares nothing"):
        Condition("max(loss)")
