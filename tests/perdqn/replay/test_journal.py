"""The replay through parts: every bit comes back from any generation, and a save writes what is new."""

import hashlib
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from holdfast.storage.generations import File, GenerationFolder
from holdfast.storage.parts import DamagedPart, PartStore
from replays import (
    MIXED,
    VECTOR,
    Store,
    assert_same,
    assert_same_batch,
    files_of,
    filled,
    frozen,
    random_frames,
    random_step,
    spec_of,
)

from perdqn.replay import journal
from perdqn.replay.journal import Journal, read_rows, write_rows
from perdqn.replay.prioritized import PrioritizedReplay


def save(replay, store):
    """As a checkpoint keeps it."""
    store.written = []
    file = io.BytesIO()
    torch.save(replay.save_parts(store), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def rows_written(store):
    """Rows of all segments that the newest save wrote."""
    headers = [header_of(store.parts[path]) for path in store.written if "-rows-" in path]
    return sum(sum(header["stop"]) - sum(header["first"]) for header in headers)


def header_of(part):
    return json.loads(part[8 : 8 + int.from_bytes(part[4:8], "little")])


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch):
    monkeypatch.setattr(journal, "_LEAST_BYTES", 0)
    monkeypatch.setattr(journal, "_JOINED", 8)
    monkeypatch.setattr(journal, "_SPLIT", 8)
    monkeypatch.setattr(journal, "_BLOCK_BYTES", 64)


SETTINGS = [  # num_envs, ring length, n_step, frame_stack, columns, weights relative to
    (1, 12, 1, 1, VECTOR, "batch"),
    (1, 40, 3, 4, VECTOR, "buffer"),
    (2, 31, 3, 2, MIXED, "batch"),
    (3, 17, 2, 3, MIXED, "buffer"),
    (5, 64, 1, 1, VECTOR, "batch"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_envs", "length", "n_step", "stack", "columns", "normalization"), SETTINGS)
def test_any_generation_comes_back_bit_for_bit_after_any_operations(
    num_envs, length, n_step, stack, columns, normalization, seed
):
    rng = np.random.default_rng([seed, num_envs, length])
    spec = spec_of(columns, stack)

    def make():
        replay = PrioritizedReplay(
            spec, num_envs, num_envs * length, n_step=n_step, weight_normalization=normalization, seed=seed
        )
        replay.alpha = alpha
        return replay

    alpha, store, generations = 0.6, Store(), []
    replay = make()
    for _ in range(12 * length):
        operation = rng.random()
        if operation < 0.7:
            replay.add(*random_step(rng, spec, num_envs, 0.1))
        elif operation < 0.75:
            env = int(rng.integers(num_envs))
            replay.cut(env, {name: frame[0] for name, frame in random_frames(rng, columns, 1).items()})
        elif operation < 0.85 and len(replay):
            batch = replay.sample(4, 0.5)
            replay.update_priorities(batch.id, rng.exponential(size=4).round(1))
        elif operation < 0.87:
            replay.alpha = alpha = float(rng.random())
        elif operation < 0.96:
            generations = [*generations[-3:], (save(replay, store), frozen(replay.state_dict()), alpha)]
            store.collect([entry for entry, _, _ in generations])
        elif generations:
            entry, state, alpha = generations[rng.integers(len(generations))]
            replay = make() if rng.random() < 0.5 else replay
            replay.alpha = alpha
            replay.load_parts(store, entry)
            assert_same(replay.state_dict(), state)
            replay.check_valid()
    assert len(generations) == 4


def test_a_replay_goes_on_as_the_saved_one_does():
    replay, store = filled(), Store()
    entry = save(replay, store)
    other = filled(num_steps=7, seed=1)
    other.load_parts(store, entry)
    rng = np.random.default_rng(2)
    for _ in range(50):
        step = random_step(rng, replay.spec, 2)
        for each in (replay, other):
            each.add(*step)
        batch = replay.sample(8, 0.4)
        assert_same_batch(batch, other.sample(8, 0.4))
        for each in (replay, other):
            each.update_priorities(batch.id, batch.is_weight)
    assert_same(replay.state_dict(), other.state_dict())


def test_an_empty_replay_comes_back_empty():
    store, replay = Store(), PrioritizedReplay(spec_of(), 2, 200)
    entry = save(replay, store)
    other = filled()
    other.load_parts(store, entry)
    assert len(other.rows) == len(other) == 0
    other.check_valid()


def test_a_change_of_alpha_not_yet_worked_out_comes_back_as_such():
    replay, other, store = filled(), filled(num_steps=5), Store()
    replay.alpha = other.alpha = 0.9
    other.load_parts(store, save(replay, store))
    assert_same_batch(replay.sample(8), other.sample(8))
    assert_same(replay.state_dict(), other.state_dict())


def test_other_windows_and_exponents_apply_to_a_loaded_replay():
    store = Store()
    entry = save(filled(n_step=2), store)
    by_parts, by_state = (filled(num_steps=0, n_step=4, alpha=0.3) for _ in range(2))
    by_parts.load_parts(store, entry)
    by_state.load_state_dict(filled(n_step=2).state_dict())
    for replay in (by_parts, by_state):
        replay.check_valid()
    assert_same(by_parts.state_dict(), by_state.state_dict())


# -- what a save writes ------------------------------------------------------------------------


def test_a_save_writes_the_rows_added_since_the_one_before():
    rng, store = np.random.default_rng(0), Store()
    replay = PrioritizedReplay(spec_of(), 2, 1600)
    for num_steps in (60, 60, 30, 0):
        for _ in range(num_steps):
            replay.add(*random_step(rng, replay.spec, 2, 0.0))
        save(replay, store)
        assert rows_written(store) == 2 * num_steps


def test_segments_stay_few_and_rows_are_rarely_written_again():
    rng, store = np.random.default_rng(0), Store()
    replay = PrioritizedReplay(spec_of(), 1, 400)  # so segments join up to 50 rows
    written = most = 0
    for _ in range(1000):
        replay.add(*random_step(rng, replay.spec, 1, 0.0))
        entry = save(replay, store)
        store.collect([entry])
        written += rows_written(store)
        most = max(most, rows_written(store))
        # neighbours add up to more than 50 rows, or the newer is at most half of the older
        assert len(entry["rows"]["segments"]) <= 2 * 400 / 50 + np.log2(50) + 2
    assert most <= 50
    assert written < 1000 * np.log(50) / np.log(1.5)  # a segment grows by half each time


def test_a_segment_goes_when_its_last_row_is_overwritten():
    rng, store = np.random.default_rng(0), Store()
    replay = PrioritizedReplay(spec_of(), 2, 400)
    for _ in range(50):
        for _ in range(20):
            replay.add(*random_step(rng, replay.spec, 2))
        entry = save(replay, store)
        oldest = np.maximum(0, replay.rows.heads - replay.rows.length)
        assert all((np.array(s["stop"]) > oldest).any() for s in entry["rows"]["segments"])
        store.collect([entry])
        named = sum(sum(s["stop"]) - sum(s["first"]) for s in entry["rows"]["segments"])
        assert named <= 400 + 400 / 8 + 40  # of the oldest alone, some rows are dead


def test_a_large_save_is_split_so_that_it_can_go_piece_by_piece():
    store = Store()
    entry = save(filled(), store)
    assert len(entry["rows"]["segments"]) == 8


def test_segments_lost_with_a_save_that_never_finished_are_written_again():
    replay, store = filled(), Store()
    first = save(replay, store)
    replay.add(*random_step(np.random.default_rng(1), replay.spec, 2))
    save(replay, store)
    store.collect([first])
    other = filled(num_steps=0)
    other.load_parts(store, save(replay, store))
    assert_same(other.state_dict(), replay.state_dict())
    assert rows_written(store) < len(replay.rows) / 2


def test_a_torn_segment_is_written_again_under_another_name():
    replay, store = filled(), Store()
    torn = save(replay, store)["rows"]["segments"][3]
    store.parts[torn["path"]] = store.parts[torn["path"]][:-1]
    entry = save(replay, store)
    assert rows_written(store) == sum(torn["stop"]) - sum(torn["first"])
    filled(num_steps=0).load_parts(store, entry)


def test_each_folder_gets_only_what_it_lacks():
    replay, here, there = filled(), Store("here"), Store("there")
    rng = np.random.default_rng(1)
    for _ in range(3):
        entries = save(replay, here), save(replay, there)
        replay.add(*random_step(rng, replay.spec, 2, 0.0))
    assert rows_written(here) == rows_written(there) <= 200 / 8
    for store, entry in zip((here, there), entries, strict=True):
        filled(num_steps=0).load_parts(store, entry)


@pytest.mark.parametrize("seed", range(5))
def test_rings_may_run_ahead_of_each_other_by_any_amount(seed):
    rng, store, length = np.random.default_rng(seed), Store(), 20
    columns, heads = {"place": np.zeros((3 * length, 2), np.int64)}, np.zeros(3, np.int64)
    journal_of_rings = Journal(columns, 3)
    for _ in range(60):
        ends = heads + rng.choice([0, 0, 1, 2, 5, 30, 70], size=3)
        for ring, (begin, end) in enumerate(zip(heads, ends, strict=True)):
            for counter in range(begin, end):
                columns["place"][ring * length + counter % length] = ring, counter
        heads = ends
        if store.parts and rng.random() < 0.3:
            del store.parts[rng.choice(list(store.parts))]
        store.written = []
        segments = journal_of_rings.save(store, heads)
        for header in (header_of(store.parts[path]) for path in store.written):
            is_empty = np.equal(header["first"], header["stop"])
            assert (is_empty | (header["first"] >= heads - length)).all(), "dead rows are not written"
        store.parts = {segment.file.path: store.parts[segment.file.path] for segment in segments}
        loaded = {"place": np.zeros_like(columns["place"])}
        Journal(loaded, 3).load(store, segments, heads, has_rows=False)
        np.testing.assert_array_equal(loaded["place"], columns["place"])


def test_rows_from_elsewhere_are_not_taken_for_those_written():
    replay, store = filled(seed=0), Store()
    save(replay, store)
    replay.load_state_dict(filled(seed=1).state_dict())
    other = filled(num_steps=0)
    other.load_parts(store, save(replay, store))
    assert_same(other.state_dict(), replay.state_dict())


def test_a_save_holds_no_second_copy_of_the_rows():
    columns, store = {"image": np.random.default_rng(0).integers(0, 255, (100, 8), np.uint8)}, Store()
    write_rows(store, columns, (0,), (100,))
    assert store.largest_chunk <= 100 * 8 + 200  # incompressible, so all that is buffered comes at the end
    big = {"image": np.random.default_rng(0).integers(0, 255, (100_000, 8), np.uint8)}
    write_rows(store, big, (0,), (100_000,))
    assert store.largest_chunk <= 256 << 10  # zstd's own blocks


# -- in a folder of generations ------------------------------------------------------------------


def test_generations_share_segments_and_a_damaged_one_leaves_the_older_whole(tmp_path):
    folder, replay, rng = GenerationFolder(tmp_path), filled(), np.random.default_rng(1)
    states = []
    for name in "abc":
        replay.add(*random_step(rng, replay.spec, 2))
        store = PartStore(tmp_path)
        entry = replay.save_parts(store)
        folder.write(name, "regular", partial(torch.save, entry), store.files)
        states.append(frozen(replay.state_dict()))
    oldest = folder.generations()[-1]
    folder.remove(oldest)
    newest, before = folder.generations()
    (only,) = {f.path for f in newest.files[1:]} - {f.path for f in before.files} - {priorities_of(newest)}
    (tmp_path / only).write_bytes((tmp_path / only).read_bytes()[:-1])
    other = filled(num_steps=0)
    with pytest.raises(DamagedPart, match=Path(only).name):
        other.load_parts(PartStore(tmp_path), torch.load(newest.checkpoint))
    assert folder.newest_valid().name == "b"
    other.load_parts(PartStore(tmp_path), torch.load(before.checkpoint))
    assert_same(other.state_dict(), states[1])


def priorities_of(generation):
    return torch.load(generation.checkpoint)["priorities"]["path"]


# -- the format ----------------------------------------------------------------------------------


def test_the_file_is_read_by_what_its_description_says():
    column = {
        "frames/obs": np.arange(24, dtype=np.float32).reshape(12, 2),
        "actions": np.arange(12, dtype=">i4"),
    }
    store = Store()
    file = write_rows(store, column, (4, 1), (9, 3))  # rings of 6: rows 4 to 8 wrap
    part = store.parts[file.path]
    assert part[:4] == bytes([0x50, 0x2A, 0x4D, 0x18])
    assert header_of(part) == {
        "format": "perdqn-rows",
        "version": 1,
        "first": [4, 1],
        "stop": [9, 3],
        "columns": [["frames/obs", "<f4", [2]], ["actions", "<i4", []]],
    }
    # the skippable frame needs no care: a Zstandard reader passes over it
    raw = zstandard.ZstdDecompressor().stream_reader(part, read_across_frames=True).read()
    slots = [4, 5, 0, 1, 2, 6 + 1, 6 + 2]
    assert raw == column["frames/obs"][slots].astype("<f4").tobytes() + np.array(slots, "<i4").tobytes()


VERSION_1 = (  # written by the test above when version 1 was new
    "502a4d18790000007b22666f726d6174223a2270657264716e2d726f7773222c2276657273696f6e223a312c22666972"
    "7374223a5b342c315d2c2273746f70223a5b392c335d2c22636f6c756d6e73223a5b5b226672616d65732f6f6273222c"
    "223c6634222c5b325d5d2c5b22616374696f6e73222c223c6934222c5b5d5d5d7d28b52ffd0448ad010092c40a13b069"
    "18030c50c7b6483210ad2d81d222a6b5142f4e3c3870b830e69db73c6535eb2cad27e790773ce33d020000535e000cac"
    "fcb763"
)


def test_a_file_of_version_1_loads():
    store = Store()
    store.parts["old"] = part = bytes.fromhex(VERSION_1)
    columns = {"frames/obs": np.zeros((12, 2), np.float32), "actions": np.zeros(12, ">i4")}
    read_rows(store, File("old", len(part), hashlib.sha256(part).hexdigest()), columns, (4, 1), (9, 3))
    alive = [0, 1, 2, 4, 5, 7, 8]
    assert np.flatnonzero(columns["actions"]).tolist() == alive[1:]
    np.testing.assert_array_equal(columns["frames/obs"][alive], np.arange(24).reshape(12, 2)[alive])


def tampered(entry, store, change):
    """The first segment with other content, as if that had been written."""
    segment = entry["rows"]["segments"][0]
    content = bytes(change(bytearray(store.parts[segment["path"]])))
    store.parts["changed"] = content
    segment.update(path="changed", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return entry


def renumbered(part):
    return part.replace(b'"version":1', b'"version":2')


def lengthened(part):
    raw = zstandard.ZstdDecompressor().stream_reader(bytes(part), read_across_frames=True).read()
    return part[: part.index(b"}") + 1] + zstandard.compress(raw + b"x")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (renumbered, ValueError, "version 2, this perdqn reads 1"),
        (lambda part: part.replace(b'"<f4"', b'"<i4"'), ValueError, "holds other rows: columns"),
        (lambda part: part.replace(b'"first":[2', b'"first":[3'), ValueError, "holds other rows: first"),
        (lambda part: part[1:], ValueError, "holds no rows of a replay"),
        (lambda part: part[:5], ValueError, "holds no rows of a replay"),
        (lambda part: b"", ValueError, "holds no rows of a replay"),
        (lambda part: part[:-40], DamagedPart, "cannot be decompressed"),
        (lambda part: part[:-4] + bytes(4), DamagedPart, "cannot be decompressed"),
        (lengthened, DamagedPart, "more than its header says"),
    ],
)
@pytest.mark.parametrize("num_steps", [0, 7])
def test_content_that_is_not_what_was_written_is_refused_and_changes_nothing(
    change, error, message, num_steps
):
    store = Store()
    entry = tampered(save(filled(), store), store, change)
    replay = filled(num_steps=num_steps)
    before = frozen(replay.state_dict())
    with pytest.raises(error, match=message):
        replay.load_parts(store, entry)
    assert_same(replay.state_dict(), before)


@pytest.mark.parametrize("num_steps", [0, 7])
def test_a_damaged_part_changes_nothing_wherever_it_stands(num_steps):
    store = Store()
    entry = save(filled(), store)
    for file in files_of(entry):
        replay = filled(num_steps=num_steps)
        before = frozen(replay.state_dict())
        whole, store.parts[file.path] = store.parts[file.path], store.parts[file.path][:-1]  # torn
        with pytest.raises(DamagedPart):
            replay.load_parts(store, entry)
        assert_same(replay.state_dict(), before)
        store.parts[file.path] = whole
        replay.load_parts(store, entry)
        assert_same(replay.state_dict(), filled().state_dict())


def test_a_replay_of_another_layout_is_refused():
    store = Store()
    entry = save(filled(), store)
    with pytest.raises(ValueError, match="2 rings of 100 rows, this one 2 of 60"):
        filled(capacity=120).load_parts(store, entry)
    with pytest.raises(ValueError, match="2 rings of 100 rows, this one 4 of 50"):
        filled(num_envs=4).load_parts(store, entry)
    with pytest.raises(ValueError, match="holds other rows: columns"):
        filled(spec=spec_of(MIXED)).load_parts(store, entry)


@pytest.mark.parametrize("lost", [0, 3, -1])
def test_a_list_that_lacks_a_segment_is_refused(lost):
    store = Store()
    entry = save(filled(), store)
    del entry["rows"]["segments"][lost]
    with pytest.raises(ValueError, match=r"do not follow|ends at rows"):
        filled(num_steps=0).load_parts(store, entry)


def test_segments_of_rows_yet_to_come_are_refused():
    columns, store = {"place": np.arange(8)}, Store()
    segments = Journal(columns, 1).save(store, np.array([6]))
    with pytest.raises(ValueError, match="do not follow"):
        Journal(columns, 1).load(store, segments, np.array([5]), has_rows=False)
