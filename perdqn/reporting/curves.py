"""The scalars that a run logged to TensorBoard, as arrays by tag.

Knows nothing about what a tag means.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

Event = tuple[str, int, float, float]  # tag, step, value, wall time


class Curve(NamedTuple):
    """One tag's scalars, by growing step.

    Attributes:
        steps: int64 [n].
        values: float64 [n]; may be nan or infinite.
        times: seconds since 1970, float64 [n].
    """

    steps: np.ndarray
    values: np.ndarray
    times: np.ndarray


def read_curves(folder: Path) -> dict[str, Curve]:
    """All scalars of a run's event files; the end of a file that is being written is left out.

    Where a later file begins before an earlier one ends, the run went back there: what the earlier one
    has beyond that step is left out, whatever its tag.
    """
    sittings = [events for path in find_event_files(folder) if (events := list(_read(path)))]
    return _to_curves(merge(sittings))


def find_event_files(folder: Path) -> list[Path]:
    """Oldest first: their names begin with the second they were made in."""
    return sorted(folder.glob("events.out.tfevents.*"), key=lambda path: (path.name.split(".")[3], path.name))


def merge(sittings: list[list[Event]]) -> list[Event]:
    """What is left of each once the later ones count."""
    kept: list[Event] = []
    for events in sittings:
        first = min(step for _, step, _, _ in events)
        kept = [event for event in kept if event[1] <= first] + events
    return kept


def _read(path: Path) -> Iterator[Event]:
    # it hands out events as they were written, which takes a third of the time of the loader that converts
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for event in LegacyEventFileLoader(str(path)).Load():
        step, time = event.step, event.wall_time
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            if kind == "simple_value":
                yield value.tag, step, value.simple_value, time
            elif kind == "tensor" and len(value.tensor.float_val) == 1:
                yield value.tag, step, value.tensor.float_val[0], time


def _to_curves(events: list[Event]) -> dict[str, Curve]:
    by_tag: dict[str, dict[int, tuple[float, float]]] = {}
    for tag, step, value, time in events:
        by_tag.setdefault(tag, {})[step] = (value, time)  # the newest of a step counts
    curves = {}
    for tag, points in sorted(by_tag.items()):
        steps = sorted(points)
        values, times = zip(*(points[step] for step in steps), strict=True)
        curves[tag] = Curve(np.array(steps), np.array(values, float), np.array(times))
    return curves


def thin(curve: Curve, num_columns: int = 300) -> Curve:
    """At most two points a column, its lowest and its highest value, so that no spike is lost."""
    num = len(curve.steps)
    if num <= 2 * num_columns:
        return curve
    edges = np.linspace(curve.steps[0], curve.steps[-1], num_columns + 1)
    starts = np.unique(np.searchsorted(curve.steps, edges[:-1]))
    kept: set[int] = {0, num - 1}
    for start, stop in zip(starts, [*starts[1:], num], strict=True):
        part = curve.values[start:stop]
        if not np.isnan(part).all():
            kept |= {int(start + np.nanargmin(part)), int(start + np.nanargmax(part))}
    at = np.array(sorted(kept))
    return Curve(curve.steps[at], curve.values[at], curve.times[at])
