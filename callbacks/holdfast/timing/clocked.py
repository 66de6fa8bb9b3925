"""Clocks around methods, for as long as somebody looks.

Knows nothing about whose methods they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, runtime_checkable

from .clock import PhaseClock

TimedMethod = tuple[Any, str, str]


@runtime_checkable
class TellsItsPhases(Protocol):
    """A LightningModule that says where its own time goes."""

    def timed_methods(self) -> Iterable[TimedMethod]:
        """Owner, name of its method and phase, as things are now.

        A phase is ``category/detail``. Of the categories ``data``, ``environment``, ``transfer``,
        ``forward``, ``backward``, ``optimiser``, ``callbacks``, ``logging``, ``checkpoint`` and
        ``validation`` bottlenecks are known; others are just shown.
        """


class ClockedMethods:
    """Methods of instances that are phases until the clocks are taken away."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._put: set[tuple[int, str]] = set()
        self._removals: list[Callable[[], None]] = []

    def put(self, methods: Iterable[TimedMethod]) -> None:
        """Those that have none yet get a clock."""
        for owner, name, phase in methods:
            if (id(owner), name) not in self._put and callable(getattr(owner, name, None)):
                self.around(owner, name, partial(self._timed, phase))

    def around(self, owner: Any, name: str, outer: Callable[..., Any]) -> None:
        """``outer`` is called instead of the method, with that first."""
        own = vars(owner).get(name)
        setattr(owner, name, partial(outer, getattr(owner, name)))
        put_back = partial(delattr, owner, name) if own is None else partial(setattr, owner, name, own)
        self._removals.append(put_back)
        self._put.add((id(owner), name))

    def take_away(self) -> None:
        """Every owner is as it was."""
        while self._removals:
            self._removals.pop()()
        self._put.clear()

    def __bool__(self) -> bool:
        return bool(self._removals)

    def _timed(self, phase: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._clock.enter(phase)
        try:
            return method(*args, **kwargs)
        finally:
            self._clock.leave()
