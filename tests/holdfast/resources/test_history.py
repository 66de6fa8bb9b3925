"""Long runs are kept in bounded memory, the newest in full, the oldest coarsely."""

from __future__ import annotations

import numpy as np
import pytest
from holdfast.resources.history import History


def filled(seconds: int, value=lambda t: float(t), **settings) -> History:
    history = History(**settings)
    for t in range(seconds):
        history.add(float(t), {"a": value(t)})
    return history


def test_the_newest_samples_are_there_one_by_one():
    series = filled(1000, length=100).series("a")
    assert series.times[-93:].tolist() == series.means[-93:].tolist() == [*range(907, 1000)]
    assert (series.sizes[-93:] == 1).all()


def test_before_that_there_are_means_and_peaks_of_equal_stretches():
    series = filled(64, lambda t: t % 8, length=8, factor=8).series("a")
    coarse = series.sizes == 8
    assert series.means[coarse].tolist() == [3.5] * 7
    assert series.peaks[coarse].tolist() == [7] * 7
    assert series.times[coarse].tolist() == [8 * n + 3.5 for n in range(7)]
    assert series.means[~coarse].tolist() == [*range(8)]


@pytest.mark.parametrize("seconds", [7, 63, 500, 5000])
def test_no_time_is_told_twice_and_none_left_out_but_at_the_oldest_end(seconds):
    series = filled(seconds, lambda t: 1.0, length=16, factor=4, num_scales=6).series("a")
    assert (np.diff(series.times) > 0).all()
    ends = series.times + (series.sizes - 1) / 2
    begins = series.times - (series.sizes - 1) / 2
    assert (begins[1:] - ends[:-1] <= 1 + 1e-9).all()
    assert begins[0] == 0


def test_memory_stays_bounded_and_means_are_those_of_all_samples():
    history = filled(1, length=50)
    rng = np.random.default_rng(0)
    for t in range(1, 60_000):
        history.add(float(t), {"a": rng.random(), "b": 2.0})
    assert history.nbytes < 5 * 50 * 2 * 2 * 8 + 1
    series = history.series("a")
    assert series.times[0] < 30_000
    assert np.average(series.means, weights=series.sizes) == pytest.approx(0.5, abs=0.02)


def test_a_figure_that_comes_later_or_goes_has_no_values_where_it_was_not():
    history = History(length=4, factor=2)
    for t in range(20):
        history.add(float(t), {"a": 1.0} if t < 10 else {"b": 5.0})
    assert history.series("a").times.max() < 10
    assert history.series("b").times.min() >= 9.5
    assert history.names == ["a", "b"]
    assert len(history.series("c").times) == 0


def test_fewer_entries_of_each_scale_can_be_had():
    history = filled(5000, length=100, factor=8)
    series = history.series("a", most=10)
    assert 3 <= (series.sizes == 1).sum() <= 10
    assert len(series.times) < 60
    assert (np.diff(series.times) > 0).all()
