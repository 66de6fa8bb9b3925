"""What the arithmetic of a run depends on beside its settings: the machine and the versions.

Knows nothing about runs: it looks at this process, and compares what two of them saw.
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy
import torch

_WORDS = {
    "cpu": "processor",
    "cpu_capability": "vector instructions that torch uses",
    "torch_threads": "threads of torch",
    "python": "python version",
    "torch": "torch version",
    "numpy": "numpy version",
    "lightning": "lightning version",
    "platform": "operating system",
    "deterministic": "deterministic algorithms",
    "gpu": "GPU",
}


def environment_fingerprint() -> dict[str, Any]:
    """Plain values; where two processes agree in all of them, the same run gives the same bits."""
    return {
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "lightning": lightning.pytorch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that differs; none where the arithmetic is the same."""
    names = [*_WORDS, *sorted({*then, *now} - set(_WORDS))]
    return [
        f"{_WORDS.get(name, name)}: {_say(then.get(name))} then, {_say(now.get(name))} now"
        for name in names
        if then.get(name) != now.get(name)
    ]


def _say(value: Any) -> str:
    return "not recorded" if value is None else str(value)


@functools.cache
def _cpu() -> str:
    """The processor's name; ``platform`` knows only its family on Linux."""
    if sys.platform == "linux":
        for line in _lines(Path("/proc/cpuinfo")):
            if line.lower().startswith(("model name", "hardware", "cpu model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
