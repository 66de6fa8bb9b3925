"""The command `perdqn advise`: what should be changed in a run, most urgent first.

Knows nothing about the rules, and imports nothing heavy where the run was advised as it went.
"""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from holdfast.advising.advice import PRIORITIES

from perdqn.run.folder import RunFolder
from perdqn.run.saves import find_run
from perdqn.run.shape import fits_fork

OVER = ("completed", "stopped at target")  # a fork has nothing left to do
Record = dict[str, Any]  # a line of advice.jsonl


def advise(given: Namespace) -> int:
    """Print the advice, or prove some of it; returns the exit code."""
    if given.prove:
        from perdqn.cli.prove import prove

        return prove(given)
    run = find_run(given.path, given.root)
    found = [{**record, "command": spell_change(run, record["advice"])} for record in get_advice(run)]
    print(json.dumps(found, indent=2) if given.json else _as_text(run, found))
    return 0


def get_advice(run: RunFolder) -> list[Record]:
    """What holds now, most urgent first: as given in the run, or found in what it saved and logged."""
    path = run.path / "monitor" / "advice.jsonl"
    standing: dict[str, Record] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # the run is just writing it
            continue
        rule = record["advice"]["rule"]
        if record["event"] == "withdrawn":
            standing.pop(rule, None)
        else:
            standing[rule] = record
    return sorted(standing.values(), key=_get_rank)


def _get_rank(record: Record) -> tuple[int, float]:
    advice = record["advice"]
    return PRIORITIES.index(advice["priority"]), -advice["confidence"]


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


def _as_text(run: RunFolder, found: list[Record]) -> str:
    if not found:
        return f"nothing to change in {run.path}"
    proof = f"measure it: {shlex.join(['perdqn', 'advise', str(run.path), '--prove'])} [--rank N]"
    texts = [_describe(rank, record) for rank, record in enumerate(found, 1)]
    return "\n\n".join([*texts, *([proof] if any(record["command"] for record in found) else [])])


def _describe(rank: int, record: Record) -> str:
    advice, event = record["advice"], record["event"]
    heading = f"{rank}. {advice['priority']}: {advice['message']}"
    rows = {
        "evidence": ", ".join(f"{name} {_shorten(value)}" for name, value in advice["evidence"].items()),
        "source": advice["source"],
        "expected": advice["expected"],
        "speed-up": f"{advice['gain']:.2g} x" if advice["gain"] else "",
        "since": f"step {record['step']:,}" + ("" if event == "advised" else f", {event}"),
        "do it": record["command"] or "",
    }
    return "\n".join([heading, *(f"   {name:<9} {text}" for name, text in rows.items() if text)])


def _shorten(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
