"""Names what a run could be faster without, where several windows say so.

Knows nothing about how the windows were measured.

A healthy run computes: its step is the model's arithmetic, and nothing waits. So what counts as lost is

- all of the time in which nothing is learnt and that need not be in the way: waiting for ``data``, moving it
  (``transfer``), ``callbacks``, ``logging``, saves (``disk``);
- of work that must be done, only the part beyond what it should take. ``environment``: what it waits without
  computing, and what it computes more than in the run's earliest windows. ``compute`` (forward, backward):
  the same, and what layers take beyond torch's own forward of the same layer, where that was measured (see
  `interventions`). CPU time is compared, as it is and by the speed that a fixed computation shows the machine
  to have just then;
- the whole of environments, optimiser or validation, once it takes more than a good part of all time;
- ``cpu_throttled``: what the quota of a control group stopped; ``memory_pressure``: waiting for pages of
  memory that come back from a disk, but as data, and what the kernel computes meanwhile.

Time in the CPU's queue is left out of all, so neighbours on the machine are no bottleneck, and shares and
speed-ups are those of a machine of one's own. A bottleneck is named where its share is above a threshold with
97.5 % confidence (jackknife over at least five windows, normal approximation). Without it the run would be
1 / (1 - share) times as fast (Amdahl).

``data`` is confirmed where a batch could be replayed (see `interventions`): the step with it is forward and
backward as they were then, and the rest as in the windows. Where that saves less than half of what was
foretold, data are not named: without its loader the run was not faster, so the time in it passes in any case
(as when a device is still busy with the step before), and the advice would be wrong.

Not told from work that must be done: what is slow from the beginning and computes all the while, in an
environment, or in code of a training step that is no layer of torch's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

from ..advising.advice import Advice, Priority
from .actions import STEP
from .windows import THROTTLED, Record

MIN_WINDOWS = 5
NUM_WINDOWS = 12  # newest ones looked at
_RARE = ("disk", "logging", "validation")  # of these all that are kept
THRESHOLD = 0.05
CONFIDENCE = 0.975
_LARGE = {"environment": 0.30, "optimiser": 0.30, "validation": 0.30}
_FAULTS_PER_S = 20.0  # below, pages that come back are no pressure
_SWAPPED_BYTES = 2**20


@dataclass(frozen=True)
class Bottleneck:
    """What the run could be faster without.

    Attributes:
        share: of all time; ``low`` and ``high``: its 95 % interval over windows.
        confidence: that the share is above the threshold.
        evidence: figures behind it.
        confirmation: whether it was tried what happens without it; nothing where there is no such trial.
    """

    label: str
    share: float
    low: float
    high: float
    confidence: float
    num_windows: int
    evidence: dict[str, float]
    confirmation: str = ""

    @property
    def speed_up(self) -> float:
        """The factor expected without it."""
        return 1 / (1 - self.share)

    @property
    def speed_up_interval(self) -> tuple[float, float]:
        return 1 / (1 - self.low), 1 / (1 - self.high)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"speed_up": self.speed_up, "speed_up_interval": list(self.speed_up_interval)}


@dataclass(frozen=True)
class Cached:
    """What steps on a cached batch told.

    Attributes:
        step_s: seconds of forward and backward; None: not measured.
        reason: why not.
    """

    step_s: float | None = None
    reason: str = "not tried"


@dataclass(frozen=True)
class Estimate:
    """A share of the time over windows of different lengths, and its standard error by the jackknife."""

    share: float
    error: float

    @property
    def confidence(self) -> float:
        """That it is above the threshold."""
        if self.error == 0:
            return float(self.share > THRESHOLD)
        return 1 - statistics.NormalDist(self.share, self.error).cdf(THRESHOLD)


def estimate(shares: Sequence[float], seconds: Sequence[float]) -> Estimate:
    """The mean weighted by time."""
    whole, num = sum(seconds), len(shares)
    share = sum(s * t for s, t in zip(shares, seconds, strict=True)) / whole
    if num < 2:
        return Estimate(share, math.inf)
    without = [(share * whole - s * t) / (whole - t) for s, t in zip(shares, seconds, strict=True)]
    middle = sum(without) / num
    return Estimate(share, math.sqrt((num - 1) / num * sum((each - middle) ** 2 for each in without)))


def find_bottlenecks(
    records: Sequence[Record], reference: Sequence[Record] = (), cached: Cached | None = None
) -> list[Bottleneck]:
    """The largest first; none where too little is known.

    Args:
        records: oldest first; the very first of a run is left out by the caller.
        reference: the run's earliest.
        cached: what is known of steps without a loader; None is nothing, and nothing is said of it.
    """
    if len(records) < MIN_WINDOWS:
        return []
    found = [
        _judge(label, lost, records if label in _RARE else records[-NUM_WINDOWS:], reference)
        for label, lost in LABELS.items()
    ]
    named = [each for each in found if each is not None]
    if cached is not None:
        checked = [
            _replayed(each, records[-NUM_WINDOWS:], cached) if each.label == "data" else each
            for each in named
        ]
        named = [each for each in checked if each is not None]
    return sorted(named, key=lambda each: -each.share)


def _replayed(data: Bottleneck, records: Sequence[Record], cached: Cached) -> Bottleneck | None:
    """With the outcome; None where it is refuted."""
    if cached.step_s is None:
        return replace(data, confirmation=f"not confirmed: {cached.reason}")
    seconds, steps = sum(r.seconds for r in records), sum(r.steps for r in records)
    inside = ("data", "environment", *STEP)
    rest_s = sum(r.seconds * (1 - sum(map(r.share, inside))) for r in records)
    step_s, cached_s = seconds / max(1, steps), max(1e-9, cached.step_s + rest_s / max(1, steps))
    if 1 - cached_s / step_s < data.share / 2:
        return None
    figures = {"ms_a_step_cached": 1e3 * cached_s, "speed_up_cached": step_s / cached_s}
    confirmation = f"confirmed: {step_s / cached_s:.2f} times as fast with a cached batch"
    return replace(data, evidence=data.evidence | figures, confirmation=confirmation)


Lost = Callable[[Record, Sequence[Record]], float]


def _judge(
    label: str, lost: Lost, records: Sequence[Record], reference: Sequence[Record]
) -> Bottleneck | None:
    found = estimate([lost(record, reference) for record in records], [r.seconds for r in records])
    if found.confidence < CONFIDENCE:
        return None
    share = min(found.share, 0.99)
    low, high = max(0.0, share - 1.96 * found.error), min(0.99, share + 1.96 * found.error)
    evidence = _evidence(label, records)
    return Bottleneck(label, share, low, high, found.confidence, len(records), evidence)


def _evidence(label: str, records: Sequence[Record]) -> dict[str, float]:
    seconds, steps = sum(r.seconds for r in records), sum(r.steps for r in records)
    figures = {"threshold": THRESHOLD, "ms_a_step": 1e3 * seconds / max(1, steps)}
    if label == "cpu_throttled":
        figures["throttled_s_a_s"] = sum(r.waits.throttled_s for r in records) / seconds
    elif label == "memory_pressure":
        figures["stalled_s_a_s"] = sum(r.waits.memory_stalled_s for r in records) / seconds
        figures["major_faults_a_s"] = sum(r.waits.major_faults for r in records) / seconds
    elif label in ("compute", "environment"):
        phases = STEP if label == "compute" else (label,)
        figures["waiting_share"] = sum(r.seconds * r.wait(*phases) for r in records) / seconds
    return figures


def _whole(category: str) -> Lost:
    return lambda record, reference: record.share(category)


def _environment(record: Record, reference: Sequence[Record]) -> float:
    if record.share("environment") > _LARGE["environment"]:
        return record.share("environment")
    return record.wait("environment") + _grown(record, reference, ("environment",))


def _compute(record: Record, reference: Sequence[Record]) -> float:
    step_s = record.seconds / max(1, record.steps)
    layers = (record.layer_excess_s or 0.0) / step_s
    return record.wait(*STEP) + max(layers, _grown(record, reference, STEP))


def _grown(record: Record, reference: Sequence[Record], categories: Sequence[str]) -> float:
    """Share of the time computed beyond the earliest windows, where it is more than in any of them.

    As it is, and by the speed of the machine: of the two the less.
    """
    cpu_s, excess_s = _cpu(record, categories), math.inf
    for speed in (lambda each: 1.0, lambda each: each.probe_s):
        normal = [_cpu(each, categories) * speed(record) / speed(each) for each in reference]
        is_more = cpu_s > max(normal, default=math.inf)
        excess_s = min(excess_s, cpu_s - statistics.median(normal) if is_more else 0.0)
    return excess_s * record.steps / record.seconds


def _cpu(record: Record, categories: Sequence[str]) -> float:
    return sum(record.cpu_s.get(category, 0.0) for category in categories)


def _large(category: str) -> Lost:
    def lost(record: Record, reference: Sequence[Record]) -> float:
        share = record.share(category)
        return share if share > _LARGE[category] else 0.0

    return lost


def _memory(record: Record, reference: Sequence[Record]) -> float:
    """Where pages of this process come back: waiting for them, and what the kernel computes to find room."""
    waits = record.waits
    is_ours = waits.major_faults / record.seconds > _FAULTS_PER_S or abs(waits.swapped_bytes) > _SWAPPED_BYTES
    if not is_ours:
        return 0.0
    stalled = max(record.faulted, waits.memory_stalled_s / record.seconds)
    return min(1.0, stalled + waits.thread_system_s / record.seconds)


LABELS: dict[str, Lost] = {
    "data": _whole("data"),
    "environment": _environment,
    "compute": _compute,
    "transfer": _whole("transfer"),
    "optimiser": _large("optimiser"),
    "logging": _whole("logging"),
    "disk": _whole("checkpoint"),
    "cpu_throttled": _whole(THROTTLED),
    "memory_pressure": _memory,
    "callbacks": _whole("callbacks"),
    "validation": _large("validation"),
}

# What to do about each, and what that should do.
_REMEDIES = {
    "data": ("the training waits for data", "more num_workers of the DataLoader, or cheaper preparation"),
    "environment": ("the training waits for environments", "faster environments, or more side by side"),
    "compute": (
        "forward and backward take longer than they need",
        "look at profile_layers for slow or patched layers, and for what the step waits",
    ),
    "transfer": ("batches are moved for long", "pin_memory=True of the DataLoader, and smaller types"),
    "optimiser": ("the optimiser takes a good part of the time", "its fused=True, or fewer, larger steps"),
    "logging": (
        "loggers take time from the training",
        "a larger log_every_n_steps of the Trainer, or self.log in fewer steps",
    ),
    "disk": ("saves take time from the training", "rarer saves, or a faster disk"),
    "cpu_throttled": ("the CPU quota stops the training", "a larger quota, or fewer threads and workers"),
    "memory_pressure": (
        "the training waits for memory",
        "a larger memory limit, or a smaller batch or cache",
    ),
    "callbacks": ("callbacks take time from the training", "fewer of them, or fewer hooks for every batch"),
    "validation": (
        "validation takes a good part of the time",
        "a larger val_check_interval, or less data in it",
    ),
}


@runtime_checkable
class KnowsRemedies(Protocol):
    """A LightningModule whose own settings a recommendation should name."""

    def remedies(self) -> Mapping[str, str]:
        """What to try, by label of a bottleneck; what it does not name has a general remedy."""


def advice_on(bottleneck: Bottleneck, remedies: Mapping[str, str] | None = None) -> Advice:
    """A recommendation; above a fifth of the time it is of high priority."""
    what, remedy = _REMEDIES[bottleneck.label]
    remedy = (remedies or {}).get(bottleneck.label, remedy)
    priority: Priority = "high" if bottleneck.share > 0.2 else "medium"
    low, high = bottleneck.speed_up_interval
    source = f"exclusive times of phases over {bottleneck.num_windows} windows"
    times = f"{bottleneck.speed_up:.2f} times as fast without it"
    return Advice(
        f"bottleneck/{bottleneck.label}",
        priority,
        f"{what}, {bottleneck.share:.0%} of the time: try {remedy}",
        {"share": bottleneck.share, "low": bottleneck.low, "high": bottleneck.high, **bottleneck.evidence},
        "; ".join(filter(None, [source, bottleneck.confirmation])),
        expected=f"at most {times} ({low:.2f} to {high:.2f})",
        gain=bottleneck.speed_up,
        confidence=bottleneck.confidence,
    )
