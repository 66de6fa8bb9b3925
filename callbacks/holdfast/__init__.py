"""Lightning callbacks that keep any training run alive.

Knows nothing about what is trained: no reinforcement learning, no environments.
"""

from .boundary import BoundaryCheckpoint

__all__ = ["BoundaryCheckpoint"]
