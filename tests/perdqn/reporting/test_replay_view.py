"""What a report says of a saved replay, against the replay itself."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from holdfast.storage.parts import PartStore
from PIL import Image
from replays import eligible_ids, random_step, spec_of

from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.reporting.replay_view import NUM_SHOWN, view_replay
from perdqn.run.folder import RunFolder
from perdqn.transition import OBS, Column

IMAGES = (Column(OBS, (6, 5), np.dtype(np.uint8)),)
VECTORS = (Column(OBS, (3,), np.dtype(np.float32)), Column("kind", (), np.dtype(np.int64)))
STACK, RINGS = 3, 2


def made(columns, num_steps=150, padding="zero"):
    rng = np.random.default_rng(4)
    spec = spec_of(columns, frame_stack=STACK, stack_padding=padding)
    replay = PrioritizedReplay(spec, RINGS, 160, n_step=2, alpha=0.9, seed=3)
    for _ in range(num_steps):
        replay.add(*random_step(rng, spec, RINGS))
        if len(replay) > 8:
            batch = replay.sample(8)
            replay.update_priorities(batch.id, rng.exponential(size=8))
    return replay


def save(replay, path: Path, in_parts: bool, padding="zero") -> RunFolder:
    run = RunFolder(path)
    run.checkpoints.mkdir(parents=True)
    state = {"env_steps": 300, **({} if in_parts else {"replay": replay.state_dict()})}
    parts = {"module": replay.save_parts(PartStore(run.checkpoints))} if in_parts else {}
    env = {"frame_stack": STACK, "stack_padding": padding}
    content = {"perdqn": state, "holdfast": {"parts": parts}, "hyper_parameters": {"env": env}}
    torch.save(content, run.last)
    return run


def opened(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("num_steps", [40, 150])
def test_figures_are_those_of_the_replay(tmp_path, in_parts, num_steps):
    replay = made(VECTORS, num_steps)
    view = view_replay(save(replay, tmp_path, in_parts))
    ids = eligible_ids(replay)
    slots = replay.rows.slots(ids)
    draws, priorities = replay.rows.draws[slots], replay._priorities[slots]
    assert view["rows"] == ids.size == sum(view["ages"]["rows"]) == sum(view["priorities"]["rows"])
    assert view["samples_drawn"] == replay.samples_drawn
    assert view["draws"]["counted"] == draws.sum()
    assert view["draws"]["max"] == draws.max()
    assert view["draws"]["never_share"] == (draws == 0).mean()
    best = sorted(zip(-draws, -priorities, ids, strict=True))[:NUM_SHOWN]
    assert [(-one["draws"], -one["priority"], one["id"]) for one in view["shown"]] == best
    for name in ("ages", "priorities"):
        drawn = [d or 0.0 for d in view[name]["draws_per_row"]]
        assert np.dot(drawn, view[name]["rows"]) == pytest.approx(draws.sum())
    window, counter = replay.rows.windows(ids), ids // RINGS
    ages = dict(zip(ids, replay.rows.heads[ids % RINGS] - 1 - counter, strict=True))
    assert all(one["age"] == ages[one["id"]] for one in view["shown"])
    actions = dict(zip(ids, window.action, strict=True))
    assert all(one["action"] == actions[one["id"]] for one in view["shown"])
    rewards = replay.rows.rewards[slots]
    share = (draws * (rewards != 0)).sum() / draws.sum()
    assert view["shares"]["reward"]["drawn"] == pytest.approx(share)


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("padding", ["zero", "repeat"])
def test_frames_are_those_a_network_would_see(tmp_path, in_parts, padding):
    replay = made(IMAGES, padding=padding)
    for one in view_replay(save(replay, tmp_path, in_parts, padding))["shown"]:
        stack = replay.rows.observations(np.array([one["id"]]))[OBS][0]
        np.testing.assert_array_equal(opened(one["images"][OBS]), np.concatenate(list(stack), axis=1))


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1), (6, 5, 4)])
def test_colours_and_planes_become_images(tmp_path, shape):
    replay = made((Column(OBS, shape, np.dtype(np.uint8)),))
    image = opened(view_replay(save(replay, tmp_path, True))["shown"][0]["images"][OBS])
    assert image.shape == ((6, 15, 3) if shape[2] == 3 else (6, 15))


def test_what_is_no_image_is_shown_as_numbers(tmp_path):
    replay = made(VECTORS)
    one = view_replay(save(replay, tmp_path, True))["shown"][0]
    obs = replay.rows.observations(np.array([one["id"]]))
    assert one["values"] == {name: obs[name][0, -1].reshape(-1).tolist() for name in obs}


def test_without_counts_rows_are_ranked_by_priority(tmp_path):
    replay = made(VECTORS)
    replay.rows.draws[:] = 0
    view = view_replay(save(replay, tmp_path, False))
    assert view["ranked_by"] == "priority"
    assert view["draws"] is None
    assert view["shown"][0]["priority"] == replay._priorities.max()


@pytest.mark.parametrize("breaking", ["nothing saved", "no replay", "empty replay", "torn part"])
def test_what_cannot_be_seen_is_said(tmp_path, breaking):
    run = save(made(VECTORS, 0 if breaking == "empty replay" else 40), tmp_path, breaking == "torn part")
    if breaking == "nothing saved":
        run.last.unlink()
    elif breaking == "no replay":
        torch.save({"perdqn": {"env_steps": 0}, "hyper_parameters": {}}, run.last)
    elif breaking == "torn part":
        part = next((run.checkpoints / "parts").glob("replay-rows*"))
        part.write_bytes(part.read_bytes()[:-3])
    assert view_replay(run).keys() == {"missing"}
