"""Gathered runs as one page of HTML that asks nobody for anything.

Knows nothing about run folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdqn.reporting.charts import choose_charts, draw_bars, draw_curves, draw_histogram
from perdqn.reporting.headline import get_answers, standing_alerts
from perdqn.run.summary import format_seconds

SECTIONS = {
    "learning": "Learning",
    "replay": "Replay",
    "health": "Health of the networks",
    "speed": "Speed",
    "resource": "Resources",
    "other": "Other figures",
}


def render(runs: Sequence[Mapping[str, Any]]) -> str:
    """A page of one run, or of several side by side.

    Args:
        runs: each as `gather` gives it.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("perdqn.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plain=_plain, bytes=_as_bytes, percent=_as_percent)
    named = name_runs(runs)
    return environment.get_template("page.html.j2").render(
        runs=[{**run, **_extras(run), "label": label} for label, run in named.items()],
        sections=_draw_sections(named),
        differing=list_differing(named),
    )


def name_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Runs by name, by path where two have one name."""
    names = [run["name"] for run in runs]
    return {run["path"] if names.count(run["name"]) > 1 else run["name"]: run for run in runs}


def list_differing(runs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Settings that are not the same in all runs, with each run's value."""
    if len(runs) < 2:
        return []
    names = dict.fromkeys(name for run in runs.values() for name in run["settings"])
    rows = [(name, [run["settings"].get(name) for run in runs.values()]) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _extras(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "answers": get_answers(run),
        "standing_alerts": standing_alerts(list(run["alerts"])),
        "phase_chart": draw_bars(run["phases"]) if run["phases"] else None,
        "replay_charts": _draw_replay(run["replay"]),
        "foretold": list_foretold(run),
    }


def list_foretold(run: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What the pre-flight said, a line a resource: how much, of how much, and what it has come to."""
    said = run["preflight"]
    if not said:
        return []
    room, seconds = said["room"], run["summary"].get("seconds")
    saved = [save["bytes"] for save in run["saves"] if save["is_resumable"]]
    rows = [
        (name, f"at most {_as_bytes(sum(said[name].values()))}", f"{_as_bytes(room[name])} free", "")
        for name in ("memory", "disk")
    ]
    newest = _as_bytes(saved[-1]) if saved else ""
    rows.append(("a checkpoint, the replay full", _as_bytes(said["checkpoint_bytes"]), "", newest))
    if said["save_s"] is not None:
        rows.append(("a save", f"{said['save_s']:.2g} s", "", ""))
    if said["training_s"] is not None:
        low, expected, high = map(format_seconds, said["training_s"])
        so_far = "" if seconds is None else format_seconds(seconds)
        rows.append(("training", f"{expected} ({low} to {high})", "", so_far))
    return rows


def _draw_sections(runs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[Any, str]]]]:
    curves = {label: {**run["resources"], **run["curves"]} for label, run in runs.items()}
    tags = list(dict.fromkeys(tag for each in curves.values() for tag in each))
    drawn = [(chart, svg) for chart in choose_charts(tags) if (svg := draw_curves(chart, curves)) is not None]
    by_section = [(title, [one for one in drawn if one[0].section == key]) for key, title in SECTIONS.items()]
    return [(title, charts) for title, charts in by_section if charts]


def _draw_replay(replay: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Titles, units and drawings."""
    if "missing" in replay:
        return []
    found = []
    for key, what, is_log in (("ages", "age", False), ("priorities", "priority", True)):
        edges = replay[key]["edges"]
        unit = "env steps since" if key == "ages" else "|TD error|"
        found.append((f"Rows by {what}", unit, draw_histogram(edges, replay[key]["rows"], is_log)))
        if (drawn := replay[key]["draws_per_row"]) is not None:
            found.append((f"Draws a row by {what}", unit, draw_histogram(edges, drawn, is_log)))
    return found


def _plain(value: Any) -> str:
    """A value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return str(value)


def _as_percent(share: float | None) -> str:
    return "not recorded" if share is None else f"{100 * share:.3g} %"


def _as_bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    return ""
