"""A comparison of arms as text for a person.

Knows nothing about how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdqn.proving.effect import CONFIDENCE, METHOD
from perdqn.proving.figures import LEARNING, SPEED
from perdqn.run.summary import format_seconds

NAMES = {**LEARNING, **SPEED}


def format_comparison(found: Mapping[str, Any]) -> str:
    """Pairs, effects and what they mean, a line each; ``found`` is of `Proof.compare`."""
    arms, effects = found["arms"], found["effects"]
    first = effects[0]["figure"]
    kinds = [kind for kind in arms[0] if kind != "seed"]
    rows = [
        ["seed", *kinds],
        *([str(by["seed"]), *(_figure(by[kind], first) for kind in kinds)] for by in arms),
    ]
    lines = [f"{NAMES[first]} of each arm", *("".join(f"{cell:>14}" for cell in row) for row in rows)]
    lines += [f"{name} failed: {reason}" for name, reason in found["failures"].items()]
    lines += [f"{CONFIDENCE * 100:.0f} % intervals of the mean difference, {METHOD} over seeds"]
    return "\n".join(
        [*lines, *map(_describe, effects), f"took {format_seconds(found['wall_s'])} in all arms"]
    )


def _figure(result: Mapping[str, Any] | None, name: str) -> str:
    value = None if result is None else result[name]
    return "-" if value is None else f"{value:,.1f}"


def _describe(found: Mapping[str, Any]) -> str:
    effect, what = found["effect"], f"{found['of']} against {found['against']}, {NAMES[found['figure']]}"
    if effect is None:
        return f"  {what}: no pair is done"
    interval = "" if effect["low"] is None else f" ({effect['low']:+,.1f} to {effect['high']:+,.1f})"
    wins = f"better in {effect['improved']:.0%} of {effect['num_pairs']} pairs"
    return f"  {what}: {effect['mean']:+,.1f}{interval}, {wins}: {effect['verdict']}"
