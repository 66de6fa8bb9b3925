"""What an accelerator says, by way of Lightning and of a library that is not here."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from holdfast.resources.accelerator import SLOWED, AcceleratorFigures, NvmlFigures, readers_of


class NotSupported(Exception):
    pass


def nvml(reasons: int = 0, ecc: int | None = 0) -> SimpleNamespace:
    """In place of pynvml: a GPU half full."""

    def count(handle, kind, counter):
        if ecc is None:
            raise NotSupported
        return ecc

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=40),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=200, used=100),
        nvmlDeviceGetTemperature=lambda handle, sensor: 71,
        nvmlDeviceGetPowerUsage=lambda handle: 250_000,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: reasons,
        nvmlDeviceGetTotalEccErrors=count,
    )


def gpu(monkeypatch, library: SimpleNamespace) -> NvmlFigures:
    properties = SimpleNamespace(uuid="1234-5678")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return NvmlFigures(library, torch.device("cuda", 0))


def test_a_gpu_is_found_by_its_uuid_whatever_its_number_here(monkeypatch):
    assert gpu(monkeypatch, nvml())._handle == "GPU-1234-5678"


def test_figures_have_units(monkeypatch):
    assert gpu(monkeypatch, nvml()).read(0.0) == {
        "accelerator_utilisation": 0.4,
        "accelerator_limit_bytes": 200,
        "accelerator_used_bytes": 100,
        "accelerator_share": 0.5,
        "accelerator_temperature_c": 71,
        "accelerator_power_w": 250,
        "accelerator_throttle_reasons": 0,
        "accelerator_ecc_errors": 0,
        "accelerator_is_throttled": 0,
    }


def test_idleness_is_no_throttling_and_heat_is(monkeypatch):
    assert gpu(monkeypatch, nvml(reasons=0x1)).read(0.0)["accelerator_is_throttled"] == 0
    assert gpu(monkeypatch, nvml(reasons=0x40)).read(0.0)["accelerator_is_throttled"] == 1
    assert SLOWED & 0x1 == 0


def test_what_a_gpu_does_not_support_is_left_out(monkeypatch):
    figures = gpu(monkeypatch, nvml(ecc=None)).read(0.0)
    assert "accelerator_ecc_errors" not in figures
    assert figures["accelerator_temperature_c"] == 71


def test_of_cudas_hundred_figures_some_are_taken():
    stats = {"allocated_bytes.all.current": 5, "reserved_bytes.all.current": 9, "segment.all.peak": 3}
    accelerator = SimpleNamespace(get_device_stats=lambda device: stats)
    figures = AcceleratorFigures(accelerator, torch.device("cuda", 0)).read(0.0)
    assert figures == {"accelerator_allocated_bytes": 5, "accelerator_reserved_bytes": 9}


def test_other_accelerators_show_what_they_have():
    accelerator = SimpleNamespace(get_device_stats=lambda device: {"avg. free memory (MB)": 5, "name": "x"})
    figures = AcceleratorFigures(accelerator, torch.device("meta")).read(0.0)
    assert figures == {"accelerator_avg. free memory (MB)": 5}


def test_a_cpu_is_read_elsewhere_and_a_gpu_without_the_library_by_lightning_alone(monkeypatch):
    assert readers_of(None, torch.device("cpu")) == []
    assert [type(reader) for reader in readers_of(None, torch.device("cuda", 0))] == [AcceleratorFigures]
