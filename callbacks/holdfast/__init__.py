"""Lightning callbacks that keep any training run alive.

Knows nothing about what is trained: no reinforcement learning, no environments. Nothing is imported
until it is asked for: `holdfast.storage` works without torch and Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .advising.tuner import HyperparameterTuner
    from .auto_scaler import AutoScaler
    from .boundary import BoundaryCallback
    from .checkpoint import VerifiedCheckpoint
    from .emergency import EmergencyCheckpoint
    from .performance_monitor import PerformanceMonitor
    from .recovery import ErrorRecovery
    from .resource_monitor import ResourceMonitor
    from .tuning_advisor import TuningAdvisor

_HOMES = {
    "AutoScaler": "auto_scaler",
    "BoundaryCallback": "boundary",
    "EmergencyCheckpoint": "emergency",
    "ErrorRecovery": "recovery",
    "ResourceMonitor": "resource_monitor",
    "PerformanceMonitor": "performance_monitor",
    "HyperparameterTuner": "advising.tuner",
    "TuningAdvisor": "tuning_advisor",
    "VerifiedCheckpoint": "checkpoint",
}

__all__ = [
    "AutoScaler",
    "BoundaryCallback",
    "EmergencyCheckpoint",
    "ErrorRecovery",
    "HyperparameterTuner",
    "PerformanceMonitor",
    "ResourceMonitor",
    "TuningAdvisor",
    "VerifiedCheckpoint",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
