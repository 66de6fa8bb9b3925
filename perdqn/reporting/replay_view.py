"""What is drawn from a run's replay: ages, priorities, and the rows drawn most, with their frames.

Knows nothing about pages. It reads the newest whole save, so it is as old as that, and needs no environment.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdqn.run.folder import RunFolder, RunNotFound
from perdqn.run.saves import Save, find_save

Array = NDArray[Any]

NUM_SHOWN = 8  # rows drawn most
NUM_BINS = 24
MOST_VALUES = 24  # of a vector


def view_replay(run: RunFolder) -> dict[str, Any]:
    """Plain values, as docs/report.md lists them; ``missing`` says why where there is nothing to see."""
    try:
        save = find_save(str(run.path), run.path)
    except RunNotFound as error:
        return {"missing": f"no saved state: {error}"}
    try:
        return _view(save)
    except KeyError:
        return {"missing": "the newest saved state holds no replay"}
    except (OSError, ValueError, RuntimeError) as error:  # torch's reader raises the latter
        return {"missing": f"the newest saved state cannot be read: {error}"}


def _view(save: Save) -> dict[str, Any]:
    import torch

    from perdqn.replay.rows import TERMINATED
    from perdqn.replay.stored import StoredReplay

    saved = torch.load(save.checkpoint, map_location="cpu", weights_only=True, mmap=True)
    stored = StoredReplay(saved, save.folder)
    may_start = np.flatnonzero(stored.priorities > 0.0)
    if not may_start.size:
        return {"missing": "the replay held no transition yet when it was saved"}
    draws = stored.draws if stored.draws is not None and stored.draws.any() else None
    rank = stored.priorities if draws is None else draws + stored.priorities / (2 * stored.priorities.max())
    shown = may_start[np.argsort(-rank[may_start], kind="stable")[:NUM_SHOWN]]
    stacks = _stacks(stored, shown, saved["hyper_parameters"]["env"])
    actions, rewards, frames = stored.read(np.maximum(stacks, 0).reshape(-1))
    is_terminal = (stored.flags & TERMINATED) != 0
    return {
        "save": save.checkpoint.stem,
        "env_steps": saved["perdqn"]["env_steps"],
        "rows": may_start.size,
        "capacity": stored.num_slots,
        "samples_drawn": stored.samples_drawn,
        "ranked_by": "priority" if draws is None else "draws",
        "draws": None if draws is None else _describe_draws(draws[may_start]),
        "shares": {
            "terminal": _shares(is_terminal, draws, may_start),
            "reward": _shares(rewards != 0, draws, may_start),
        },
        "ages": _histogram(stored.ages, draws, may_start, is_log=False),
        "priorities": _histogram(stored.priorities, draws, may_start, is_log=True),
        "shown": [
            {
                "id": int(stored.ids[slot]),
                "draws": None if draws is None else int(draws[slot]),
                "priority": float(stored.priorities[slot]),
                "age": int(stored.ages[slot]),
                "action": int(actions[slot]),
                "reward": float(rewards[slot]),
                "is_terminal": bool(is_terminal[slot]),
                **_depict(frames, stacks, i),
            }
            for i, slot in enumerate(shown)
        ],
    }


def _stacks(stored: Any, slots: Array, env: Mapping[str, Any]) -> Array:
    """Where the frames of each observation lie [n, stack]; -1 is a frame of zeros."""
    from perdqn.replay.rows import stack_slots

    repeats = env["stack_padding"] == "repeat"
    ids, num_envs = stored.ids[slots], stored.heads.size
    return stack_slots(stored.flags, num_envs, stored.length, ids, env["frame_stack"], repeats)


def _describe_draws(draws: Array) -> dict[str, Any]:
    most = np.sort(draws)[::-1][: max(1, draws.size // 100)]
    return {
        "counted": int(draws.sum()),
        "mean": float(draws.mean()),
        "max": int(draws.max()),
        "never_share": float((draws == 0).mean()),
        "top_percent_share": float(most.sum() / draws.sum()),
    }


def _shares(chosen: Array, draws: Array | None, slots: Array) -> dict[str, float | None]:
    """Of the rows stored, and of those drawn."""
    drawn = None if draws is None else float((chosen * draws)[slots].sum() / draws[slots].sum())
    return {"stored": float(chosen[slots].mean()), "drawn": drawn}


def _histogram(values: Array, draws: Array | None, slots: Array, is_log: bool) -> dict[str, Any]:
    """Rows by value, and how often such a row was drawn; None where a bin holds none."""
    values = values[slots]
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low * 1.01 + (not is_log)
    edges = np.geomspace(low, high, NUM_BINS + 1) if is_log else np.linspace(low, high, NUM_BINS + 1)
    at = np.clip(np.searchsorted(edges, values, "right") - 1, 0, NUM_BINS - 1)
    rows = np.bincount(at, minlength=NUM_BINS)
    drawn = None
    if draws is not None:
        sums = np.bincount(at, draws[slots], NUM_BINS)
        drawn = [float(s / n) if n else None for s, n in zip(sums, rows, strict=True)]
    return {"edges": edges.tolist(), "rows": rows.tolist(), "draws_per_row": drawn}


def _depict(frames: Mapping[str, Array], stacks: Array, i: int) -> dict[str, Any]:
    """Images as one strip, oldest first; the newest frame of anything else as numbers."""
    images, values = {}, {}
    for name, column in frames.items():
        stack = column.reshape(*stacks.shape, *column.shape[1:])[i].copy()
        stack[stacks[i] < 0] = 0
        if stack.ndim in (3, 4):
            images[name] = _as_png(np.concatenate([_as_bytes(frame) for frame in stack], axis=1))
        else:
            values[name] = [float(value) for value in stack[-1].reshape(-1)[:MOST_VALUES]]
    return {"images": images, "values": values}


def _as_bytes(frame: Array) -> Array:
    """Grey [h, w] or colour [h, w, 3]; other planes [h, w, k] as k greys, the last of them on top."""
    if frame.ndim == 3 and frame.shape[2] == 1:
        frame = frame[..., 0]
    elif frame.ndim == 3 and frame.shape[2] != 3:
        frame = ((frame != 0) * np.linspace(1 / frame.shape[2], 1.0, frame.shape[2])).max(axis=2)
    if frame.dtype == np.uint8:
        return frame
    frame = frame.astype(np.float64)
    low, high = frame.min(), frame.max()
    return ((frame - low) / (high - low if high > low else 1.0) * 255).astype(np.uint8)


def _as_png(image: Array) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
