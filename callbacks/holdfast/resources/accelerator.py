"""What the accelerator says of itself: through Lightning, and NVIDIA's management library where it is there.

Knows nothing about control groups, nor what is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch

from .reader import Reader

_TORCH = {  # of torch.cuda.memory_stats, which Lightning hands out
    "allocated_bytes.all.current": "accelerator_allocated_bytes",
    "reserved_bytes.all.current": "accelerator_reserved_bytes",
    "num_alloc_retries": "accelerator_alloc_retries",
    "num_ooms": "accelerator_out_of_memory",
}
_MOST_OTHERS = 32
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons that slow a GPU down: software power cap, slowdown by the
# hardware, software thermal, hardware thermal, power brake. The others are idleness and settings.
SLOWED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class AcceleratorFigures:
    """What Lightning's accelerator reports of a device.

    Args:
        accelerator: of a trainer; that of the CPU reports what `ProcessFigures` and others read cheaper.
        device: of this rank.
    """

    every_s = 1.0

    def __init__(self, accelerator: Any, device: torch.device) -> None:
        self._accelerator, self._device = accelerator, device

    def read(self, now: float) -> Mapping[str, float]:
        found = self._accelerator.get_device_stats(self._device)
        if self._device.type == "cuda":
            return {name: float(found[key]) for key, name in _TORCH.items() if key in found}
        plain = {key: value for key, value in found.items() if isinstance(value, int | float)}
        return {f"accelerator_{key}": float(value) for key, value in list(plain.items())[:_MOST_OTHERS]}


class NvmlFigures:
    """Of one NVIDIA GPU; what it does not support is left out.

    Args:
        nvml: the module ``pynvml``.
        device: of torch, found again by its UUID, since processes may number them otherwise.

    Raises:
        Exception: there is no such GPU, or no driver.
    """

    every_s = 2.0

    def __init__(self, nvml: Any, device: torch.device) -> None:
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        self._nvml = nvml

    def read(self, now: float) -> Mapping[str, float]:
        nvml, handle = self._nvml, self._handle
        ecc = (getattr(nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1), getattr(nvml, "NVML_VOLATILE_ECC", 0))
        asked: dict[str, Callable[[], float]] = {
            "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "limit_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, 0),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            "ecc_errors": lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, *ecc),
        }
        figures = {}
        for name, ask in asked.items():
            with contextlib.suppress(Exception):  # of the library, which need not be installed
                figures[f"accelerator_{name}"] = float(ask())
        if {"accelerator_used_bytes", "accelerator_limit_bytes"} <= figures.keys():
            used, limit = figures["accelerator_used_bytes"], figures["accelerator_limit_bytes"]
            figures["accelerator_share"] = used / limit
        if (reasons := figures.get("accelerator_throttle_reasons")) is not None:
            figures["accelerator_is_throttled"] = float(bool(int(reasons) & SLOWED))
        return figures


def readers_of(accelerator: Any, device: torch.device) -> list[Reader]:
    """All that can be read of ``device``; none of a CPU."""
    if device.type == "cpu":
        return []
    readers: list[Reader] = [AcceleratorFigures(accelerator, device)]
    with contextlib.suppress(Exception):
        if device.type == "cuda":
            readers.append(NvmlFigures(import_module("pynvml"), device))
    return readers
