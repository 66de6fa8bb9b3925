"""Decisions made for one machine, kept between runs.

Knows nothing about what was decided.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ..storage.durable import write_whole
from .others import OtherWork

_MOST_OTHER_WORK = 0.1  # of the cores, beside which speed is measured


def default_folder() -> Path:
    """``holdfast`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast"


def machine() -> dict[str, Any]:
    """What decides how fast something is here."""
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count()
    return {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "versions": {name: version(name) for name in ("torch", "lightning")},
    }


def remembered(folder: Path, name: str, question: Any, decide: Callable[[], int]) -> int:
    """What was decided here of ``name`` before, for the same ``question``, plain values; else decide it now.

    A cache that cannot be read or written costs no more than deciding again. What was decided while others
    took more than a tenth of the processors holds for this run alone.
    """
    told = json.dumps([machine(), name, question], sort_keys=True, default=str)
    path = folder / "scaler" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(path.read_text())["value"])
    others = OtherWork()
    value = decide()
    if (share := others.share()) > _MOST_OTHER_WORK:
        rank_zero_warn(
            f"{name} was decided while others took {share:.0%} of the processors, so the next run decides "
            f"again; what is fastest beside them may not be so alone"
        )
        return value
    with contextlib.suppress(OSError):
        write_whole(path, json.dumps({"value": value, "of": name, "question": question}, default=str) + "\n")
    return value
