"""Blocks are decompressed as the reference does, and damaged ones write nothing outside their place."""

import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdqn.replay.lz4_block import decompress

GUARD = 40


def decompressed(block, num):
    """What comes out, None if the block is refused; what lies around it must not change."""
    around = np.full(num + 2 * GUARD, 0xA5, np.uint8)
    source = np.frombuffer(b"\x5a" * GUARD + block + b"\x5a" * GUARD, np.uint8)
    is_sound = decompress(source, GUARD, GUARD + len(block), around, GUARD, GUARD + num)
    assert (around[:GUARD] == 0xA5).all()
    assert (around[GUARD + num :] == 0xA5).all()
    return around[GUARD : GUARD + num].tobytes() if is_sound else None


def reference(block, num):
    try:
        found = lz4.block.decompress(block, uncompressed_size=num)
    except lz4.block.LZ4BlockError:
        return None
    return found if len(found) == num else None


pieces = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(lambda unit, num: unit * num, st.binary(min_size=1, max_size=40), st.integers(1, 300)),
    ),
    max_size=12,
).map(b"".join)
MODES = [{}, {"mode": "high_compression", "compression": 2}, {"mode": "high_compression", "compression": 12}]


@pytest.mark.parametrize("mode", MODES, ids=str)
@given(content=pieces)
@settings(max_examples=200, deadline=None)
def test_what_was_compressed_comes_back(mode, content):
    block = lz4.block.compress(content, store_size=False, **mode)
    assert decompressed(block, len(content)) == content


@given(
    content=pieces,
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 9),
)
@settings(max_examples=400, deadline=None)
def test_a_damaged_block_writes_nothing_outside_and_means_what_the_reference_says(content, changes, cut):
    block = bytearray(lz4.block.compress(content, store_size=False))
    for at, value in changes:
        block[at % len(block)] = value
    block = bytes(block[: len(block) - cut])
    found, expected = decompressed(block, len(content)), reference(block, len(content))
    if None not in (found, expected):  # the format leaves open what else is refused at a block's end
        assert found == expected


@given(block=st.binary(max_size=60), num=st.integers(0, 300))
@settings(max_examples=400, deadline=None)
def test_random_bytes_write_nothing_outside(block, num):
    decompressed(block, num)


def test_a_block_of_another_size_is_refused():
    block = lz4.block.compress(b"abcd" * 20, store_size=False)
    assert decompressed(block, 80) == b"abcd" * 20
    assert decompressed(block, 79) is None
    assert decompressed(block, 81) is None
