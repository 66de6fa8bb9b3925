"""Compiled kernels that also work where nothing can be cached.

Knows nothing about what the kernels compute.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` on first use, cached on disk where a folder for it can be written.

    A read-only installation without a writable home has none; it compiles anew in every process
    and says so once.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        _warn_of_no_cache()
        return numba.njit(nogil=True)(function)


@functools.cache  # once per process, not once per kernel
def _warn_of_no_cache() -> None:
    warnings.warn(
        "compiled kernels cannot be cached, so every start compiles them anew (some seconds); "
        "point NUMBA_CACHE_DIR at a writable folder",
        RuntimeWarning,
        stacklevel=3,
    )
