"""A report of where the time went, as plain values.

Knows nothing about how it was measured, nor where the report goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .actions import CATEGORIES, category_of
from .bottlenecks import Bottleneck
from .clock import Phase
from .kernel import Waits


def timings_of(phases: Mapping[str, Phase], wall_s: float) -> dict[str, dict[str, float]]:
    """By name: calls looked at, their seconds with and without phases within them, percentiles of a call."""
    return {name: _timing(phase, wall_s) for name, phase in sorted(phases.items())}


def _timing(phase: Phase, wall_s: float) -> dict[str, float]:
    sketch = phase.durations
    return {
        "count": sketch.count,
        "total_s": sketch.total_s,
        "self_s": phase.seconds,
        "mean_s": sketch.total_s / sketch.count if sketch.count else 0.0,
        **{f"p{percent}_s": sketch.percentile(percent) for percent in (50, 90, 99)},
        "share": phase.seconds / wall_s if wall_s else 0.0,
    }


def shares_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Of all the time by category; they add up to 1, or are all 0 where nothing was measured."""
    whole = sum(seconds.values()) or 1.0
    shares = dict.fromkeys(CATEGORIES, 0.0)
    for name, value in seconds.items():
        category = category_of(name)
        shares[category] = shares.get(category, 0.0) + value / whole
    return shares


def resources_of(waits: Waits, wall_s: float) -> dict[str, float]:
    """What the kernel counted, and as shares of the time."""
    wall = wall_s or 1.0
    named = {name: float(value) for name, value in waits._asdict().items()}
    shares = {
        "cpu_cores": waits.cpu_s / wall,
        "throttled_share": waits.throttled_s / wall,
        "memory_stalled_share": waits.memory_stalled_s / wall,
        "io_stalled_share": waits.io_stalled_s / wall,
        "queued_share": waits.queued_s / wall,
    }
    return named | shares


def as_dicts(bottlenecks: Sequence[Bottleneck]) -> list[dict[str, Any]]:
    return [each.as_dict() for each in bottlenecks]


def write_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Replace a file; readers see all of the old report or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, path)
    return path
