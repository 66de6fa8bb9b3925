"""Compressed frames are those written, whatever is overwritten, and take no more memory than they must."""

import sys

import numpy as np
import pytest
from holdfast.storage.parts import PartStore
from hypothesis import given, settings
from hypothesis import strategies as st
from replays import assert_same, assert_same_batch, filled, frozen, random_step, spec_of

from perdqn.replay.compressed_frames import CompressedFrames
from perdqn.replay.frames import NO_FRAME, RawFrames
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column

LARGE, SMALL = Column(OBS, (84, 84), np.dtype(np.uint8)), Column(OBS, (5, 3), np.dtype(np.uint8))
NUM, RINGS = 24, 2


def frame_of(rng, column, kind):
    noise = rng.integers(0, 256, column.shape).astype(np.uint8)
    return {"noise": noise, "flat": np.full_like(noise, noise.flat[0]), "mixed": noise * (noise > 200)}[kind]


writes = st.lists(
    st.tuples(st.integers(0, NUM - 1), st.sampled_from(["noise", "flat", "mixed"])), min_size=1, max_size=60
)


@pytest.mark.parametrize("column", [LARGE, SMALL], ids=["84x84", "5x3"])
@pytest.mark.parametrize("num_cached", [0, 1, 7])
@given(writes=writes, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_writes_read_as_those_of_raw_frames(column, num_cached, writes, seed):
    rng = np.random.default_rng(seed)
    raw, compressed = RawFrames(column, NUM), CompressedFrames(column, NUM, RINGS, num_cached)
    for slot, kind in writes:
        frame = frame_of(rng, column, kind)
        raw[np.array([slot])] = compressed[np.array([slot])] = frame[None]
        slots = rng.integers(NO_FRAME, NUM, (6, 4))
        slots[0] = slot
        scaled = bool(rng.integers(2))
        found = compressed.gather(slots, scaled)
        assert found.dtype == (np.float32 if scaled else np.uint8)
        np.testing.assert_array_equal(found, raw.gather(slots, scaled))
        if rng.random() < 0.1:
            compressed.release_memory()
        compressed.check_valid()
    np.testing.assert_array_equal(compressed[3:20], raw[3:20])
    compressed[5:9] = 0
    assert not compressed[5:9].any()


def written(num_rows, kind, num_rings=1, num_slots=100):
    """Rings of frames, written in turn."""
    frames, rng = CompressedFrames(LARGE, num_slots, num_rings), np.random.default_rng(0)
    length = num_slots // num_rings
    for row in range(num_rows):
        slots = np.arange(num_rings) * length + row % length
        frames[slots] = np.stack([frame_of(rng, LARGE, kind) for _ in slots])
    frames.check_valid()
    return frames


def test_frames_that_shrink_take_less_and_noise_takes_hardly_more_than_its_bytes():
    num_bytes = 2000 * 84 * 84
    assert written(2000, "flat", num_slots=2000).nbytes < num_bytes / 12
    assert (
        written(2000, "noise", num_slots=2000).nbytes < 1.15 * num_bytes
    )  # 63 of 64 KiB used, grown by a 16th


@pytest.mark.parametrize("num_rings", [1, 4])
@pytest.mark.parametrize("kind", ["flat", "noise"])
def test_rings_that_go_round_take_no_more_memory_than_once(kind, num_rings):
    once = written(400 // num_rings, kind, num_rings, 400)
    often = written(2000 // num_rings, kind, num_rings, 400)
    chunks = 2 * num_rings + 16  # of each ring the one being filled and the one dying; growth
    assert often.nbytes <= once.nbytes + chunks * 65536


def test_memory_is_handed_back_once_frames_shrink():
    frames = written(100, "noise")
    before = frames.nbytes
    for _ in range(40):  # until the ring has left the chunk it was filling
        for slot in range(100):
            frames[np.array([slot])] = np.zeros((1, 84, 84), np.uint8)
    frames.release_memory()
    frames.check_valid()
    assert frames.nbytes < before / 4


def test_the_full_size_is_foretold_from_what_is_there():
    part, full = written(50, "mixed"), written(100, "mixed")
    assert part.nbytes_when_full == pytest.approx(full.nbytes_when_full, rel=0.05)  # frames alike


def test_the_cache_counts_each_frame_of_a_batch_once_and_keeps_what_is_asked_for_twice():
    frames = CompressedFrames(LARGE, 10, 1, num_cached=10)
    frames[0:10] = np.arange(10, dtype=np.uint8)[:, None, None]
    slots, counts = np.array([[1, 2, 3], [3, 3, NO_FRAME]]), []
    for _ in range(3):
        frames.gather(slots)
        counts.append(frames.cache_counts)
    assert counts == [(0, 3), (0, 6), (3, 6)]
    frames[np.array([2])] = np.full((1, 84, 84), 77, np.uint8)
    assert (frames.gather(np.array([2])) == 77).all()
    assert frames.cache_counts == (3, 7)
    frames[0:10]
    assert frames.cache_counts == (3, 7), "a save is no look-up"


def test_a_cache_that_was_given_up_takes_nothing_and_frames_are_those_they_were():
    frames = CompressedFrames(LARGE, 10, 1, num_cached=10)
    frames[0:10] = np.arange(10, dtype=np.uint8)[:, None, None]
    slots = np.array([[1, 2, 3]])
    before = [frames.gather(slots).copy() for _ in range(3)][-1]
    frames.drop_cache()
    assert frames.cache_nbytes == 0
    assert (frames.gather(slots) == before).all()
    frames[np.array([2])] = np.full((1, 84, 84), 77, np.uint8)
    assert (frames.gather(np.array([2])) == 77).all()


def test_without_lz4_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lz4", None)
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(ValueError, match=r"model.replay.storage lz4 needs lz4: pip install 'perdqn\[lz4\]'"):
        CompressedFrames(LARGE, 10, 1)


def test_a_damaged_frame_is_not_handed_out():
    frames = written(10, "mixed")
    frames._arena[:] = 0xFF
    with pytest.raises(RuntimeError, match="damaged"):
        frames.gather(np.array([3]))


# -- in a replay ---------------------------------------------------------------------------------

COLUMNS = (SMALL, Column("place", (2,), np.dtype(np.float32)), Column("mask", (4, 4), np.dtype(np.uint8)))
SETTINGS = [  # num_envs, ring length, n_step, frame_stack, padding
    (1, 12, 1, 1, "zero"),
    (1, 40, 3, 4, "zero"),
    (3, 17, 3, 4, "repeat"),
    (5, 31, 1, 2, "repeat"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_envs", "length", "n_step", "stack", "padding"), SETTINGS)
def test_batches_and_saves_are_those_of_raw_storage_after_any_operations(
    num_envs, length, n_step, stack, padding, seed, tmp_path
):
    rng = np.random.default_rng([seed, num_envs, length])
    spec = spec_of(COLUMNS, stack, padding)

    def make(storage):
        return PrioritizedReplay(
            spec, num_envs, num_envs * length, n_step=n_step, storage=storage, cached_frames=5
        )

    pair, folders = [make("raw"), make("lz4")], [tmp_path / "raw", tmp_path / "lz4"]
    for _ in range(8 * length):
        operation = rng.random()
        if operation < 0.7:
            step = random_step(rng, spec, num_envs, 0.1)
            for replay in pair:
                replay.add(*step)
        elif operation < 0.75:
            env, step = int(rng.integers(num_envs)), random_step(rng, spec, num_envs)
            for replay in pair:
                replay.cut(env, {name: frame[env] for name, frame in step[0].items()})
        elif operation < 0.9 and len(pair[0]):
            scaled = bool(rng.integers(2))
            batches = [replay.sample(6, 0.5, scaled) for replay in pair]
            assert_same_batch(*batches)
            priorities = rng.exponential(size=6)
            for replay in pair:
                replay.update_priorities(batches[0].id, priorities)
        elif operation < 0.93:
            pair[1].release_memory(caches=operation < 0.91)
            entries = [
                replay.save_parts(PartStore(folder)) for replay, folder in zip(pair, folders, strict=True)
            ]
            assert entries[0] == entries[1], "files are the same to the last byte"
            if rng.random() < 0.5:  # each goes on from what the other has saved
                pair = [make("raw"), make("lz4")] if rng.random() < 0.5 else pair
                for replay, folder, entry in zip(pair, folders[::-1], entries, strict=True):
                    replay.load_parts(PartStore(folder), entry)
        elif operation < 0.96:
            states = [frozen(replay.state_dict()) for replay in pair]
            assert_same(*states)
            for replay, state in zip(pair, states[::-1], strict=True):
                replay.load_state_dict(state)
        for stored in pair[1].rows.frames.values():
            if isinstance(stored, CompressedFrames):
                stored.check_valid()
    assert [isinstance(stored, CompressedFrames) for stored in pair[1].rows.frames.values()] == [
        True,
        False,
        True,
    ]


def test_memory_and_statistics_name_what_compressed_frames_take():
    replay = filled(spec=spec_of((LARGE,), frame_stack=4), num_steps=100, storage="lz4", cached_frames=1024)
    usage = replay.get_memory_usage()
    stored = replay.rows.frames[OBS]
    assert usage["parts"][f"frames/{OBS}"] == stored.nbytes
    assert usage["parts"][f"frame_cache/{OBS}"] == stored.cache_nbytes >= 1024 * 84 * 84
    assert usage["bytes_per_transition"] * replay.capacity >= stored.nbytes_when_full
    for _ in range(5):
        replay.sample(32)
    stats = replay.get_performance_stats()
    assert stats["frame_cache_hits"] > 0
    lookups = stats["frame_cache_hits"] + stats["frame_cache_misses"]
    assert stats["frame_cache_hit_rate"] == stats["frame_cache_hits"] / lookups


@pytest.mark.parametrize("setting", [{"storage": "zip"}, {"cached_frames": -1}], ids=str)
def test_a_storage_setting_out_of_range_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        filled(num_steps=0, **setting)
