"""What can call for an emergency save, one file each.

Knows nothing about Lightning, nor what is done when one fires.
"""

from .deadline import Deadline
from .disk import Disk, Reserve
from .memory import Memory
from .numerics import Numerics, non_finite
from .pace import Pace
from .preemption import Preemption
from .reason import Context, Reason, Trigger
from .signals import Signals
from .watch import Watch

__all__ = [
    "Context",
    "Deadline",
    "Disk",
    "Memory",
    "Numerics",
    "Pace",
    "Preemption",
    "Reason",
    "Reserve",
    "Signals",
    "Trigger",
    "Watch",
    "non_finite",
]
