"""The command `perdqn advise`: what should be changed in a run, most urgent first.

Knows nothing about the rules, and imports nothing heavy where the run was advised as it went.
"""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from typing import Any

from perdqn.run.advice import Record, most_urgent_first, read_advice, read_measured, spell_change
from perdqn.run.folder import RunFolder
from perdqn.run.saves import find_run


def advise(given: Namespace) -> int:
    """Print the advice, or prove some of it; returns the exit code."""
    run = find_run(given.path, given.root)
    found = [] if given.change else _get_advice(run)
    if given.prove:
        from perdqn.cli.prove import prove

        return prove(given, run, [record["advice"] for record in found])
    found = [{**record, "command": spell_change(run, record["advice"])} for record in found]
    print(json.dumps(found, indent=2) if given.json else _as_text(run, found))
    return 0


def _get_advice(run: RunFolder) -> list[Record]:
    """As given in the run, or where nobody did, as its logs ask for; and what was measured to be slow."""
    given = read_advice(run)
    if given is None:
        from perdqn.cli.examine import examine

        given = examine(run)
    return most_urgent_first([*given, *read_measured(run)])


def _as_text(run: RunFolder, found: list[Record]) -> str:
    if not found:
        return f"nothing to change in {run.path}"
    proof = f"measure it: {shlex.join(['perdqn', 'advise', str(run.path), '--prove'])} [--rank N]"
    texts = [_describe(rank, record) for rank, record in enumerate(found, 1)]
    return "\n\n".join([*texts, *([proof] if any(record["command"] for record in found) else [])])


def _describe(rank: int, record: Record) -> str:
    advice, event = record["advice"], record["event"]
    heading = f"{rank}. {advice['priority']}: {advice['message']}"
    since = f"step {record['step'] or 0:,}" + ("" if event == "advised" else f", {event}")
    rows = {
        "evidence": ", ".join(f"{name} {_shorten(value)}" for name, value in advice["evidence"].items()),
        "source": advice["source"],
        "expected": advice["expected"],
        "speed-up": f"{advice['gain']:.2g} x" if advice["gain"] else "",
        "since": "" if event == "measured" else since,
        "do it": record["command"] or "",
    }
    return "\n".join([heading, *(f"   {name:<9} {text}" for name, text in rows.items() if text)])


def _shorten(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
