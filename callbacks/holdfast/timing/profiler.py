"""A Lightning profiler that measures for moments, and otherwise costs less than none.

Knows nothing about when to measure, nor what is made of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch.profilers import PassThroughProfiler, Profiler

from .actions import phase_of
from .clock import PhaseClock, Span

_SAVING = "save_checkpoint"


class _Nothing:
    """One context for everybody, where Lightning's own profiler would make a generator each time."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


_NOTHING = _Nothing()


class _Both:
    """The user's profiler around our clock."""

    __slots__ = ("_inner", "_own")

    def __init__(self, inner: AbstractContextManager[Any], own: Any) -> None:
        self._inner, self._own = inner, own

    def __enter__(self) -> Any:
        entered = self._inner.__enter__()
        self._own.__enter__()
        return entered

    def __exit__(self, *error: Any) -> Any:
        self._own.__exit__()
        return self._inner.__exit__(*error)


class PhaseProfiler(Profiler):
    """Stands around the trainer's profiler, which goes on to see everything.

    While `is_measuring`, what Lightning profiles becomes phases of the clock; saves do always, since they are
    rare.

    Args:
        clock: its phases are `actions.phase_of` what Lightning says.
        inner: the profiler that the user has set; None is none.
    """

    def __init__(self, clock: PhaseClock, inner: Profiler | None = None) -> None:
        super().__init__()
        self.inner = inner or PassThroughProfiler()
        self.is_measuring = False
        self._clock = clock
        self._is_inner_idle = type(self.inner) is PassThroughProfiler
        self._spans: dict[str, Any] = {}

    def profile(self, action_name: str) -> Any:
        own = self._span(action_name) if self.is_measuring or action_name == _SAVING else _NOTHING
        return own if self._is_inner_idle else _Both(self.inner.profile(action_name), own)

    def start(self, action_name: str) -> None:
        if not self._is_inner_idle:
            self.inner.start(action_name)
        if self.is_measuring:
            self._span(action_name).__enter__()

    def stop(self, action_name: str) -> None:
        if self.is_measuring:
            self._span(action_name).__exit__()
        if not self._is_inner_idle:
            self.inner.stop(action_name)

    def _span(self, action: str) -> Span | _Nothing:
        span = self._spans.get(action)
        if span is None:
            phase = phase_of(action)
            span = self._spans[action] = _NOTHING if phase is None else self._clock.span(phase)
        return span

    def summary(self) -> str:
        return self.inner.summary()

    def describe(self) -> None:
        self.inner.describe()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        self.inner.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        if "inner" in vars(self):  # also called as an object goes that was never whole
            self.inner.teardown(stage)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)
