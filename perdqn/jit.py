"""Compiled kernels that also work where nothing can be cached.

Knows nothing about what the kernels compute.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numba


def kernel(function: Callable[..., Any], fastmath: Collection[str] = ()) -> Callable[..., Any]:
    """Compile ``function`` on first use, cached on disk where a folder for it can be written.

    A read-only installation without a writable home has none; it compiles anew in every process
    and says so once.

    Args:
        fastmath: LLVM's flags for what may be rearranged, such as ``reassoc``; see Numba.
    """
    relaxed = set(fastmath) or False
    try:
        return numba.njit(cache=True, nogil=True, fastmath=relaxed)(function)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        _warn_of_no_cache()
        return numba.njit(nogil=True, fastmath=relaxed)(function)


@functools.cache  # once per process, not once per kernel
def _warn_of_no_cache() -> None:
    warnings.warn(
        "compiled kernels cannot be cached, so every start compiles them anew (some seconds); "
        "point NUMBA_CACHE_DIR at a writable folder",
        RuntimeWarning,
        stacklevel=3,
    )
