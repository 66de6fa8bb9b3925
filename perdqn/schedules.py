"""Values that change with the env step: a pure function of the step, so a resumed run cannot jump.

Knows nothing about what the value is used for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearSchedule:
    """``start`` at env step 0, ``end`` from env step ``num_steps`` on, a straight line between."""

    start: float
    end: float
    num_steps: int

    def __call__(self, env_step: int) -> float:
        if env_step >= self.num_steps:
            return self.end
        return self.start + (self.end - self.start) * env_step / self.num_steps
