"""Replays after random steps, comparisons of their states, and where they save parts.

Knows nothing about what a test wants to see of them.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from holdfast.storage.generations import File
from holdfast.storage.parts import DamagedPart

from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec

VECTOR = (Column(OBS, (3,), np.dtype(np.float32)),)
MIXED = (
    Column("image", (2, 2), np.dtype(np.uint8)),
    Column("place", (), np.dtype(np.int64), 7),
    Column("speed", (1,), np.dtype(np.float64)),
)


def spec_of(columns=VECTOR, frame_stack=1, stack_padding="zero", num_actions=5):
    return EnvSpec(columns, len(columns) > 1, num_actions, 0, frame_stack, stack_padding)


def random_frames(rng, columns, num):
    def random_column(column):
        if column.dtype.kind == "f":
            return rng.normal(size=(num, *column.shape)).astype(column.dtype)
        return rng.integers(0, column.num_values or 256, size=(num, *column.shape)).astype(column.dtype)

    return {column.name: random_column(column) for column in columns}


def random_step(rng, spec, num_envs, end_probability=0.15):
    """Arguments of one `add`."""
    terminated = rng.random(num_envs) < end_probability
    truncated = rng.random(num_envs) < end_probability
    frames = random_frames(rng, spec.columns, num_envs)
    final = random_frames(rng, spec.columns, num_envs)
    action = rng.integers(spec.num_actions, size=num_envs)
    return frames, action, rng.normal(scale=2.0, size=num_envs), terminated, truncated, final


def filled(num_steps=300, num_envs=2, seed=0, spec=None, **settings):
    """A replay after random steps, every priority measured once."""
    spec = spec or spec_of()
    rng = np.random.default_rng(seed)
    replay = PrioritizedReplay(spec, num_envs, **{"capacity": 200, "n_step": 2, **settings})
    for _ in range(num_steps):
        replay.add(*random_step(rng, spec, num_envs))
    ids = eligible_ids(replay)
    replay.update_priorities(ids, rng.exponential(size=ids.size))
    return replay


def eligible_ids(replay):
    ids = replay.rows.ids(np.arange(replay.capacity))
    return np.sort(ids[replay.rows.may_start(ids)])


def frozen(state):
    """A deep copy, so that a later comparison sees what was there now."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    return {key: frozen(value) for key, value in state.items()} if isinstance(state, dict) else state


def assert_same(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right


def assert_same_batch(left, right):
    assert_same(vars(left), vars(right))


class Store:
    """Parts in a dict, by the rules of `holdfast.storage.parts.PartStore`."""

    def __init__(self, folder="here"):
        self.folder = Path(folder)
        self.parts = {}
        self.largest_chunk = 0
        self.written = []  # what the newest save wrote

    def write(self, path, chunks):
        content = bytearray()
        for chunk in chunks:
            self.largest_chunk = max(self.largest_chunk, len(chunk))
            content += chunk
        file = File(named(path, content), len(content), hashlib.sha256(content).hexdigest())
        if file.size != len(self.parts.get(file.path, content)):
            raise FileExistsError(f"{file.path} exists with other content")
        self.parts[file.path] = bytes(content)
        self.written.append(file.path)
        return file

    def keep(self, file):
        if len(self.parts.get(file.path, b"")) != file.size:
            raise DamagedPart(f"{file.path} is missing, or of another size")

    def read(self, file):
        content = self.parts.get(file.path, b"")
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DamagedPart(f"{file.path} is not as it was written")
        return content

    def collect(self, entries):
        """Drop what no entry names."""
        needed = {file.path for entry in entries for file in files_of(entry)}
        self.parts = {path: content for path, content in self.parts.items() if path in needed}


def named(path, content):
    """With a checksum, so one content never replaces another."""
    stem, suffix = path.rsplit(".", 1)
    return f"parts/{stem}.{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"


def files_of(entry):
    named = [entry["priorities"], *entry["rows"]["segments"]]
    return [File(each["path"], each["size"], each["sha256"]) for each in named]
