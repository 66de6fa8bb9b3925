"""Ctrl-C and SIGTERM end a run after a save; a second one ends it at once.

Knows nothing about what is saved.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop(Callback):
    """Takes the two signals over while training.

    It does so as training starts, after Lightning has taken SIGTERM: Lightning's own handler ends a run
    before the next boundary, and loses what came after the last save.

    Args:
        request_stop: called once, inside the signal handler.
    """

    def __init__(self, request_stop: Callable[[], None]) -> None:
        self._request_stop = request_stop
        self._before: dict[int, Any] = {}
        self.received: signal.Signals | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def release(self) -> None:
        """Give the signals back; Lightning leaves Ctrl-C ignored after it saw one."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        self._request_stop()
        print("\nsaving before the next step; again to stop at once", file=sys.stderr, flush=True)
