"""When a quantity that is measured over and over reaches its limit, with an interval.

Knows nothing about what the quantity is. `triggers.growth` asks whether something grows right now, within
seconds; here the course of minutes to days is told apart into levels, lines, saturation and saw-teeth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .history import Series
from .pieces import Floats, Pieces, in_pieces, noise_of, penalty

COVERAGE = 0.9
_FEWEST = 12  # samples
_NUM_TOPS = 24  # stretches of an envelope
_TOOTH = 0.1  # of a saw-tooth's height: so much higher may the next one be
_FARTHEST = 30.0  # times what was seen: nothing farther away is foretold
_NUM_DRAWS = 600
_BLOCKS = (1, 10, 100)  # samples of which the highest reaches the limit first
_WANDERING = 0.03  # relative: the rate of what is to come is never quite that of the past
_TIME_CONSTANTS = np.geomspace(0.15, 3.0, 9)  # of saturation, in lengths of what is seen of it
_NUM_STRETCHES = 16  # of the newer half of a run
_QUANTILE = 1.75  # of Student's t with 15 degrees of freedom, for 90 %
_NEVER = float("inf")


class Forecast(NamedTuple):
    """When the limit is reached, in seconds from the newest sample; infinite: not to be foreseen.

    Attributes:
        seconds: median of what is to be expected.
        low_s, high_s: ends of the 90 % interval.
        shape: ``flat``, ``growing``, ``saturating``, ``saw-teeth`` or ``unknown``.
    """

    seconds: float
    low_s: float
    high_s: float
    shape: str


UNKNOWN = Forecast(_NEVER, _NEVER, _NEVER, "unknown")


def time_to_limit(series: Series, limit: float, resolution: float) -> Forecast:
    """Fit the course of a quantity, and follow it to ``limit``.

    The course is cut into straight pieces, so that a step, or what began a minute ago, is no part of a trend.
    Levels, lines and saturations through the newest pieces are weighed by their likelihood (BIC, the pieces
    before them included), and futures are drawn from all of them. Where the course has come back from a
    higher level than it is at now, as saw-teeth do, the envelope of its peaks is followed instead.

    Args:
        limit: in the figure's unit.
        resolution: changes smaller than this are of no interest.
    """
    times, values, peaks, sizes = series
    if len(times) < _FEWEST or not limit > 0:
        return UNKNOWN
    noise = noise_of(values, sizes, resolution)
    pieces = in_pieces(times, values, noise)
    least = 6 * float(noise[-1])
    survived = _survived(values, peaks, least)
    if pieces.fitted[-1] <= survived + least + _TOOTH * (survived - values.min()):
        return _along(*_envelope(times, peaks), limit, resolution)
    return _continued(times, values, peaks, noise, pieces, limit)


def _survived(values: Floats, peaks: Floats, least: float) -> float:
    """The highest level that the course has come back from; -inf where it never fell."""
    before = np.maximum.accumulate(peaks)[:-1]
    fallen = before - values[1:] > least
    return float(before[fallen].max(initial=-_NEVER))


def _envelope(times: Floats, peaks: Floats) -> tuple[Floats, Floats]:
    """The highest peak of each of so many equal stretches of time; the last is not over, and left out."""
    stretch = np.floor((times - times[0]) / (times[-1] - times[0]) * _NUM_TOPS).astype(int)
    found = [number for number in np.unique(stretch) if number < _NUM_TOPS - 1]
    chosen = [np.flatnonzero(stretch == number) for number in found]
    highest = [part[peaks[part].argmax()] for part in chosen]
    return times[highest], peaks[highest]


def _along(times: Floats, tops: Floats, limit: float, resolution: float) -> Forecast:
    """Follow the envelope of saw-teeth."""
    never = Forecast(_NEVER, _NEVER, _NEVER, "saw-teeth")
    if len(times) < _FEWEST:
        return never
    noise = noise_of(tops, np.ones(len(tops)), resolution)
    pieces = in_pieces(times, tops, noise)
    if pieces.fitted[-1] <= _survived(tops, tops, 6 * float(noise[-1])):
        return never
    return _continued(times, tops, tops, noise, pieces, limit)._replace(shape="saw-teeth")


def _room(limit: float, left: Floats) -> Floats:
    """How high the course may go so that the highest of the next few samples stays below, for each draw."""
    draw = np.random.default_rng(1)
    highest = [draw.choice(left, (_NUM_DRAWS // len(_BLOCKS), block)).max(axis=1) for block in _BLOCKS]
    return limit - np.concatenate(highest)


def _continued(
    times: Floats, values: Floats, peaks: Floats, noise: Floats, pieces: Pieces, limit: float
) -> Forecast:
    models = []
    for start, cost in zip(pieces.starts[-6:], pieces.costs[-6:], strict=True):
        if len(times) - start < 5:
            continue
        part = slice(start, None)
        span = times[-1] - times[start]
        for tau in (None, 0.0, *(_TIME_CONSTANTS * span)):
            if (model := _fit(times[part], values[part], noise[part], cost, tau)) is not None:
                models.append(model)
    newest = slice(min(pieces.starts[-1], len(times) - _FEWEST), None)
    room = _room(limit, (peaks - pieces.fitted)[newest])
    return _draw(models, times[-1], room, None) if models else UNKNOWN


class _Model(NamedTuple):
    """A level (tau None), a line (0), or a saturation with time constant tau, from ``begin`` on.

    Attributes:
        cost: -2 log likelihood of all points, penalties included.
        mean, spread: of its coefficients, and the factor of their standard normal draws.
    """

    begin: float
    tau: float | None
    cost: float
    mean: Floats
    spread: Floats

    @property
    def shape(self) -> str:
        return "flat" if self.tau is None else "saturating" if self.tau else "growing"

    def crossing(self, coefficients: Floats, room: Floats, farthest: float) -> Floats:
        """Seconds after ``begin`` at which each draw [draws, coefficients] reaches ``room``."""
        level = coefficients[:, 0]
        if self.tau is None:
            return np.where(level >= room, 0.0, _NEVER)
        rise = coefficients[:, 1]
        with np.errstate(all="ignore"):
            share = (room - level) / rise  # of farthest, or of the whole rise
            after = share if self.tau == 0 else -self.tau / farthest * np.log1p(-share)
        rises = (rise > 0) & (share >= 0) & np.isfinite(after)
        return np.where(level >= room, 0.0, np.where(rises, after * farthest, _NEVER))


def _basis(t: Floats, tau: float | None, scale: float) -> Floats:
    ones = np.ones_like(t)
    if tau is None:
        return ones[:, None]
    return np.stack([ones, t / scale if tau == 0 else -np.expm1(-t / tau)], axis=1)


def _fit(times: Floats, values: Floats, noise: Floats, cost: float, tau: float | None) -> _Model | None:
    """Weighted least squares; what is left over widens the coefficients' spread, and the more it lingers."""
    t = times - times[0]
    scale = max(float(t[-1]), 1e-9)
    design = _basis(t, tau, scale) / noise[:, None]
    target = values / noise
    mean, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    if rank < design.shape[1]:
        return None
    left = target - design @ mean
    freedom = max(1, len(t) - design.shape[1])
    total = float(left @ left)
    widening = max(1.0, total / freedom) * _lingering(left)
    spread = np.linalg.cholesky(widening * np.linalg.inv(design.T @ design))
    num_parameters = design.shape[1] + (tau is not None and tau > 0)
    cost = cost + total + penalty(len(t)) / 2 * num_parameters
    return _Model(float(times[0]), tau, cost, mean.astype(np.float64), spread.astype(np.float64))


def _lingering(left: Floats) -> float:
    """By how much a mean's variance is larger than of independent errors, from neighbours' correlation."""
    correlation = float(left[1:] @ left[:-1]) / max(float(left @ left), 1e-300)
    correlation = min(0.95, max(0.0, correlation))
    return (1 + correlation) / (1 - correlation)


def _draw(models: list[_Model], now: float, room: Floats, shape: str | None) -> Forecast:
    """Futures of all models, as many of each as it is likely."""
    costs = np.array([model.cost for model in models])
    likelihood = np.exp(-(costs - costs.min()) / 2)
    counts = np.floor(_NUM_DRAWS * likelihood / likelihood.sum() + 0.5).astype(int)
    draw = np.random.default_rng(0)  # of its own: no random stream of the training moves
    found = []
    for model, count in zip(models, counts, strict=True):
        if count:
            normal = draw.standard_normal((count, len(model.mean)))
            chances = model.mean + normal @ model.spread.T
            chances[:, 1:] *= 1 + _WANDERING * draw.standard_normal((count, 1))
            seen = max(now - model.begin, 1e-9)
            after = model.crossing(chances, draw.choice(room, count), seen)
            after = np.where(after > (1 + _FARTHEST) * seen, _NEVER, after)
            found.append(np.maximum(0.0, after - seen))
    seconds = np.sort(np.concatenate(found))
    low, middle, high = (
        float(seconds[int(q * (len(seconds) - 1))]) for q in ((1 - COVERAGE) / 2, 0.5, (1 + COVERAGE) / 2)
    )
    return Forecast(middle, low, high, shape or models[int(costs.argmin())].shape)


def time_to_end(series: Series) -> Forecast:
    """When a share of the work done reaches 1, from its rate in the newer half of the time, pauses included.

    The rate is the mean over stretches of equal length; how much they differ, and how long a difference
    lasts, makes the interval.
    """
    times, done = series.times, series.means
    if len(times) < _FEWEST or done[-1] <= done[0]:
        return UNKNOWN
    edges = np.linspace((times[0] + times[-1]) / 2, times[-1], _NUM_STRETCHES + 1)
    rates = np.diff(np.interp(edges, times, done)) / np.diff(edges)
    rate, left = float(rates.mean()), rates - rates.mean()
    error = float(rates.std(ddof=1)) * np.sqrt(_lingering(left) / _NUM_STRETCHES)
    margin = _QUANTILE * float(np.hypot(error, _WANDERING * rate))
    left_over = max(0.0, 1 - float(done[-1]))
    middle, low, high = (
        left_over / each if each > 0 else _NEVER for each in (rate, rate + margin, rate - margin)
    )
    return Forecast(middle, low, high, "growing")
