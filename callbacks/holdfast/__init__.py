"""Lightning callbacks that keep any training run alive.

Knows nothing about what is trained: no reinforcement learning, no environments. Nothing is imported
until it is asked for: `holdfast.storage` works without torch and Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auto_scaler import AutoScaler
    from .boundary import BoundaryCallback
    from .checkpoint import VerifiedCheckpoint
    from .emergency import EmergencyCheckpoint
    from .recovery import ErrorRecovery

_HOMES = {
    "AutoScaler": "auto_scaler",
    "BoundaryCallback": "boundary",
    "EmergencyCheckpoint": "emergency",
    "ErrorRecovery": "recovery",
    "VerifiedCheckpoint": "checkpoint",
}

__all__ = [
    "AutoScaler",
    "BoundaryCallback",
    "EmergencyCheckpoint",
    "ErrorRecovery",
    "VerifiedCheckpoint",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
