"""Looks at what cannot report by itself, about once a second, beside the training.

Knows nothing about what is looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from .reason import Context, Trigger


class Watch:
    """A daemon thread that polls triggers, and another for those whose polls may wait for something."""

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        self._triggers = [trigger for trigger in triggers if type(trigger).poll is not Trigger.poll]
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, context: Context) -> None:
        """Begin to poll; the triggers have been started."""
        self._ended = threading.Event()
        for may_block in (False, True):
            if group := [t for t in self._triggers if t.may_block is may_block]:
                name = "holdfast-network" if may_block else "holdfast-watch"
                arguments = (group, context, self._ended)
                self._threads.append(threading.Thread(target=_run, args=arguments, name=name, daemon=True))
                self._threads[-1].start()

    def stop(self) -> None:
        """End, waiting for no poll that waits for something itself."""
        self._ended.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=0.5)
        self._threads = []


def _run(triggers: list[Trigger], context: Context, ended: threading.Event) -> None:
    due = dict.fromkeys(triggers, context.clock())
    while due:
        now = context.clock()
        for trigger in [trigger for trigger, at in due.items() if at <= now]:
            if poll_once(trigger, context):
                due[trigger] = now + trigger.interval_s
            else:
                del due[trigger]
        if ended.wait(max(0.01, min(due.values(), default=0.0) - context.clock())):
            return


def poll_once(trigger: Trigger, context: Context) -> bool:
    """Whether it can go on: a watch that fails says so and leaves the run alone."""
    try:
        trigger.poll()
    except Exception as error:
        context.note(f"{trigger.kind} is no longer watched: {error!r}")
        return False
    return True
