"""One hook Lightning has no name for: its loops' own methods, of one trainer.

Knows nothing about what is done around them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def around(owner: Any, name: str, outer: Callable[..., Any]) -> None:
    """Lightning calls its loops' methods through the instance, so one instance can have another method.

    ``outer`` is called with the original first.
    """
    setattr(owner, name, partial(outer, getattr(owner, name)))
