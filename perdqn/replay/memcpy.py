"""Moves of bytes inside kernels at the machine's speed, which loops over array elements do not reach.

Knows nothing about frames or rows. Nothing here checks bounds: that is the calling kernel's duty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

WIDE = 16  # elements moved at once

_BYTES = ir.VectorType(ir.IntType(8), WIDE)
_FLOATS = ir.VectorType(ir.FloatType(), WIDE)
_SCALE = ir.Constant(_FLOATS, [float(np.float32(1 / 255))] * WIDE)


def _intrinsic(function: Callable[..., Any]) -> Any:  # mypy would have the typing context as an argument
    return intrinsic(function)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@_intrinsic
def copy_bytes(typing: Any, to: Any, at: Any, source: Any, begin: Any, num: Any) -> Any:
    """``to[at : at + num] = source[begin : begin + num]`` of flat uint8 arrays that do not overlap there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        into = _address(context, builder, signature.args[0], args[0], args[1])
        out_of = _address(context, builder, signature.args[2], args[2], args[3])
        cgutils.raw_memcpy(builder, into, out_of, args[4], 1)
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp, types.intp), generate


@_intrinsic
def fill_bytes(typing: Any, to: Any, at: Any, num: Any, value: Any) -> Any:
    """``to[at : at + num] = value`` of a flat uint8 array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        into = _address(context, builder, signature.args[0], args[0], args[1])
        cgutils.memset(builder, into, args[2], args[3])
        return context.get_dummy_value()

    return types.void(to, types.intp, types.intp, types.uint8), generate


@_intrinsic
def copy_16(typing: Any, to: Any, at: Any, source: Any, begin: Any) -> Any:
    """``to[at : at + 16] = source[begin : begin + 16]`` of flat uint8 arrays, read before it is written."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        into = _address(context, builder, signature.args[0], args[0], args[1])
        out_of = _address(context, builder, signature.args[2], args[2], args[3])
        moved = builder.load(builder.bitcast(out_of, _BYTES.as_pointer()), align=1)
        builder.store(moved, builder.bitcast(into, _BYTES.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp), generate


@_intrinsic
def scale_16(typing: Any, to: Any, at: Any, source: Any, begin: Any) -> Any:
    """``to[at : at + 16] = source[begin : begin + 16] * float32(1 / 255)``, from uint8 to float32."""
    return types.void(to, types.intp, source, types.intp), _scaled(4)


@_intrinsic
def stream_16(typing: Any, to: Any, at: Any, source: Any, begin: Any) -> Any:
    """`scale_16` past the caches, which need not read first what is overwritten whole.

    ``to[at]`` lies at a multiple of 64 bytes, and `finish_stream` follows before anybody else reads.
    """
    return types.void(to, types.intp, source, types.intp), _scaled(64, past_caches=True)


def _scaled(alignment: int, past_caches: bool = False) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        into = _address(context, builder, signature.args[0], args[0], args[1])
        out_of = _address(context, builder, signature.args[2], args[2], args[3])
        read = builder.load(builder.bitcast(out_of, _BYTES.as_pointer()), align=1)
        scaled = builder.fmul(builder.uitofp(read, _FLOATS), _SCALE)
        written = builder.store(scaled, builder.bitcast(into, _FLOATS.as_pointer()), align=alignment)
        if past_caches:
            written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return generate


@_intrinsic
def finish_stream(typing: Any) -> Any:
    """Let other threads see what `stream_16` wrote."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
