"""Signals that ask a run to save, and mostly to end.

Knows nothing about saving: its handlers set a flag.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from .reason import Context, Reason, Trigger

STOPPING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGXCPU")
SAVING = ("SIGUSR2",)
_PATIENCE = 3  # this many Ctrl-C end a run that does not come to its next boundary


class Signals(Trigger):
    """Takes signals over while training, and gives them back.

    ``SIGUSR2`` is the operator's "save now and go on"; all others save and end the run with 128 + signal.
    A signal that was ignored stays so (``nohup``, jobs in the background of a shell). A second signal
    changes nothing but the count; a third Ctrl-C within the grace period of the first ends the run at
    once, unless a save is in progress.

    Signals often go to all processes of a job, so workers of a loader die of them too. torch reports that
    by an exception in the middle of a step; here it is not let through once a signal to stop has come.

    Args:
        stopping: names of signals after which the run ends.
        saving: names of signals after which it goes on.
        grace_s: seconds from the signal until somebody may lose patience and kill.
    """

    kind = "signal"

    def __init__(
        self, stopping: Sequence[str] = STOPPING, saving: Sequence[str] = SAVING, grace_s: float = 30.0
    ) -> None:
        super().__init__()
        for name in (*stopping, *saving):
            if not name.startswith("SIG") or name in ("SIGKILL", "SIGSTOP"):
                raise ValueError(f"signals must be names such as SIGTERM that can be handled, got {name!r}")
        self.stopping, self.saving, self.grace_s = tuple(stopping), tuple(saving), grace_s
        self.received: list[str] = []
        self._pending: list[Reason] = []  # appended to inside handlers, so never assigned anew
        self._before: dict[int, Any] = {}
        self._interrupts: list[float] = []
        self._process = os.getpid()
        self._lingers_until = float("-inf")
        self._reports: tuple[Any, Any] = (None, None)

    def start(self, context: Context) -> None:
        super().start(context)
        self._process = os.getpid()
        self._lingers_until = float("-inf")
        self._pending.clear()
        self._interrupts.clear()
        if threading.current_thread() is not threading.main_thread():
            context.note("signals are not watched: training does not run in the main thread")
            return
        names = (*self.stopping, *self.saving)
        if missing := [name for name in names if not hasattr(signal, name)]:
            context.note(f"signals this platform does not have are not watched: {', '.join(missing)}")
        for name in names:
            if name not in missing:
                self._take(getattr(signal, name))
        self._take_over_reports_of_workers()

    def _take(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        if before == signal.SIG_IGN:
            self._context.note(f"{number.name} was ignored when training began and stays so")
        else:
            signal.signal(number, self._handle)
            self._before[number] = before

    def _take_over_reports_of_workers(self) -> None:
        reports = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if not callable(reports):
            return

        def report(number: int, frame: FrameType | None) -> None:
            if not any(reason.is_stopping for reason in self._pending):
                reports(number, frame)

        signal.signal(signal.SIGCHLD, report)
        self._reports = (report, reports)

    def stop(self) -> None:
        self._give_back_reports()
        if not self.is_lingering:
            self._give_back()

    def _give_back_reports(self) -> None:
        report, reports = self._reports
        if report is not None and signal.getsignal(signal.SIGCHLD) is report:
            signal.signal(signal.SIGCHLD, reports)
        self._reports = (None, None)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:  # nobody took it over since
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    @property
    def is_lingering(self) -> bool:
        return self._context.clock() < self._lingers_until

    def linger(self, seconds: float = 10.0) -> dict[int, Any]:
        """Keep the handlers while a run ends, so that another signal does not change its exit code.

        Returns:
            The handlers by number, for whoever else is about to reset them.
        """
        self._lingers_until = self._context.clock() + seconds
        atexit.register(self._ignore)
        return dict.fromkeys(self._before, self._handle)

    def _ignore(self) -> None:
        """As the interpreter ends: it would set handlers of ours to the default, but leaves ignored ones."""
        if self.is_lingering and os.getpid() == self._process:
            for number in self._before:
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, signal.SIG_IGN)

    def fired(self) -> Reason | None:
        return max(self._pending, key=lambda reason: reason.is_stopping) if self._pending else None

    def rearm(self, reason: Reason) -> None:
        for answered in [r for r in self._pending if r is reason or not r.is_stopping]:
            self._pending.remove(answered)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # inherited by a worker, whose parent obeys for it
        name, now = signal.Signals(number).name, self._context.clock()
        self.received.append(name)
        if self._lingers_until != float("-inf"):
            self._pass_on(number)
            return
        is_stopping = name in self.stopping
        message = f"{name} received"
        self._pending.append(Reason(self.kind, message, number, self.grace_s, is_stopping, now))
        _say(f"{name}: saving at the next boundary{', then ending' if is_stopping else ''}\n")
        self._context.alarm()
        if number == signal.SIGINT and self._is_impatient(now):
            raise SystemExit(128 + number)

    def _pass_on(self, number: int) -> None:
        """The run has ended; what is not part of its end is for whom it would have been."""
        if not self.is_lingering:
            self._give_back()
            os.kill(os.getpid(), number)

    def _is_impatient(self, now: float) -> bool:
        self._interrupts.append(now)
        recent = [at for at in self._interrupts if now - at <= self.grace_s]
        return len(recent) >= _PATIENCE and not self._context.is_saving()


def _say(text: str) -> None:
    """Write from inside a handler, where a buffered stream may be in the middle of a write."""
    with contextlib.suppress(OSError):  # the terminal is gone, which may be why SIGHUP came
        os.write(2, text.encode())
