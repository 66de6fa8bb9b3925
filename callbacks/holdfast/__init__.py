"""Lightning callbacks that keep any training run alive.

Knows nothing about what is trained: no reinforcement learning, no environments.
"""

from ._boundary_checkpoint import BoundaryCheckpoint

__all__ = ["BoundaryCheckpoint"]
