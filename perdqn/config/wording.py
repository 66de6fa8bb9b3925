"""How a fault is put into words: the setting as typed, its value, the range, the remedy.

Knows nothing about which settings exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def shown(value: Any) -> str:
    """The value as a YAML file spells it, shortened where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def sentence(key: str, must: str, value: Any, remedy: str = "") -> str:
    """``key must ..., got value; remedy``."""
    return f"{key} must {must}, got {shown(value)}" + (f"; {remedy}" if remedy else "")


def unknown(key: str, known: Iterable[str]) -> str:
    """That ``key`` does not exist, and the one of ``known`` that was probably meant."""
    best = nearest(key, known)
    return f"{key} is not a setting" + (f"; did you mean {best}?" if best else "")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like the dotted ``name``: beside it, else with that last part, else as a whole."""
    known = [other for other in known if not name.startswith(f"{other}.")]
    parent, _, last = name.rpartition(".")
    beside = [other for other in known if other.rpartition(".")[0] == parent]
    return (
        _nearest_last_part(last, beside, cutoff=0.6)
        or _nearest_last_part(last, known, cutoff=0.8)
        or next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), None)
    )


def _nearest_last_part(last: str, known: list[str], cutoff: float) -> str | None:
    full_names = {other.rpartition(".")[2]: other for other in reversed(known)}
    found = get_close_matches(last, full_names, n=1, cutoff=cutoff)
    return full_names[found[0]] if found else None
