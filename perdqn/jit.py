"""Compiled kernels that also work where nothing can be cached.

Knows nothing about what the kernels compute.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


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


def _intrinsic(function: Callable[..., Any]) -> Any:  # mypy would have the typing context as an argument
    return intrinsic(function)


@_intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """In kernels: begin to load ``array[index]``, of one dimension, into the cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        load = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        loaded = context.make_array(array)(context, builder, args[0])
        address = cgutils.get_item_pointer(context, builder, array, loaded, [args[1]])
        to_read, to_keep, as_data = number(0), number(3), number(1)
        builder.call(load, [builder.bitcast(address, byte_pointer), to_read, to_keep, as_data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@functools.cache  # once per process, not once per kernel
def _warn_of_no_cache() -> None:
    warnings.warn(
        "compiled kernels cannot be cached, so every start compiles them anew (some seconds); "
        "point NUMBA_CACHE_DIR at a writable folder",
        RuntimeWarning,
        stacklevel=3,
    )
