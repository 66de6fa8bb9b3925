"""What a run goes on from: which save, what is in it, and what is different now.

Knows nothing about how it is restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdqn.run.saves import Save

INDENT = "  "


def format_report(
    save: Save,
    checkpoint: Mapping[str, Any],
    *,
    exactness: str,
    changes: Sequence[str] = (),
    environment: Sequence[str] | None = None,
    set_aside: Sequence[Any] = (),
    lineage: Mapping[str, Any] | None = None,
    leaves_replay: bool = False,
) -> str:
    """The report in a few lines.

    Args:
        checkpoint: the save, loaded.
        exactness: what the run recorded of its episodes; see `perdqn.acting.exactness`.
        changes: settings that differ, as ``name: old -> new``.
        environment: what differs of machine and versions, a sentence each; None where none was recorded.
        set_aside: where the files of damaged generations lie now.
        lineage: of a fork: the save it began with.
        leaves_replay: whether a fork has another replay, so that the saved one cannot be taken over.
    """
    rows = [
        *((f"passed over {fault}",) for fault in save.passed_over),
        *(("set aside", path) for path in set_aside),
        *(("forked from", format_lineage(origin)) for origin in [lineage] if origin),
        ("written", _origin(save)),
        ("at", format_position(checkpoint)),
        ("restored", format_contents(checkpoint, leaves_replay, "seed" in (lineage or {}))),
        ("exactness", exactness),
        ("environment", _judge(environment)),
        *(("changed", change) for change in changes),
    ]
    lines = [f"{row[0]:<12} {row[1]}" if len(row) == 2 else row[0] for row in rows]
    return "\n".join([f"resuming {save.checkpoint}", *(INDENT + line for line in lines)])


def format_position(checkpoint: Mapping[str, Any]) -> str:
    state = checkpoint["perdqn"]
    counts = {"env steps": "env_steps", "updates": "update_steps", "episodes": "episodes"}
    return ", ".join(f"{state[key]:,} {unit}" for unit, key in counts.items())


def format_contents(
    checkpoint: Mapping[str, Any], leaves_replay: bool = False, is_reseeded: bool = False
) -> str:
    """What of the run's state is in the checkpoint and taken over, in words."""
    state, parts = checkpoint["perdqn"], checkpoint.get("holdfast", {}).get("parts", {})
    if leaves_replay or not ("replay" in state or parts):
        return "weights and optimizer; without the replay, training warms up again and goes another way"
    rows, acting = count_rows([state.get("replay"), parts]), state["experience"]["acting"]
    in_progress = "no episode" if acting is None else f"{len(acting['environments']['actions'])} episodes"
    streams = "random streams begin anew" if is_reseeded else "all random streams"
    return f"weights, optimizer, {rows:,} replay rows, {in_progress} in progress, {streams}"


def format_lineage(lineage: Mapping[str, Any]) -> str:
    name, sequence = lineage["generation"], lineage["sequence"]
    generation = name if sequence is None else f"generation {sequence} ({name})"
    return f"{lineage['run']}, {generation} at {lineage['env_steps']:,} env steps"


def count_rows(state: Any) -> int:
    """Rows alive, from the rings' counters, wherever in the state they stand."""
    if isinstance(state, list):
        return sum(map(count_rows, state))
    if not isinstance(state, Mapping):
        return 0
    if {"heads", "length"} <= state.keys():
        return sum(min(int(head), int(state["length"])) for head in state["heads"])
    return sum(count_rows(part) for part in state.values())


def _origin(save: Save) -> str:
    if save.generation is None:
        return "by an earlier version, without a manifest: its checksum is not known"
    manifest = save.generation.manifest
    kind, sequence = save.generation.kind, save.generation.sequence
    return f"{manifest['created']} on {manifest['host']}, {kind} generation {sequence}, checksums verified"


def _judge(differences: Sequence[str] | None) -> str:
    if differences is None:
        return "not recorded; the state is restored exactly, arithmetic may differ elsewhere"
    if not differences:
        return "as it was when this was saved"
    reasons = "; ".join(differences)
    return f"the state is restored exactly; arithmetic may differ because: {reasons}"
