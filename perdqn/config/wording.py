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
    """The known name most like ``name``: by its last part first, since the path before it is often left out."""
    known = list(known)
    whole = get_close_matches(name, known, n=1, cutoff=0.6)
    by_last_part = {other.rpartition(".")[2]: other for other in reversed(known)}
    last = get_close_matches(name.rpartition(".")[2], by_last_part, n=1, cutoff=0.75)
    if last and (not whole or by_last_part[last[0]].startswith(name.rpartition(".")[0])):
        return by_last_part[last[0]]
    return whole[0] if whole else None
