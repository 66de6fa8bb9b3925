"""A thread that reads figures about once a second, keeps them, foretells and raises alarms.

Knows nothing about Lightning, nor what is done about an alarm.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .alerts import Alert, Alerts, Threshold
from .forecast import Forecast, time_to_end, time_to_limit
from .history import History
from .journal import Journal
from .reader import Reader
from .sampler import Sampler

PREFIX = "resource/"
MIB = 2**20
SHARED = ("memory_", "pressure_", "disk_free", "disk_size", "disk_full", "shm_")  # by all ranks of a machine
_RELEASING = ("memory", "memory_forecast", "memory_pressure")
_RELEASE_AGAIN_S = 60.0
_FORECAST_EVERY_S = 20.0
_POINTS = 48  # of each scale of the history


class Progress(NamedTuple):
    """What only the run itself knows; told at its boundaries.

    Attributes:
        step: x-axis of what is logged.
        share: of the work that is done, 0 to 1; None where nobody knows.
        memory_to_come_bytes: what will still be taken by design, as by a replay that fills.
    """

    step: int = 0
    share: float | None = None
    memory_to_come_bytes: int = 0


class Watching:
    """All that is known of the machine; `poll` is one turn of the thread.

    Args:
        readers: what is read.
        folder: where to write ``resources.jsonl`` and ``alerts.jsonl``; None is nowhere.
        who: added to every line: rank and local rank; a rank's files have it in their name, but the first's.
        thresholds: see `Alerts`.
        interval_s: between two samples.
        write_every_s: between two lines of ``resources.jsonl``.
        clock: seconds, monotonic.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        folder: Path | None = None,
        who: Mapping[str, int] | None = None,
        thresholds: Sequence[Threshold] = (),
        interval_s: float = 1.0,
        write_every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.history = History()
        self.alerts = Alerts(thresholds)
        self.newest: dict[str, float] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=200)  # what the alerts' file says
        self.messages: deque[str] = deque(maxlen=50)  # not yet said to the user
        self.progress = Progress()
        self.is_release_due = False
        self._sampler = Sampler(readers, self.note)
        self._who, self._is_first = dict(who or {}), not (who or {}).get("rank")
        self._is_shared_ours = not (who or {}).get("local_rank")
        suffix = "" if self._is_first else f"-rank{self._who['rank']}"
        names = ("resources", "alerts") if folder is not None else ()
        paths = {name: Path(folder or "", f"{name}{suffix}.jsonl") for name in names}
        self._files = {name: Journal(path, self.note) for name, path in paths.items()}
        self._interval_s, self._write_every_s = interval_s, write_every_s
        self._clock, self._wall_clock = clock, wall_clock
        self._noted: set[str] = set()
        self._lock = threading.Lock()  # of the history
        self._foretold: dict[str, float] = {}
        self._foretold_at = self._written_at = self._released_at = float("-inf")
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # -- the thread ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; where it runs already, nothing happens."""
        if self._thread is None:
            self._ended = threading.Event()
            arguments = (self._ended,)
            self._thread = threading.Thread(
                target=self._run, args=arguments, name="holdfast-resources", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End; a reader that hangs, as on a dead network file system, is left behind."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)
        self._thread = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                self.poll()
            except Exception as error:  # never the training's problem
                self.note(f"resources could not be watched: {error!r}")
            ended.wait(self._interval_s)

    def poll(self) -> None:
        """Read what is due, and act on it."""
        now = self._clock()
        figures = self._sampler.sample(now)
        progress = self.progress
        if "memory_used_bytes" in figures:
            expected = figures["memory_used_bytes"] + progress.memory_to_come_bytes
            limit = figures["memory_used_bytes"] + figures["memory_free_bytes"]
            figures |= {"memory_expected_bytes": expected, "memory_expected_share": expected / limit}
        if progress.share is not None:
            figures["progress"] = progress.share
        with self._lock:
            self.history.add(now, figures)
        if now - self._foretold_at >= _FORECAST_EVERY_S:
            self._foretold_at = now
            self._foretell()
        self._raise(now, {**figures, **self._foretold})
        finite = {name: value for name, value in self._foretold.items() if math.isfinite(value)}
        self.newest = {**figures, **finite}
        if now - self._written_at >= self._write_every_s:
            self._written_at = now
            self._write("resources", {PREFIX + name: value for name, value in self._own(self.newest).items()})

    # -- what follows from the figures -----------------------------------------------------------

    def forecast(self) -> dict[str, Forecast]:
        """When ``memory`` and ``disk`` are full and the run is at its ``end``, from now on."""
        with self._lock:
            series = {
                name: self.history.series(name, _POINTS)
                for name in ("memory_expected_bytes", "memory_used_bytes", "disk_free_bytes", "progress")
            }
        newest = self.newest
        found: dict[str, Forecast] = {}
        if "memory_expected_bytes" in newest:
            free = newest["memory_free_bytes"]
            limit = newest["memory_used_bytes"] + free
            fits = newest["memory_expected_bytes"] < limit  # else what was announced comes true until then
            course = series["memory_expected_bytes" if fits else "memory_used_bytes"]
            found["memory"] = time_to_limit(course, limit, _resolution(free))
        if "disk_size_bytes" in newest:
            size, left = newest["disk_size_bytes"], series["disk_free_bytes"]
            taken = left._replace(means=size - left.means, peaks=size - left.means)
            found["disk"] = time_to_limit(taken, size, _resolution(newest["disk_free_bytes"]))
        if len(series["progress"].times):
            found["end"] = time_to_end(series["progress"])
        return found

    def _foretell(self) -> None:
        found = self.forecast()
        names = {"memory": "memory_full", "disk": "disk_full", "end": "end"}
        self._foretold = {
            f"{names[name]}_{which}_s": value
            for name, forecast in found.items()
            for which, value in zip(("in", "at_soonest", "at_latest"), forecast[:3], strict=True)
        }

    def _raise(self, now: float, figures: Mapping[str, float]) -> None:
        for alert in self.alerts.check(now, figures):
            if alert.state == "raised" and alert.kind in _RELEASING:
                self._released_at = float("-inf")
            if self._is_shared_ours or not any(name.startswith(SHARED) for name in alert.figures):
                self._tell(alert)
        is_critical = any(kind in self.alerts.raised for kind in _RELEASING)
        if is_critical and now - self._released_at >= _RELEASE_AGAIN_S:
            self._released_at, self.is_release_due = now, True

    def _tell(self, alert: Alert) -> None:
        is_over = alert.state == "cleared"
        self.messages.append(
            f"the alarm about {alert.kind} is over" if is_over else f"{alert.message}; {alert.remedy}"
        )
        self.record(alert.as_dict())

    def record(self, event: Mapping[str, Any]) -> None:
        """Something worth a line in the alerts' file."""
        self.recent.append(self._write("alerts", event))

    def note(self, text: str) -> None:
        """A sentence for the user, the same one only once."""
        if text not in self._noted and len(self._noted) < 100:
            self._noted.add(text)
            self.messages.append(text)

    def _own(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Without those that another rank of this machine writes."""
        return {n: v for n, v in figures.items() if self._is_shared_ours or not n.startswith(SHARED)}

    def _write(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        line = {"time": self._wall_clock(), "step": self.progress.step, **self._who, **content}
        if name in self._files:
            self._files[name].add(line)
        return line


def _resolution(free: float) -> float:
    """Changes that are of no interest where so much is free."""
    return max(float(MIB), 0.002 * free)
