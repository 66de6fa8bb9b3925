"""Plays one greedy episode and shows what it looks like: a GIF or MP4 file, or a film small enough to log.

Knows nothing about training or statistics.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
# of a film
LARGEST_SIDE = 320  # pixels; larger frames are reduced by a whole factor
MAX_FRAMES = 100
MAX_STEPS = 1_000
MAX_BYTES = 1_000_000
Frame = np.ndarray  # uint8 [height, width, 3]


@dataclass
class EpisodeRecord:
    """One recorded episode: undiscounted return, env steps, and the file that shows it."""

    episode_return: float
    length: int
    path: Path

    def note(self, reward: float) -> None:
        """One step more."""
        self.episode_return += reward
        self.length += 1


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
        max_steps = max_steps or module.config.evaluation.max_episode_steps
        frames = _play(module, env, seed, max_steps, note=played.note)
        first = next(frames)  # an environment that cannot draw leaves no file
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, chain([first], frames), _get_fps(env))
    return played


class Film(NamedTuple):
    """An animated GIF, and its size in pixels."""

    gif: bytes
    height: int
    width: int


def film(module: PERDQN, *, seed: int, is_stopped: Callable[[], bool] = lambda: False) -> Film:
    """Play one greedy episode in an environment of its own, at most `MAX_STEPS` steps, and show every n-th.

    n is a power of two, so large that at most `MAX_FRAMES` frames and `MAX_BYTES` are left; it is as fast as
    the episode was.

    Args:
        seed: the episode's own.
        is_stopped: asked between frames; once it says so, the film ends.

    Raises:
        ValueError: a package is missing, or the environment cannot draw itself.
    """
    _require_packages(".gif", "a film")
    reel = _Reel()
    with closing(_make_drawing(module.config.env)) as env:
        for frame in _play(module, env, seed, MAX_STEPS, reel.wants):
            reel.add(frame)
            if is_stopped():
                break
        return reel.develop(_get_fps(env))


class _Reel:
    """Frames evenly spread over an episode of any length: thinned as they become too many."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._every = 1

    def wants(self, step: int) -> bool:
        return step % self._every == 0

    def add(self, frame: Frame) -> None:
        from PIL import Image

        factor = -(-max(frame.shape[:2]) // LARGEST_SIDE)
        self._frames.append(np.asarray(Image.fromarray(frame).reduce(factor)) if factor > 1 else frame)
        if len(self._frames) > MAX_FRAMES:
            self._thin()

    def _thin(self) -> None:
        self._frames, self._every = self._frames[::2], 2 * self._every

    def develop(self, fps: float) -> Film:
        while len(gif := self._encode(fps)) > MAX_BYTES and len(self._frames) > 1:
            self._thin()
        height, width, _ = self._frames[0].shape
        return Film(gif, height, width)

    def _encode(self, fps: float) -> bytes:
        file = BytesIO()
        _write_gif(file, iter(self._frames), fps / self._every)
        return file.getvalue()


def _choose_writer(path: Path) -> Callable[[Path, Iterator[Frame], float], None]:
    if path.suffix not in PACKAGES:
        raise ValueError(f"{path} must end in {' or '.join(PACKAGES)}")
    _require_packages(path.suffix, path.name)
    return _write_gif if path.suffix == ".gif" else _write_mp4


def _require_packages(suffix: str, what: str) -> None:
    if missing := [name for name in PACKAGES[suffix] if find_spec(name) is None]:
        raise MissingExtra(f"{what} needs {' and '.join(missing)}: pip install 'perdqn[video]'")


def _make_drawing(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures need no display, and SDL complains of none
    try:
        return make(config, render_mode="rgb_array")
    except ValueError as error:  # such as a factory of the user's that takes no such argument
        raise ValueError(f"{config.id} cannot be recorded: {error}") from error


def _get_fps(env: gymnasium.Env[Any, Any]) -> float:
    return float(env.metadata.get("render_fps") or DEFAULT_FPS)


def _play(
    module: PERDQN,
    env: gymnasium.Env[Any, Any],
    seed: int,
    max_steps: int,
    wants: Callable[[int], bool] = lambda step: True,
    note: Callable[[float], None] = lambda reward: None,
) -> Iterator[Frame]:
    """The first frame and those after steps that are wanted; the reward of every step is noted."""
    stack = _Stack(module.spec)
    obs = stack.begin(env.reset(seed=seed)[0])
    yield _draw(env, module.config.env.id)
    for step in range(1, max_steps + 1):
        frame, reward, terminated, truncated, _ = env.step(int(module.act(obs)))
        obs = stack.push(frame)
        note(float(reward))
        if wants(step):
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


def _write_gif(file: Path | BytesIO, frames: Iterator[Frame], fps: float) -> None:
    from PIL import Image

    images = (Image.fromarray(frame) for frame in frames)
    duration = round(1000 / fps)
    next(images).save(file, "GIF", save_all=True, append_images=images, duration=duration, loop=0)


def _write_mp4(path: Path, frames: Iterator[Frame], fps: float) -> None:
    import imageio.v2 as imageio

    # sides are rounded up to even numbers, since the codec stores colours at half the resolution
    with imageio.get_writer(path, fps=fps, macro_block_size=2) as writer:
        for frame in frames:
            writer.append_data(frame)  # type: ignore[attr-defined]
