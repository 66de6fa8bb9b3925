"""What a run was advised as it went, and the command that follows it.

Knows nothing about the rules.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.advising.advice import PRIORITIES

from perdqn.run.folder import RunFolder, read_lines
from perdqn.run.shape import fits_fork

OVER = ("completed", "stopped at target")  # a fork has nothing left to do
Record = dict[str, Any]  # as a line of advice.jsonl: time, env step, event, advice


def read_advice(run: RunFolder) -> list[Record] | None:
    """What was advised and holds now, most urgent first; None where nobody advised the run."""
    path = run.path / "monitor" / "advice.jsonl"
    if not path.is_file():
        return None
    standing: dict[str, Record] = {}
    for record in read_lines(path):
        rule = record["advice"]["rule"]
        if record["event"] == "withdrawn":
            standing.pop(rule, None)
        else:
            standing[rule] = record
    return most_urgent_first(standing.values())


def read_measured(run: RunFolder) -> list[Record]:
    """What would make it faster, as of its newest performance report; nothing where nobody measured."""
    path = run.path / "monitor" / "performance_report.json"
    if not path.is_file():
        return []
    report = json.loads(path.read_text())
    shared = {"time": report["time"], "step": None, "event": "measured"}
    return [{**shared, "advice": advice} for advice in report["recommendations"]]


def most_urgent_first(records: Iterable[Record]) -> list[Record]:
    """By priority, then by confidence."""
    return sorted(
        records,
        key=lambda record: (
            PRIORITIES.index(record["advice"]["priority"]),
            -record["advice"]["confidence"],
        ),
    )


def read_standing(run: RunFolder) -> list[Record]:
    """All that was advised or measured and holds now, most urgent first."""
    return most_urgent_first([*(read_advice(run) or ()), *read_measured(run)])


def spell_change(run: RunFolder, advice: Mapping[str, Any]) -> str | None:
    """The command that follows advice: a fork, or a new run where a fork cannot; None without a change."""
    changes = {change["setting"]: change["proposed"] for change in advice["changes"]}
    if not changes:
        return None
    options = [word for name, value in changes.items() for word in (f"--{name}", spell(value))]
    is_over = run.read_summary().get("status") in OVER
    if is_over or not all(map(fits_fork, changes)):
        return shlex.join(["perdqn", "fit", "--config", str(run.config), *options])
    return shlex.join(["perdqn", "resume", str(run.path), "--fork", *options])


def spell(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
