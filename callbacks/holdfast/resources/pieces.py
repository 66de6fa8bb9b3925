"""A series in the fewest straight pieces that explain it.

Knows nothing about what the series is of, nor what follows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FEWEST = 4  # points of a piece
_PENALTY = 4.0  # times log(points), for each piece: two coefficients, a place, and a little for dependence


class Pieces(NamedTuple):
    """A series in straight pieces.

    Attributes:
        starts: index of the first point of each piece.
        costs: of the best pieces for all points before each start, as -2 log likelihood with penalties.
        fitted: the pieces' value at each point.
    """

    starts: list[int]
    costs: list[float]
    fitted: Floats


def penalty(num_points: int) -> float:
    """What one piece more has to gain."""
    return _PENALTY * float(np.log(num_points))


def noise_of(values: Floats, sizes: Floats, floor: float) -> Floats:
    """Standard deviation of each point around a smooth course, by how many samples it is a mean of.

    From second differences over 1, 2 and 4 points, in which straight lines vanish, by their median, which
    jumps do not move. Noise that means do not lessen lingers: points of the next finer scale then say no
    more together than their mean does.
    """
    noise = np.full(len(values), floor)
    coarser, coarser_size = 0.0, 1.0
    for size in np.unique(sizes)[::-1]:
        part = values[sizes == size]
        own = max(
            np.median(np.abs(part[2 * lag :] - 2 * part[lag:-lag] + part[: -2 * lag])) * 1.4826 / np.sqrt(6)
            if len(part) > 4 * lag
            else 0.0
            for lag in (1, 2, 4)
        )
        noise[sizes == size] = max(floor, own, coarser * np.sqrt(coarser_size / size))
        coarser, coarser_size = own, size
    return noise


def in_pieces(times: Floats, values: Floats, noise: Floats) -> Pieces:
    """The partition with the least sum of squares and penalties, exactly, by dynamic programming.

    Source: the optimal partitioning of doi:10.1109/LSP.2001.838216, with lines instead of constants.
    """
    num = len(times)
    t, y, weight = times - times[-1], values - values.mean(), noise**-2.0
    t = t / max(1e-9, -t[0])
    columns = np.array([weight, weight * t, weight * y, weight * t * t, weight * t * y, weight * y * y])
    sums = np.concatenate([np.zeros((6, 1)), columns.cumsum(axis=1)], axis=1)
    best, previous = np.full(num + 1, np.inf), np.zeros(num + 1, int)
    best[0], price = 0.0, penalty(num)
    for end in range(_FEWEST, num + 1):
        w, wt, wy, wtt, wty, wyy = sums[:, end, None] - sums[:, : end - _FEWEST + 1]
        spread = np.maximum(wtt - wt * wt / w, 1e-300)
        slope = (wty - wt * wy / w) / spread
        left = np.maximum(wyy - wy * wy / w - slope * slope * spread, 0.0)
        total = best[: end - _FEWEST + 1] + left + price
        previous[end] = int(total.argmin())
        best[end] = total[previous[end]]
    starts: list[int] = []
    end = num
    while end:
        end = int(previous[end])
        starts.insert(0, end)
    fitted = np.concatenate(
        [_line(times[a:b], values[a:b], weight[a:b]) for a, b in zip(starts, [*starts[1:], num], strict=True)]
    )
    return Pieces(starts, [float(best[start]) for start in starts], fitted)


def _line(times: Floats, values: Floats, weight: Floats) -> Floats:
    t = times - np.average(times, weights=weight)
    slope = (weight * t * values).sum() / max((weight * t * t).sum(), 1e-300)
    line: Floats = np.average(values, weights=weight) + slope * t
    return line
