"""Figures of a long run in bounded memory: every sample of the last minutes, means and peaks before that.

Knows nothing about what the figures mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Series(NamedTuple):
    """One figure over time, oldest first.

    Attributes:
        times: in which it was measured; of means the middle of their time.
        means: of all samples of that time.
        peaks: the largest of them.
        sizes: how many samples each is of; 1 for those of the newest minutes.
    """

    times: Floats
    means: Floats
    peaks: Floats
    sizes: Floats


class History:
    """Samples on several scales of time, each ``factor`` times coarser than the one before.

    With the defaults and a sample a second: 5 minutes in seconds, 40 in steps of 8 s, 5 hours in steps of a
    minute, 2 days in steps of 9 minutes, 2 weeks in steps of an hour.

    Args:
        length: entries kept on each scale.
        factor: samples, or entries of the finer scale, in one entry of the next.
        num_scales: beside the samples themselves.
    """

    def __init__(self, length: int = 300, factor: int = 8, num_scales: int = 4) -> None:
        self._names: dict[str, int] = {}
        self._scales = [_Scale(length, factor) for _ in range(num_scales + 1)]

    def add(self, at: float, figures: Mapping[str, float]) -> None:
        """A sample, ``at`` seconds on a clock that never goes back."""
        for name in figures:
            self._names.setdefault(name, len(self._names))
        row = np.full(len(self._names), np.nan)
        row[[self._names[name] for name in figures]] = list(figures.values())
        entry: _Entry | None = _Entry(at, at, 1, row, row)
        for scale in self._scales:
            if entry is None:
                return
            entry = scale.add(entry)

    @property
    def names(self) -> list[str]:
        return list(self._names)

    @property
    def nbytes(self) -> int:
        return sum(scale.nbytes for scale in self._scales)

    def series(self, name: str, most: int | None = None) -> Series:
        """All that is known of a figure; of each scale what is older than the finer one's.

        Args:
            most: entries of each scale.
        """
        found: list[_Entry] = []
        for scale in self._scales:
            begin = found[0].begin if found else float("inf")
            older = [entry for entry in scale.newest(most) if entry.begin < begin]
            end = older[-1].end if older else float("-inf")  # within what is finer: told by the coarser alone
            found = [*older, *(entry for entry in found if entry.begin > end)]
        column = self._names.get(name)
        rows = [_values(entry, column) for entry in found] if column is not None else []
        rows = [row for row in rows if not np.isnan(row[1])]
        return Series(*np.array(rows, np.float64).reshape(-1, 4).T)


class _Entry(NamedTuple):
    begin: float
    end: float
    size: int
    means: Floats
    peaks: Floats


def _values(entry: _Entry, column: int) -> tuple[float, float, float, float]:
    is_known = column < len(entry.means)
    mean, peak = (entry.means[column], entry.peaks[column]) if is_known else (np.nan, np.nan)
    return (entry.begin + entry.end) / 2, mean, peak, entry.size


class _Scale:
    """A ring of entries, and those of the finer scale that wait to become one."""

    def __init__(self, length: int, factor: int) -> None:
        self._factor = factor
        self._ring: deque[_Entry] = deque(maxlen=length)
        self._waiting: list[_Entry] = []

    @property
    def nbytes(self) -> int:
        return sum(entry.means.nbytes + entry.peaks.nbytes for entry in self._ring)

    def newest(self, most: int | None) -> list[_Entry]:
        return list(self._ring)[-(most or len(self._ring)) :]

    def add(self, entry: _Entry) -> _Entry | None:
        """Keep it; what the next coarser scale gets of it, if that is whole now."""
        self._ring.append(entry)
        self._waiting.append(entry)
        if len(self._waiting) < self._factor:
            return None
        waiting, self._waiting = self._waiting, []
        return _Entry(
            waiting[0].begin,
            waiting[-1].end,
            sum(each.size for each in waiting),
            _over([each.means for each in waiting], np.nanmean),
            _over([each.peaks for each in waiting], np.nanmax),
        )


def _over(rows: list[Floats], reduce: Any) -> Floats:
    """Of each column, over the rows that have it."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    known = ~np.isnan(table).all(axis=0)
    result = np.full(table.shape[1], np.nan)
    result[known] = reduce(table[:, known], axis=0)
    return result
