"""What figures are worth an alarm, raised and cleared with hysteresis.

Knows nothing about where figures come from, nor who is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

GIB = 2**30


@dataclass(frozen=True)
class Threshold:
    """When a figure is worth an alarm.

    Args:
        kind: of the alarm.
        figure: its name.
        raise_at: the alarm is raised where the figure has been there for ``hold_s`` seconds,
        clear_at: and is over where it is here; below ``raise_at`` for what must not grow, above it for what
            must not shrink.
        hold_s: see above.
        message: what is wrong; ``{name}`` stands for a figure.
        remedy: what to do about it.
    """

    kind: str
    figure: str
    raise_at: float
    clear_at: float
    hold_s: float
    message: str
    remedy: str

    def is_beyond(self, value: float) -> bool:
        return value <= self.raise_at if self.raise_at < self.clear_at else value >= self.raise_at

    def is_over(self, value: float) -> bool:
        return value > self.clear_at if self.raise_at < self.clear_at else value < self.clear_at


class Alert(NamedTuple):
    """Something became wrong (``raised``) or is so no longer (``cleared``)."""

    kind: str
    state: Literal["raised", "cleared"]
    message: str
    figures: dict[str, float]
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()


_MORE_MEMORY = "lower batch size, workers or what is kept in memory, or give the run a higher limit"
_MORE_SPACE = "remove files, keep fewer checkpoints, or write to another disk"

THRESHOLDS = (
    Threshold(
        "memory",
        "memory_free_share",
        0.12,
        0.17,
        2.0,
        "{memory_free_bytes} of {memory_limit_bytes} of memory are left",
        _MORE_MEMORY,
    ),
    Threshold(
        "memory_forecast",
        "memory_full_at_latest_s",
        600.0,
        1200.0,
        20.0,
        "memory runs out within {memory_full_at_latest_s} at this growth; {memory_free_bytes} are left",
        f"look for what grows; {_MORE_MEMORY}",
    ),
    Threshold(
        "memory_plan",
        "memory_expected_share",
        1.0,
        0.97,
        10.0,
        "{memory_expected_bytes} of memory are in use once what was announced is there, and "
        "{memory_limit_bytes} may be",
        _MORE_MEMORY,
    ),
    Threshold(
        "memory_pressure",
        "pressure_memory_full",
        0.1,
        0.02,
        5.0,
        "nothing runs in {pressure_memory_full} of the time for want of memory",
        _MORE_MEMORY,
    ),
    Threshold(
        "swapping",
        "major_faults_per_s",
        100.0,
        20.0,
        10.0,
        "{major_faults_per_s} times a second memory is read back from a disk",
        _MORE_MEMORY,
    ),
    Threshold(
        "disk",
        "disk_free_bytes",
        1.0 * GIB,
        2.0 * GIB,
        0.0,
        "{disk_free_bytes} of disk space are left for the run",
        _MORE_SPACE,
    ),
    Threshold(
        "disk_forecast",
        "disk_full_at_latest_s",
        1800.0,
        3600.0,
        60.0,
        "the disk is full within {disk_full_at_latest_s} at this growth; {disk_free_bytes} are left",
        _MORE_SPACE,
    ),
    Threshold(
        "disk_files",
        "disk_free_files",
        1000.0,
        2000.0,
        0.0,
        "the run's file system takes no more than {disk_free_files} files",
        _MORE_SPACE,
    ),
    Threshold(
        "shared_memory",
        "shm_share",
        0.9,
        0.8,
        5.0,
        "{shm_share} of /dev/shm is in use; loader workers die of bus errors where it is full",
        "use fewer workers or a lower prefetch_factor, or give the container a larger /dev/shm",
    ),
    Threshold(
        "open_files",
        "open_files_share",
        0.8,
        0.7,
        5.0,
        "{open_files} files are open, {open_files_share} of what may be",
        "look for files that are never closed, raise the limit (ulimit -n), or set "
        "torch.multiprocessing.set_sharing_strategy('file_system')",
    ),
    Threshold(
        "cpu_throttled",
        "cpu_throttled_share",
        0.25,
        0.1,
        10.0,
        "the processor quota of {cpu_quota_cores} cores holds the run back in {cpu_throttled_share} of all "
        "periods",
        "use as many threads and workers as the quota has cores, or ask for more of it",
    ),
    Threshold(
        "io_pressure",
        "pressure_io_full",
        0.5,
        0.3,
        30.0,
        "nothing runs in {pressure_io_full} of the time for want of a disk",
        "read from a faster disk, keep the data in memory, or save less often",
    ),
    Threshold(
        "accelerator_memory",
        "accelerator_share",
        0.97,
        0.92,
        5.0,
        "{accelerator_share} of the accelerator's memory is in use",
        "lower the batch size or the precision, or accumulate gradients",
    ),
    Threshold(
        "accelerator_throttled",
        "accelerator_is_throttled",
        1.0,
        1.0,
        10.0,
        "the accelerator slows itself down at {accelerator_temperature_c}",
        "look at its cooling and its power limit",
    ),
    Threshold(
        "accelerator_ecc",
        "accelerator_ecc_errors",
        1.0,
        1.0,
        0.0,
        "the accelerator's memory had {accelerator_ecc_errors} errors that could not be corrected",
        "save, and go on on another one: results may be wrong",
    ),
)


class Alerts:
    """Those raised now, and what changes with each sample.

    Args:
        thresholds: beside ours; one of a kind that we have stands in its place.
    """

    def __init__(self, thresholds: Sequence[Threshold] = ()) -> None:
        self._thresholds = {each.kind: each for each in (*THRESHOLDS, *thresholds)}
        self._since: dict[str, float] = {}
        self.raised: dict[str, Alert] = {}

    def check(self, now: float, figures: Mapping[str, float]) -> list[Alert]:
        """What is raised or cleared by figures of ``now``; one that is missing changes nothing."""
        found = (
            self._check(threshold, now, figures[threshold.figure], figures)
            for threshold in self._thresholds.values()
            if threshold.figure in figures
        )
        return [alert for alert in found if alert is not None]

    def _check(
        self, threshold: Threshold, now: float, value: float, figures: Mapping[str, float]
    ) -> Alert | None:
        kind = threshold.kind
        if kind in self.raised:
            if not threshold.is_over(value):
                return None
            del self.raised[kind]
            return _alert(threshold, "cleared", figures)
        if not threshold.is_beyond(value):
            self._since.pop(kind, None)
        elif now - self._since.setdefault(kind, now) >= threshold.hold_s:
            del self._since[kind]
            self.raised[kind] = _alert(threshold, "raised", figures)
            return self.raised[kind]
        return None


def _alert(threshold: Threshold, state: Literal["raised", "cleared"], figures: Mapping[str, float]) -> Alert:
    message = threshold.message.format_map(_Shown(figures))
    named = {name: value for name, value in figures.items() if f"{{{name}}}" in threshold.message}
    own = {threshold.figure: figures[threshold.figure]} | named
    return Alert(threshold.kind, state, message, own, threshold.remedy)


class _Shown(dict[str, str]):
    """Figures as people read them."""

    def __init__(self, figures: Mapping[str, float]) -> None:
        super().__init__({name: shown(name, value) for name, value in figures.items()})

    def __missing__(self, name: str) -> str:
        return "an unknown amount"


def shown(name: str, value: float) -> str:
    """A figure with the unit its name ends with."""
    if name.endswith("_bytes"):
        return f"{value / GIB:.1f} GiB" if value >= GIB else f"{value / 2**20:.0f} MiB"
    if name.endswith("_share") or name.startswith("pressure_"):
        return f"{value:.0%}"
    if name.endswith("_s") and not name.endswith("_per_s"):
        return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"
    return f"{value:.0f} °C" if name.endswith("_c") else f"{value:.3g}"
