"""The figures a run ends with, and the short table a person reads.

Knows nothing about how a run is stopped or where files lie.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.advising.advice import PRIORITIES

from perdqn.run.advice import read_standing
from perdqn.run.folder import RunFolder

EVALUATION_KEYS = {
    "mean": "return_mean",
    "iqm": "return_iqm",
    "low": "return_low",
    "high": "return_high",
    "length_mean": "length_mean",
}


def get_evaluation(metrics: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    """An evaluation's statistics out of Lightning's metrics, None where one is missing or not finite."""
    return {name: finite(metrics.get(f"{prefix}/{key}")) for name, key in EVALUATION_KEYS.items()}


def finite(value: Any) -> float | None:
    """The number as JSON can hold it, without the digits that float32 makes up."""
    return round(float(value), 4) if value is not None and math.isfinite(float(value)) else None


def get_figures(module: Any, seconds: float, final: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a run did so far.

    Args:
        module: a `PERDQN`.
        seconds: time spent training.
        final: the final evaluation, see `get_evaluation`; None where there was none.
    """
    return {
        "env_steps": module.env_steps,
        "updates": module.update_steps,
        "episodes": module.episodes,
        "seconds": round(seconds, 3),
        "best_evaluation_mean": finite(module.best_evaluation_mean),
        **{f"final_evaluation_{name}": (final or {}).get(name) for name in EVALUATION_KEYS},
    }


def format_table(figures: Mapping[str, Any], run: RunFolder) -> str:
    """The end of a run in a few lines."""
    seconds = figures["seconds"]
    rate = f" ({figures['env_steps'] / seconds:,.0f} env steps/s)" if seconds else ""
    reason = f": {figures['stop_reason']}" if figures.get("stop_reason") else ""
    counts = {"env steps": "env_steps", "updates": "updates", "episodes": "episodes"}
    steps = ", ".join(f"{figures[key]:,} {unit}" for unit, key in counts.items())
    rows = {
        "status": f"{figures['status']}{reason}",
        "steps": steps,
        "time": f"{format_seconds(seconds)}{rate}",
        "best evaluation": _number(figures["best_evaluation_mean"]),
        "final evaluation": format_evaluation(figures, "final_evaluation_"),
        "run": str(run.path),
        "look at it": f"tensorboard --logdir {shlex.quote(str(run.path.parent))}",
        "resume it": get_resume_command(run.path),
    }
    if advised := _count_advice(run):
        rows["improve it"] = f"perdqn advise {shlex.quote(str(run.path))} ({advised})"
    return format_rows(rows)


def _count_advice(run: RunFolder) -> str:
    """How much of what was advised or measured still stands, by priority; the lowest is not worth a line."""
    found = Counter(record["advice"]["priority"] for record in read_standing(run))
    return ", ".join(f"{found[name]} {name}" for name in PRIORITIES[:-1] if found[name])


def format_rows(rows: Mapping[str, Any]) -> str:
    """A line for each, the values below one another."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def format_evaluation(statistics: Mapping[str, Any], prefix: str = "") -> str:
    """Mean, interval and interquartile mean in one line."""
    mean, iqm, low, high = (statistics.get(f"{prefix}{name}") for name in ("mean", "iqm", "low", "high"))
    if mean is None:
        return "none"
    return f"{_number(mean)} (95 % interval {_number(low)} to {_number(high)}, IQM {_number(iqm)})"


def get_resume_command(run: Path) -> str:
    return f"perdqn resume {shlex.quote(str(run))}"


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds, the hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f}"
