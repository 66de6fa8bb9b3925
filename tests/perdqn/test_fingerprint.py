"""Digests of a run's state: equal where the state is, told apart part by part, and recomputable."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perdqn.__main__ import main
from perdqn.fingerprint import Ring, differing, digest, fingerprint, rows_of

from .saved_runs import copy_run, damage, make_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "fingerprint.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder nobody may change."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def saved(run: Path) -> dict[str, Any]:
    return torch.load(run.parents[1] / "states" / "end.ckpt", weights_only=True)


def printed(capsys: pytest.CaptureFixture[str], *argv: Any, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["fingerprint", *map(str, argv)]) == code
    return capsys.readouterr().out


# -- what is compared


def test_every_part_has_a_digest(saved: dict[str, Any]) -> None:
    parts = fingerprint(saved)["parts"]
    documented = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert list(parts) == documented
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in parts.values())


def replace(tree: Any, *keys: Any, by: Callable[[Any], Any]) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = by(tree[keys[-1]])


def flipped(tensor: torch.Tensor) -> torch.Tensor:
    """With the lowest bit of the last element changed."""
    as_bytes = tensor.clone().view(torch.uint8)
    as_bytes.flatten()[-1] ^= 1
    return as_bytes.view(tensor.dtype)


CHANGES: dict[str, tuple[list[Any], Callable[[Any], Any]]] = {
    "weights": (["state_dict", "target.head.value.bias"], flipped),
    "optimizer": (["optimizer_states", 0, "state", 0, "exp_avg_sq"], flipped),
    "replay_rows": (["perdqn", "replay", "rows", "flags"], flipped),
    "priorities": (["perdqn", "replay", "priorities"], flipped),
    "rng": (["perdqn", "replay", "rng", "state", "state"], lambda state: state + 1),
    "environments": (["perdqn", "experience", "acting", "environments", "episode"], flipped),
    "schedules": (["perdqn", "update_steps"], lambda steps: steps + 1),
    "metrics": (["perdqn", "recent_episodes", "returns", 0], lambda value: value + 1),
    "settings": (["hyper_parameters", "learner", "learning_rate"], lambda rate: 2 * rate),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_change_shows_in_its_part_alone(saved: dict[str, Any], part: str) -> None:
    other = copy.deepcopy(saved)
    keys, change = CHANGES[part]
    replace(other, *keys, by=change)
    assert differing(fingerprint(saved), fingerprint(other)) == [part]


@pytest.mark.parametrize(
    "keys",
    [
        ["perdqn", "experience", "acting", "actor", "rng", "state", "state"],
        ["perdqn", "noise"],
        ["perdqn", "global_rng", "torch"],
        ["perdqn", "global_rng", "numpy", 1],
        ["perdqn", "global_rng", "python", 1, 7],
    ],
    ids=lambda keys: ".".join(map(str, keys[1:])),
)
def test_every_random_stream_counts(saved: dict[str, Any], keys: list[Any]) -> None:
    other = copy.deepcopy(saved)
    streams = other["perdqn"]["global_rng"]
    streams["python"] = [streams["python"][0], list(streams["python"][1]), streams["python"][2]]
    streams["numpy"] = list(streams["numpy"])
    assert differing(fingerprint(saved), fingerprint(other)) == []  # lists and tuples are the same tree
    replace(other, *keys, by=lambda v: flipped(v) if isinstance(v, torch.Tensor) else v + 1)
    assert differing(fingerprint(saved), fingerprint(other)) == ["rng"]


def test_wall_clock_and_places_do_not_count(saved: dict[str, Any]) -> None:
    other = copy.deepcopy(saved)
    other["callbacks"]["RunRecord"]["seconds"] += 60
    for state in other["callbacks"].values():
        state.update({key: "/elsewhere" for key in ("dirpath", "best_model_path") if key in state})
    assert differing(fingerprint(saved), fingerprint(other)) == []


def test_settings_that_change_the_cost_of_a_replay_alone_do_not_count(saved: dict[str, Any]) -> None:
    other = copy.deepcopy(saved)
    other["hyper_parameters"]["replay"].update(storage="lz4", cached_frames=7)
    assert differing(fingerprint(saved), fingerprint(other)) == []


def test_best_score_counts(saved: dict[str, Any]) -> None:
    other = copy.deepcopy(saved)
    (best,) = (state for state in other["callbacks"].values() if state.get("monitor") == "eval/return_mean")
    best["best_model_score"] = best["best_model_score"] + 1
    assert differing(fingerprint(saved), fingerprint(other)) == ["metrics"]


# -- rows


def rings(heads: list[int], length: int, used: int) -> dict[str, Any]:
    """Rows that hold their own counter."""
    rows = torch.full((len(heads), used), -1.0)
    for env, head in enumerate(heads):
        for counter in range(max(0, head - length), head):
            rows[env, counter % length] = counter
    return {"heads": torch.tensor(heads), "length": length, "rewards": rows}


def test_rows_are_hashed_from_the_oldest_to_the_newest() -> None:
    found = rows_of(rings([3, 13], length=10, used=10))
    assert torch.cat(found["rewards/0"].pieces).tolist() == [0, 1, 2]
    assert torch.cat(found["rewards/1"].pieces).tolist() == list(range(3, 13))


def test_what_lies_in_unused_slots_does_not_count() -> None:
    rows, more = rings([3, 2], length=10, used=3), rings([3, 2], length=10, used=10)
    more["rewards"][:, 5:] = 7.0
    assert digest(rows_of(rows)) == digest(rows_of(more))


def test_where_a_ring_is_cut_does_not_count() -> None:
    whole = torch.arange(6.0)
    assert (
        digest({"a": Ring((whole[:2], whole[2:]))}) == digest({"a": Ring((whole,))}) == digest({"a": whole})
    )


# -- the encoding


def test_the_weights_part_is_recomputed_with_torch_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "weights.py").write_text(recipe)
    checkpoint = run / "checkpoints" / "update-32.ckpt"
    done = subprocess.run(
        [sys.executable, tmp_path / "weights.py", checkpoint], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == json.loads(printed(capsys, run))["parts"]["weights"]


def test_the_encoding_is_the_one_written_down() -> None:
    import hashlib

    tree = {"b": [1, None], "a": {"x": torch.tensor([[1, 258]], dtype=torch.int16), "y": torch.tensor(True)}}
    expected = (
        b'["a/x", "int16", [1, 2]]\n\x01\x00\x02\x01["a/y", "bool", []]\n\x01["b/0", 1]\n["b/1", null]\n'
    )
    assert digest(tree) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": torch.zeros(4)}, {"a": torch.zeros(2, 2)}),
        ({"a": torch.zeros(4)}, {"a": torch.zeros(4, dtype=torch.int32)}),
        ({"a": torch.zeros(4)}, {"b": torch.zeros(4)}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": 0.1 + 0.2}, {"a": 0.3}),
        ({"a": {}}, {"a": []}),
        ({"a": None}, {}),
    ],
)
def test_what_differs_is_encoded_differently(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


# -- the command


def test_a_run_is_its_newest_valid_generation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_run(run, tmp_path)
    newest = printed(capsys, copied)
    assert newest == printed(capsys, copied / "checkpoints" / "update-32.ckpt")
    assert newest == printed(capsys, copied / "checkpoints" / "update-32.json")
    assert newest == printed(capsys, "--trainer.default_root_dir", tmp_path)
    assert json.loads(newest)["update_steps"] == 32
    damage(copied / "checkpoints" / "update-32.ckpt")
    files = sorted(copied.rglob("*"))
    assert json.loads(printed(capsys, copied))["update_steps"] == 16
    assert sorted(copied.rglob("*")) == files


@pytest.mark.parametrize("updates", [16, 32])
def test_how_a_state_is_stored_does_not_count(
    run: Path, updates: int, capsys: pytest.CaptureFixture[str]
) -> None:
    states = run.parents[1] / "states"
    in_parts = states / "in-parts" / "checkpoints" / f"update-{updates}.ckpt"
    assert "replay" not in torch.load(in_parts, weights_only=True)["perdqn"]
    assert printed(capsys, in_parts) == printed(capsys, states / f"{updates}.ckpt")


def test_two_states_are_compared_part_by_part(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = (run / "checkpoints" / f"update-{updates}.ckpt" for updates in (16, 32))
    same = printed(capsys, newer, newer)
    assert "differs" not in same
    assert len(same.splitlines()) == len(CHANGES)
    out = tmp_path / "differences.json"
    said = printed(capsys, older, newer, "--out", out, code=1)
    assert "weights      differs" in said
    assert "settings     same" in said
    found = json.loads(out.read_text())
    assert "weights" in found["differs"]
    assert "settings" not in found["differs"]
    assert found["one"]["update_steps"] == 16


def test_a_published_fingerprint_stands_for_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published.json"
    assert printed(capsys, run, "--out", published) == ""
    printed(capsys, run, published)
    printed(capsys, run / "checkpoints" / "update-16.ckpt", published, code=1)


def test_parts_that_a_checkpoint_of_weights_lacks_are_null(saved: dict[str, Any]) -> None:
    weights = {key: value for key, value in saved.items() if key != "optimizer_states"}
    full = ("experience", "replay", "num_threads", "noise", "global_rng")
    weights["perdqn"] = {key: value for key, value in saved["perdqn"].items() if key not in full}
    found = fingerprint(weights)
    missing = [name for name, part in found["parts"].items() if part is None]
    assert missing == ["optimizer", "replay_rows", "priorities", "rng", "environments"]
    assert set(missing) <= set(differing(found, fingerprint(saved)))


def test_what_cannot_be_read_is_refused(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fingerprint", str(tmp_path / "nowhere")]) == 2
    assert "neither a run folder nor a checkpoint" in capsys.readouterr().err
    copied = copy_run(run, tmp_path)
    damage(copied / "checkpoints" / "update-32.ckpt")
    assert main(["fingerprint", str(copied / "checkpoints" / "update-32.ckpt")]) == 2
    assert "update-32.ckpt: has the checksum" in capsys.readouterr().err
