"""Frames are gathered as numpy would, and scaled to the bits the network's own encoder makes."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replays import MIXED, filled, random_frames, spec_of

from perdqn.learning.networks import Encoder, ToImage
from perdqn.replay.buffers import Buffers
from perdqn.replay.frames import NO_FRAME, RawFrames
from perdqn.transition import OBS, Column

IMAGE = Column(OBS, (84, 84), np.dtype(np.uint8))
COLUMNS = [
    IMAGE,
    Column(OBS, (3, 5), np.dtype(np.uint8)),
    Column(OBS, (5, 7, 3), np.dtype(np.uint8)),
    Column(OBS, (7,), np.dtype(np.uint8)),
    Column(OBS, (), np.dtype(np.int64), 7),
    Column(OBS, (2, 3), np.dtype(np.float32)),
    Column(OBS, (), np.dtype(np.bool_)),
]


def random_stored(column, num, seed=0):
    stored, frames = RawFrames(column, num), random_frames(np.random.default_rng(seed), (column,), num)[OBS]
    stored[np.arange(num)] = frames
    return stored, frames


def taken(frames, slots):
    """What a gather should be."""
    found = frames[slots]
    found[slots == NO_FRAME] = 0
    return found


slots_of_20 = st.lists(st.integers(NO_FRAME, 19), min_size=1, max_size=30)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.dtype}{list(column.shape)}")
@given(slots=slots_of_20, start=st.integers(0, 15), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_gather_is_what_indexing_gives(column, slots, start, seed):
    stored, frames = random_stored(column, 20, seed)
    slots = np.array([*slots, *range(start, start + 5), NO_FRAME, 0])  # some of them next to each other
    found = stored.gather(slots)
    assert found.dtype == column.dtype
    np.testing.assert_array_equal(found, taken(frames, slots))


def test_a_gather_has_the_shape_of_its_slots():
    stored, frames = random_stored(IMAGE, 20)
    slots = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(stored.gather(slots), frames[slots])
    assert stored.gather(slots[:0]).shape == (0, 4, 84, 84)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.dtype}{list(column.shape)}")
def test_only_images_of_bytes_are_scaled(column):
    stored, frames = random_stored(column, 20)
    slots = np.array([3, 4, 5, NO_FRAME, 9])
    found = stored.gather(slots, scaled=True)
    expected = taken(frames, slots)
    if column.is_image and column.dtype == np.uint8:
        expected = expected.astype(np.float32) * np.float32(1 / 255)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


# -- of a replay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(84, 84), (10, 9, 3), (3, 11, 12)], ids=str)
@pytest.mark.parametrize("frame_stack", [1, 4])
def test_a_scaled_batch_is_bit_for_bit_what_the_encoder_makes_of_bytes(shape, frame_stack):
    spec = spec_of((Column(OBS, shape, np.dtype(np.uint8)),), frame_stack)
    replays = [filled(num_steps=60, spec=spec, n_step=3) for _ in range(2)]
    as_bytes, as_floats = replays[0].sample(32), replays[1].sample(32, scaled=True)
    encoder = Encoder(spec)
    for side in ("obs", "next_obs"):
        of_bytes, of_floats = getattr(as_bytes, side), getattr(as_floats, side)
        assert (of_bytes[OBS].dtype, of_floats[OBS].dtype) == (torch.uint8, torch.float32)
        assert torch.equal(encoder(of_bytes), encoder(of_floats))


def test_only_images_of_bytes_change_in_a_scaled_batch():
    spec = spec_of(MIXED, frame_stack=3)
    replays = [filled(spec=spec) for _ in range(2)]
    plain, scaled = replays[0].sample(16), replays[1].sample(16, scaled=True)
    for name, column in plain.next_obs.items():
        is_image = name == "image"
        expected = column.float() * torch.tensor(1 / 255) if is_image else column
        assert scaled.next_obs[name].dtype == expected.dtype
        assert torch.equal(scaled.next_obs[name], expected)


def test_an_image_that_is_scaled_already_is_not_scaled_again():
    image = torch.rand(2, 4, 8, 8)
    assert torch.equal(ToImage((4, 8, 8))(image), image)


# -- memory used again ---------------------------------------------------------------------------

SHAPE, BYTE = (1 << 17,), np.dtype(np.uint8)


@pytest.mark.parametrize(
    "kept",
    [
        lambda array: array,
        lambda array: array[3:5],
        lambda array: array.reshape(2, -1)[1].view(np.int8)[:1],
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array)[7:].view(torch.int8),
        lambda array: torch.from_numpy(array)[7:].numpy()[:2],
        lambda array: memoryview(array)[:9],
        lambda array: {"deep": [array]},
    ],
)
def test_a_buffer_is_not_handed_out_again_while_anything_of_it_lives(kept):
    buffers = Buffers()
    held = kept(buffers.take(SHAPE, BYTE))
    others = [buffers.take(SHAPE, BYTE) for _ in range(5)]
    for other in others:
        other[:] = 1
    first = held["deep"][0] if isinstance(held, dict) else held
    assert not any(np.shares_memory(np.asarray(first), other) for other in others)


def test_a_buffer_is_used_again_once_nobody_refers_to_it():
    buffers = Buffers()
    addresses = set()
    for _ in range(20):
        held = torch.from_numpy(buffers.take(SHAPE, BYTE))
        addresses.add(held.data_ptr())
        graph = held.float().requires_grad_()
        del held, graph
        gc.collect()
    assert len(addresses) == 1


@pytest.mark.parametrize("size", [1, 1 << 15, 1 << 16, 1 << 20])
def test_an_array_has_the_shape_and_dtype_asked_for(size):
    buffers = Buffers()
    for shape, dtype in (((size, 2), BYTE), ((size,), np.dtype(np.float32)), ((2, size), BYTE)):
        array = buffers.take(shape, dtype)
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, dtype, True)
        assert array.ctypes.data % 64 == 0 or array.nbytes < 1 << 16


def test_at_most_so_many_buffers_are_kept():
    buffers = Buffers(most=2)
    addresses = [buffers.take((size,), BYTE).ctypes.data for size in (1 << 17, 1 << 18, 1 << 19)]
    assert buffers.take((1 << 18,), BYTE).ctypes.data == addresses[1]
    assert len(buffers._kept) == 2
    buffers.release()
    assert not buffers._kept


def test_batches_held_stay_as_they_were_drawn():
    spec = spec_of((IMAGE,), frame_stack=4)
    replay = filled(num_steps=60, spec=spec, n_step=3)
    drawn = [(batch, batch.obs[OBS].clone()) for batch in (replay.sample(32) for _ in range(8))]
    replay.release_memory()
    drawn += [(batch, batch.obs[OBS].clone()) for batch in (replay.sample(32) for _ in range(8))]
    assert all(torch.equal(batch.obs[OBS], before) for batch, before in drawn)
