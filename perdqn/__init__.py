"""Value-based agents with prioritized replay on PyTorch Lightning.

Imports nothing until it is asked for, so that `perdqn --help` answers at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdqn.module import PERDQN

__all__ = ["PERDQN", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "PERDQN":
        from perdqn.module import PERDQN

        return PERDQN
    if name == "__version__":
        from importlib.metadata import version

        return version("perdqn")
    raise AttributeError(f"module 'perdqn' has no attribute {name!r}")
