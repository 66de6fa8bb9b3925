"""Environments by id or import path: how they are made, what they show, how their episodes are seeded.

Knows nothing about replay or learning.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from perdqn.class_path import instantiate
from perdqn.config import EnvConfig
from perdqn.transition import OBS, Column, EnvSpec

_PHASES = {"train": 0, "validate": 1, "test": 2, "record": 3, "self-test": 4}
_EXTRAS = {"ALE/": ("ale_py", "atari"), "MinAtar/": ("minatar", "minatar")}  # id prefix -> package, extra
_BOX2D = ("LunarLander", "BipedalWalker", "CarRacing")


class MissingExtra(ValueError):
    """An optional package is not installed; the message names the extra that brings it."""


def episode_seed(run_seed: int, phase: str, env: int, episode: int, rank: int = 0) -> int:
    """The seed of one episode, below 2^31; a pure function, so any episode can be played again."""
    sequence = np.random.SeedSequence([run_seed, _PHASES[phase], rank, env, episode])
    return int(sequence.generate_state(1)[0] & 0x7FFFFFFF)


def is_native(config: EnvConfig) -> bool:
    """Whether the environment is stepped by its own vector version."""
    has_native = config.id.startswith("ALE/") and not config.wrappers
    if config.vectorization == "native" and not has_native:
        raise ValueError(
            "model.env.vectorization native is offered for unwrapped ALE/... ids alone, "
            f"got id {config.id!r}; use auto"
        )
    return has_native and config.vectorization in ("auto", "native")


def make(config: EnvConfig, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """One wrapped environment that hands out single frames.

    Raises:
        MissingExtra: its package is not installed.
        ValueError: the id or a wrapper cannot be found or made, whatever it raises itself.
    """
    _require_extra(config.id)
    arguments = f" with model.env.kwargs {config.kwargs}" if config.kwargs else ""
    with _naming(f"model.env.id {config.id}{arguments}"):
        env: gymnasium.Env[Any, Any] = (
            SingleNative(config) if config.id.startswith("ALE/") else _make_by_id(config, render_mode)
        )
    for wrapper in config.wrappers:
        with _naming(f"model.env.wrappers {wrapper.class_path}"):
            env = instantiate(wrapper, {}, "model.env.wrappers", env)
    return env


@contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a ValueError of one line that names the setting."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and text.startswith("model."):
            raise
        raise ValueError(f"{setting}: {type(error).__name__}: {text}") from error


def make_native(config: EnvConfig, num_envs: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """ALE's own vector of environments: one frame per observation, rewards as the game gives them.

    Its threads step the environments; its autoreset is overruled by a seeded reset of our own.
    """
    _require_extra(config.id)
    import ale_py

    gymnasium.register_envs(ale_py)
    return gymnasium.make_vec(
        config.id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        **{
            "stack_num": 1,
            "reward_clipping": False,
            "autoreset_mode": AutoresetMode.NEXT_STEP,
            **config.kwargs,
        },
    )


def describe(config: EnvConfig) -> EnvSpec:
    """What a network and a replay must know of the environment.

    Raises:
        ValueError: its observations or actions are of a kind we do not train on.
    """
    env = make(config)
    try:
        return spec_of(env.observation_space, env.action_space, config)
    finally:
        env.close()


def spec_of(observations: spaces.Space[Any], actions: spaces.Space[Any], config: EnvConfig) -> EnvSpec:
    """See `describe`."""
    if not isinstance(actions, spaces.Discrete):
        raise ValueError(f"model.env.id {config.id}: actions must be Discrete, got {actions}")
    is_dict = isinstance(observations, spaces.Dict)
    named = observations.spaces.items() if isinstance(observations, spaces.Dict) else [(OBS, observations)]
    return EnvSpec(
        columns=tuple(_column(name, space, config.id) for name, space in named),
        is_dict=is_dict,
        num_actions=int(actions.n),
        action_start=int(actions.start),
        frame_stack=config.frame_stack,
        stack_padding=config.stack_padding,
    )


def to_columns(obs: Any, spec: EnvSpec) -> dict[str, np.ndarray[Any, Any]]:
    """An environment's observation, single or a batch, as columns of the spec's dtypes."""
    named = obs if spec.is_dict else {OBS: obs}
    return {c.name: np.asarray(named[c.name], c.dtype) for c in spec.columns}


def _column(name: str, space: spaces.Space[Any], env_id: str) -> Column:
    if isinstance(space, spaces.Box):
        return Column(name, tuple(space.shape), np.dtype(space.dtype))
    if isinstance(space, spaces.Discrete):
        return Column(name, (), np.dtype(np.int64), int(space.n), int(space.start))
    raise ValueError(
        f"model.env.id {env_id}: the observation {name!r} is a {type(space).__name__}; "
        "Box, Discrete and a flat Dict of those can be trained on, so wrap the environment"
    )


def _require_extra(env_id: str) -> None:
    for prefix, (package, extra) in _EXTRAS.items():
        if env_id.startswith(prefix) and importlib.util.find_spec(package) is None:
            raise MissingExtra(f"{env_id} needs {package}: pip install 'perdqn[{extra}]'")
    if env_id.startswith(_BOX2D) and importlib.util.find_spec("Box2D") is None:
        raise MissingExtra(f"{env_id} needs Box2D: pip install 'perdqn[box2d]'")


def _make_by_id(config: EnvConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    kwargs = dict(config.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if config.id.startswith("MinAtar/"):
        _register_minatar()
    factory = _factory(config.id)
    if factory is not None:
        env = factory(**kwargs)
        if not isinstance(env, gymnasium.Env):
            raise ValueError(f"model.env.id {config.id} makes a {type(env).__name__}, not a gymnasium.Env")
        return env
    env = gymnasium.make(config.id, disable_env_checker=True, **kwargs)
    return StickyActionReset(env) if config.id.startswith("MinAtar/") else env


def _factory(path: str) -> Callable[..., Any] | None:
    """The class or function at ``package.module.Name`` or ``package.module:Name``; None for ids."""
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name or "/" in path or path in gymnasium.registry:
        return None
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            return None
        raise  # the module is there, but imports one that is not
    return getattr(module, name, None)


def _register_minatar() -> None:
    if "MinAtar/Breakout-v0" not in gymnasium.registry:
        from minatar.gym import register_envs

        register_envs()


class StickyActionReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MinAtar's last action survives its reset, so episodes depend on those before; this clears it."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(**kwargs)


class SingleNative(gymnasium.Env[Any, Any]):
    """One environment of the native vector, with frames squeezed out of their stack of one."""

    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 15}
        self._vector = make_native(config, 1)
        box = self._vector.single_observation_space
        assert isinstance(box, spaces.Box)
        self.observation_space = spaces.Box(0, 255, box.shape[1:], np.uint8)
        self.action_space = self._vector.single_action_space
        self._frame = np.zeros(self.observation_space.shape or (), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, _ = self._vector.reset(seed=None if seed is None else np.array([seed]))  # type: ignore[arg-type]
        self._frame = obs[0, 0]
        return self._frame, {}

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, _ = self._vector.step(np.array([action]))
        self._frame = obs[0, 0]
        return self._frame, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        frame = self._frame
        return np.repeat(frame[..., None], 3, axis=-1) if frame.ndim == 2 else frame

    def close(self) -> None:
        self._vector.close()
