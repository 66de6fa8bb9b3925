"""SHA-256 of each part of a run's state, so that anyone can say whether two runs are in the same one.

Knows nothing about files: it reads the entries of a loaded checkpoint, and no wall clock counts. The
encoding is written down in docs/fingerprint.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perdqn.schedules import LinearSchedule

FORMAT = "perdqn-fingerprint"
VERSION = 1
SCORES = ("best_model_score", "best_score", "wait_count")  # of callbacks; their paths and times are no state
COST_ALONE = ("storage", "cached_frames")  # settings of the replay that change no bit of what it holds


class Ring(NamedTuple):
    """Rows of one ring, oldest first: pieces that follow each other, each [rows, ...]."""

    pieces: tuple[Tensor, ...]


def fingerprint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Digests by part; null where a checkpoint of weights alone has no such part.

    Args:
        checkpoint: as `torch.load` reads it, with the replay's state in it.
    """
    state = checkpoint["perdqn"]
    return {
        "format": FORMAT,
        "version": VERSION,
        **{name: state[name] for name in ("env_steps", "update_steps", "episodes")},
        "parts": {
            name: None if tree is None else digest(tree) for name, tree in parts_of(checkpoint).items()
        },
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which two fingerprints differ."""
    names = {**one["parts"], **other["parts"]}
    return [name for name in names if one["parts"].get(name) != other["parts"].get(name)]


def parts_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The trees that are hashed, by name of the part."""
    state, settings = checkpoint["perdqn"], checkpoint["hyper_parameters"]
    replay, experience = state.get("replay"), state.get("experience")
    is_full = replay is not None and experience is not None
    return {
        "weights": checkpoint["state_dict"],
        "optimizer": checkpoint.get("optimizer_states"),
        "replay_rows": rows_of(replay["rows"]) if is_full else None,
        "priorities": priorities_of(replay) if is_full else None,
        "rng": _rng(state, replay, experience) if is_full else None,
        "environments": _environments(experience["acting"]) if is_full else None,
        "schedules": _schedules(checkpoint),
        "metrics": _metrics(checkpoint),
        "settings": {**settings, "replay": _but(settings["replay"], COST_ALONE)},
    }


def _but(settings: Mapping[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in left_out}


def rows_of(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows alive, ring by ring and oldest first, wherever they lie in their rings."""
    heads, length = rows["heads"].tolist(), int(rows["length"])
    columns = [name for name, value in rows.items() if isinstance(value, Tensor) and name != "heads"]
    alive = {
        f"{name}/{env}": _in_order(rows[name][env], head, length)
        for name in columns
        for env, head in enumerate(heads)
    }
    return {"heads": rows["heads"], "length": length, **alive}


def priorities_of(replay: Mapping[str, Any]) -> dict[str, Any]:
    """Priorities of the same rows in the same order; p^alpha, the maximum and the tree follow from them."""
    heads, length = replay["rows"]["heads"].tolist(), int(replay["rows"]["length"])
    by_ring = {name: replay[name].reshape(len(heads), length) for name in ("priorities", "measured")}
    alive = {
        f"{name}/{env}": _in_order(rings[env], head, length)
        for name, rings in by_ring.items()
        for env, head in enumerate(heads)
    }
    return {"alpha": replay["alpha"], **alive}


def _in_order(ring: Tensor, head: int, length: int) -> Ring:
    """Cut at the newest row; nothing is copied."""
    if head <= length:
        return Ring((ring[:head],))
    oldest = head % length
    return Ring((ring[oldest:length], ring[:oldest]))


def _rng(
    state: Mapping[str, Any], replay: Mapping[str, Any], experience: Mapping[str, Any]
) -> dict[str, Any]:
    acting = experience["acting"]
    return {
        "sampling": replay["rng"],
        "exploration": None if acting is None else acting["actor"].get("rng"),  # a fork's begins anew
        "noise": state["noise"],
        "global": state["global_rng"],
    }


def _environments(acting: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if acting is None:  # nothing has been acted yet
        return {}
    actor = acting["actor"]
    return {**acting["environments"], "returns": actor["returns"], "lengths": actor["lengths"]}


def _schedules(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Counters, and where they have brought what is scheduled."""
    state, settings = checkpoint["perdqn"], checkpoint["hyper_parameters"]
    explore, replay, now = settings["exploration"], settings["replay"], state["env_steps"]
    epsilon = [explore[f"epsilon_{name}"] for name in ("start", "end", "env_steps")]
    beta = [replay[f"beta_{name}"] for name in ("start", "end", "env_steps")]
    counters = {name: state[name] for name in ("env_steps", "episodes", "update_steps", "evaluated_at")}
    return {
        **counters,
        "global_step": checkpoint["global_step"],
        "epsilon": LinearSchedule(*epsilon)(now),
        "beta": LinearSchedule(*beta)(now),
        "experience": {name: state.get("experience", {}).get(name) for name in ("counters", "pace")},
        "replay": state.get("replay", {}).get("counters"),
    }


def _metrics(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    state = checkpoint["perdqn"]
    callbacks = checkpoint.get("callbacks", {})
    scores = {
        f"{callback.get('monitor', name)}/{key}": callback[key]
        for name, callback in callbacks.items()
        for key in SCORES
        if callback.get(key) is not None
    }
    return {
        "evaluations": state["evaluations"],
        "recent_episodes": state["recent_episodes"],
        "cache": state.get("replay", {}).get("cache"),
        "scores": scores,
    }


# -- the encoding


def digest(tree: Any) -> str:
    """SHA-256 of a tree of dicts, lists and tuples whose leaves are tensors or plain values."""
    leaves = dict(_leaves(tree, ""))
    sha = hashlib.sha256()
    for name in sorted(leaves):
        for piece in _encode(name, leaves[name]):
            sha.update(piece)
    return sha.hexdigest()


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Each leaf by the keys and positions that lead to it, with ``/`` between them."""
    is_leaf = isinstance(tree, Ring) or not isinstance(tree, Mapping | list | tuple)
    if is_leaf or not tree:
        yield name, list(tree) if isinstance(tree, tuple) and not is_leaf else tree
        return
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from _leaves(value, f"{name}/{key}" if name else str(key))


def _encode(name: str, value: Any) -> Iterator[Any]:
    pieces = value.pieces if isinstance(value, Ring) else (value,)
    if not isinstance(pieces[0], Tensor):
        yield _line(name, value)
        return
    first = pieces[0]
    shape = [sum(len(piece) for piece in pieces), *first.shape[1:]] if first.ndim else []
    yield _line(name, str(first.dtype).removeprefix("torch."), shape)
    for piece in pieces:
        yield piece.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _line(*words: Any) -> bytes:
    return json.dumps(words).encode() + b"\n"
