"""Plays one greedy episode and writes what it looks like, as animated GIF or MP4.

Knows nothing about training or statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from perdqn.acting.environment import MissingExtra, make, to_columns
from perdqn.config import EnvConfig
from perdqn.transition import OBS, EnvSpec

if TYPE_CHECKING:
    from perdqn.module import PERDQN

PACKAGES = {".gif": ["PIL"], ".mp4": ["imageio", "imageio_ffmpeg"]}
DEFAULT_FPS = 15.0
SMALLEST_SIDE = 160  # pixels; smaller frames are enlarged by a whole factor
Frame = np.ndarray  # uint8 [height, width, 3]


@dataclass
class EpisodeRecord:
    """One recorded episode: undiscounted return, env steps, and the file that shows it."""

    episode_return: float
    length: int
    path: Path


def record(module: PERDQN, path: str | Path, *, seed: int, max_steps: int | None = None) -> EpisodeRecord:
    """Play one greedy episode in an environment of its own and write its frames to ``path``.

    Args:
        path: ends in ``.gif`` or ``.mp4``; its folder is made.
        seed: the episode's own, handed to the environment's reset.
        max_steps: frames after the first one; by default ``model.evaluation.max_episode_steps``.

    Raises:
        ValueError: another suffix, a package is missing, or the environment cannot draw itself.
    """
    path = Path(path)
    write = _choose_writer(path)
    played = EpisodeRecord(0.0, 0, path)
    with closing(_make_drawing(module.config.env)) as env:
        frames = _play(module, env, seed, max_steps or module.config.evaluation.max_episode_steps, played)
        first = next(frames)  # an environment that cannot draw leaves no file
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, chain([first], frames), float(env.metadata.get("render_fps") or DEFAULT_FPS))
    return played


def _choose_writer(path: Path) -> Callable[[Path, Iterator[Frame], float], None]:
    if path.suffix not in PACKAGES:
        raise ValueError(f"{path} must end in {' or '.join(PACKAGES)}")
    if missing := [name for name in PACKAGES[path.suffix] if find_spec(name) is None]:
        raise MissingExtra(f"{path.name} needs {' and '.join(missing)}: pip install 'perdqn[video]'")
    return _write_gif if path.suffix == ".gif" else _write_mp4


def _make_drawing(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    try:
        return make(config, render_mode="rgb_array")
    except ValueError as error:  # such as a factory of the user's that takes no such argument
        raise ValueError(f"{config.id} cannot be recorded: {error}") from error


def _play(
    module: PERDQN, env: gymnasium.Env[Any, Any], seed: int, max_steps: int, played: EpisodeRecord
) -> Iterator[Frame]:
    """The episode's frames, first and last included; ``played`` grows with it."""
    stack = _Stack(module.spec)
    obs = stack.begin(env.reset(seed=seed)[0])
    yield _draw(env, module.config.env.id)
    for _ in range(max_steps):
        frame, reward, terminated, truncated, _ = env.step(int(module.act(obs)))
        obs = stack.push(frame)
        played.episode_return += float(reward)
        played.length += 1
        yield _draw(env, module.config.env.id)
        if terminated or truncated:
            return


class _Stack:
    """Observations as the agent is to see them: the newest frames joined where it was trained so."""

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec

    def begin(self, obs: Any) -> Any:
        first = to_columns(obs, self._spec)
        padding = first
        if self._spec.stack_padding == "zero":
            padding = {name: np.zeros_like(frame) for name, frame in first.items()}
        self._frames = [padding] * self._spec.frame_stack
        return self.push(obs)

    def push(self, obs: Any) -> Any:
        self._frames = [*self._frames[1:], to_columns(obs, self._spec)]
        newest = self._frames[-1]
        if self._spec.frame_stack > 1:
            newest = {name: np.stack([frame[name] for frame in self._frames]) for name in newest}
        return newest if self._spec.is_dict else newest[OBS]


def _draw(env: gymnasium.Env[Any, Any], env_id: str) -> Frame:
    if env_id.startswith("MinAtar/") and find_spec("seaborn") is None:
        raise MissingExtra(f"drawing {env_id} needs seaborn: pip install 'perdqn[minatar]'")
    try:
        frame = env.render()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"{env_id} cannot be recorded: {error}") from error
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise ValueError(f"{env_id} cannot be recorded: it does not draw itself with render_mode rgb_array")
    if frame.dtype.kind == "f":  # colours in [0, 1], as MinAtar draws them
        frame = (frame * 255).round()
    scale = max(1, SMALLEST_SIDE // min(frame.shape[:2]))
    return frame.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)


def _write_gif(path: Path, frames: Iterator[Frame], fps: float) -> None:
    from PIL import Image

    images = (Image.fromarray(frame) for frame in frames)
    next(images).save(path, save_all=True, append_images=images, duration=round(1000 / fps), loop=0)


def _write_mp4(path: Path, frames: Iterator[Frame], fps: float) -> None:
    import imageio.v2 as imageio

    # sides are rounded up to even numbers, since the codec stores colours at half the resolution
    with imageio.get_writer(path, fps=fps, macro_block_size=2) as writer:
        for frame in frames:
            writer.append_data(frame)  # type: ignore[attr-defined]
