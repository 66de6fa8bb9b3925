"""All that a run's folder says of it, as plain data that JSON can hold.

Knows nothing about pages and charts. What was not recorded is None or empty, never an error: a run may be
going on, have been killed, or come from a version that wrote less.
"""

from __future__ import annotations

import json
import math
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import yaml
from holdfast.storage.generations import Generation, GenerationFolder
from holdfast.storage.lock import holder_of

from perdqn.config import Config
from perdqn.reporting.curves import Curve, find_event_files, read_curves, thin
from perdqn.reporting.replay_view import view_replay
from perdqn.run.advice import read_standing, spell_change
from perdqn.run.folder import RunFolder, read_lines
from perdqn.shipped import find_config, names_in

VERSION = 1  # of what `gather` returns
NEWEST_RATES = 20  # entries of the speed that the time left is reckoned from


def gather(run: RunFolder, now: float | None = None, with_replay: bool = True) -> dict[str, Any]:
    """One run; docs/report.md lists the keys.

    Args:
        now: seconds since 1970, for what is reckoned from a run that goes on.
        with_replay: look into the replay of the newest save, which takes some seconds where it is large.
    """
    now = time.time() if now is None else now
    summary = run.read_summary()
    settings = _read_settings(run)
    curves = read_curves(run.path)
    generations = _get_generations(run)
    status = _get_status(run, summary)
    monitor = run.path / "monitor"
    performance = _read_json(monitor / "performance_report.json")
    return {
        "version": VERSION,
        "name": run.path.name,
        "path": str(run.path),
        "read_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "status": status,
        "summary": summary,
        "progress": _get_progress(status, settings, summary, curves),
        "settings": settings,
        "shipped": (shipped := _get_shipped(summary)),
        "changed_settings": list_changed(settings, shipped),
        "curves": {tag: _as_lists(thin(curve)) for tag, curve in curves.items()},
        "phases": _get_phases(performance, curves),
        "performance": performance,
        "resources": _get_resources(monitor),
        "alerts": list(read_lines(monitor / "alerts.jsonl")),
        "advice": _get_advice(run),
        "advice_log": list(read_lines(monitor / "advice.jsonl")),
        "preflight": _read_json(monitor / "preflight.json"),
        "replay": view_replay(run) if with_replay else {"missing": "not looked at"},
        "saves": [_describe(generation) for generation in generations],
        "sittings": _get_sittings(run),
        "environment": _get_environment(generations),
        "lineage": summary.get("forked_from"),
    }


def _get_advice(run: RunFolder) -> list[dict[str, Any]]:
    """What holds now, most urgent first, with the command that follows it."""
    return [
        {
            **record["advice"],
            "step": record["step"],
            "time": record["time"],
            "command": spell_change(run, record["advice"]),
        }
        for record in read_standing(run)
    ]


def list_changed(settings: Mapping[str, Any], shipped: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Settings of the model that are not those of the shipped configs, else not the default.

    Args:
        shipped: names of configs, later ones over earlier ones; what else they set is compared, too.
    """
    base = _flatten({"model": asdict(Config())})
    for name in shipped:
        base |= _flatten(yaml.safe_load(Path(find_config(name)).read_text()))
    return [
        {"setting": name, "default": base.get(name), "value": value}
        for name, value in settings.items()
        if (name.startswith("model.") or name in base) and base.get(name) != value
    ]


def _get_shipped(summary: Mapping[str, Any]) -> list[str]:
    """Configs that travel with perdqn and that the run was started from, by the command that began it."""
    try:
        words = shlex.split(str(summary.get("command", "")))
    except ValueError:
        return []
    return names_in(words) if "fit" in words else []


def _read_settings(run: RunFolder) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(run.config.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return _flatten(tree) if isinstance(tree, dict) else {}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = isinstance(value, dict) and bool(value)
        leaves |= _flatten(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return leaves


def _get_status(run: RunFolder, summary: Mapping[str, Any]) -> str:
    """A killed run's summary says ``running`` for ever; who holds its folder tells."""
    status = str(summary.get("status", "unknown"))
    if status != "running":
        return status
    holder = holder_of(run.checkpoints)
    if holder.get("host") != socket.gethostname():
        return "running or killed on another machine"
    return "running" if psutil.pid_exists(int(holder.get("pid", -1))) else "killed"


def _get_progress(
    status: str, settings: Mapping[str, Any], summary: Mapping[str, Any], curves: Mapping[str, Curve]
) -> dict[str, Any]:
    rates = curves.get("time/env_steps_per_second")
    newest = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
    env_steps = int(summary.get("env_steps") or newest)
    total = settings.get("model.total_env_steps")
    found: dict[str, Any] = {
        "env_steps": env_steps,
        "total_env_steps": total,
        "fraction": min(1.0, env_steps / total) if total else None,
        "env_steps_per_second": None,
        "seconds_left": None,
    }
    if rates is not None and len(recent := rates.values[-NEWEST_RATES:]):
        found["env_steps_per_second"] = rate = float(median(recent))
        if status == "running" and total and rate > 0:
            low, high = (float(np.quantile(recent, q)) for q in (0.1, 0.9))
            left = max(0, total - env_steps)
            found["seconds_left"] = [round(left / each, 1) for each in (high, rate, max(low, 1e-9))]
    return found


def _get_phases(performance: Any, curves: Mapping[str, Curve]) -> dict[str, float]:
    """Shares of the time by phase: of the newest report, else as logged."""
    shares = (performance or {}).get("shares")
    if isinstance(shares, dict) and any(shares.values()):
        return {str(name): float(share) for name, share in shares.items()}
    prefix = "time/phase_"
    return {
        tag.removeprefix(prefix): float(curve.values[-1])
        for tag, curve in curves.items()
        if tag.startswith(prefix) and math.isfinite(curve.values[-1])
    }


def _get_resources(monitor: Path) -> dict[str, Any]:
    """Figures by tag, against the run's steps."""
    points: dict[str, dict[int, float]] = {}
    for line in read_lines(monitor / "resources.jsonl"):
        for name, value in line.items():
            if name.startswith("resource/") and isinstance(value, int | float):
                points.setdefault(name, {})[int(line.get("step") or 0)] = float(value)
    return {name: _as_lists(thin(_as_curve(found))) for name, found in points.items()}


def _as_curve(points: Mapping[int, float]) -> Curve:
    steps = np.array(sorted(points))
    return Curve(steps, np.array([points[step] for step in steps]), np.zeros(len(steps)))


def _get_generations(run: RunFolder) -> list[Generation]:
    """Those that are there, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(GenerationFolder(run.checkpoints).generations(), key=lambda one: one.sequence)


def _describe(generation: Generation) -> dict[str, Any]:
    return {
        "name": generation.name,
        "sequence": generation.sequence,
        "kind": generation.kind,
        "created": generation.manifest.get("created"),
        "bytes": sum(file.size for file in generation.files),
        "num_files": len(generation.files),
        "counters": dict(generation.counters),
        "is_resumable": generation.is_resumable,
        "notes": list(generation.manifest.get("notes", ())),
        "monitor": generation.manifest.get("monitor"),
    }


def _get_environment(generations: list[Generation]) -> dict[str, Any]:
    """Machine and versions, as the newest save has them."""
    if not generations:
        return {}
    manifest = generations[-1].manifest
    return {**manifest.get("environment", {}), **manifest.get("versions", {}), "host": manifest.get("host")}


def _get_sittings(run: RunFolder) -> list[str]:
    """When each began to log: one a process, whose number stands in its files' names."""
    begun: dict[str, int] = {}
    for path in find_event_files(run.path):
        words = path.name.split(".")
        if len(words) > 5 and words[3].isdigit():
            begun.setdefault(words[-2], int(words[3]))
    return [datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in begun.values()]


def _as_lists(curve: Curve) -> dict[str, list[float | None]]:
    """JSON has no infinity and no nan."""
    values = [float(value) if math.isfinite(value) else None for value in curve.values]
    return {"steps": [float(step) for step in curve.steps], "values": values}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
