"""What each setting may be, whatever the others are: its type and its range.

Knows nothing about how settings depend on each other.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from perdqn.config.settings import HEAD_NAMES, TORSO_NAMES, ClassSpec, Config
from perdqn.config.wording import nearest, sentence, shown


@dataclass(frozen=True)
class Range:
    """Numbers a setting may take, and what to do about others."""

    low: float = -math.inf
    high: float = math.inf
    remedy: str = ""
    above: bool = False  # low itself is out

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"lie in {'(' if self.above else '['}{self.low:g}, {self.high:.10g}]"
        return f"be {'above' if self.above else 'at least'} {self.low:g}"


def _positive(remedy: str) -> Range:
    return Range(low=0, remedy=remedy, above=True)


RANGES = {
    "env.num_envs": Range(1, remedy="use 1 for a single environment"),
    "env.frame_stack": Range(1, remedy="use 1 to leave observations alone, 4 for Atari"),
    "env.max_restarts": Range(0, remedy="use 0 to end the run at the first failure"),
    "replay.capacity": Range(2, remedy="use 100000 for small observations"),
    "replay.alpha": Range(0, 1, "use 0.6 for the paper's setting"),
    "replay.beta_start": Range(0, 1, "use 0.4 for the paper's setting"),
    "replay.beta_end": Range(0, 1, "use 1.0 for the paper's setting"),
    "replay.beta_env_steps": Range(0, remedy="use model.total_env_steps for the paper's setting"),
    "replay.priority_eps": _positive("use 1e-6, so that no priority is ever zero"),
    "replay.priority_clip": _positive("use 1.0, or null to leave priorities free"),
    "replay.cached_frames": Range(
        0, remedy="use 0 to keep none, or as many as rows are drawn again and again"
    ),
    "replay.memory_alert_fraction": Range(0, 1, "use 0.9", above=True),
    "replay.cleanup_env_steps": Range(1, remedy="use null to turn clean-ups off"),
    "learner.learning_rate": Range(0, 1, "use 1e-4", above=True),
    "learner.adam_eps": _positive("use 1e-8"),
    "learner.batch_size": Range(1, remedy="use 32"),
    "learner.gamma": Range(0, 1, "use 0.99"),
    "learner.n_step": Range(1, remedy="use 1 for plain one-step targets, 3 for Rainbow's"),
    "learner.train_every": _positive("use 4 for one update every 4 env steps, 0.5 for two updates a step"),
    "learner.warmup_env_steps": Range(1, remedy="use 1000"),
    "learner.updates_per_step": Range(1, remedy="use 16; it changes the cost, never the result"),
    "learner.huber_delta": _positive("use 1.0"),
    "learner.reward_clip": _positive("use 1.0, or null to leave rewards alone"),
    "learner.target_update_period": Range(1, remedy="use 1000"),
    "learner.target_tau": Range(0, 1, "use 1.0 to copy the online network", above=True),
    "learner.max_grad_norm": _positive("use 10.0, or null to leave gradients alone"),
    "learner.num_threads": Range(1, remedy="use 1 for small networks, or null to let the network decide"),
    "exploration.epsilon_start": Range(0, 1, "use 1.0"),
    "exploration.epsilon_end": Range(0, 1, "use 0.05"),
    "exploration.epsilon_env_steps": Range(0, remedy="use a tenth of model.total_env_steps"),
    "evaluation.every_env_steps": Range(1, remedy="use null to turn evaluations off"),
    "evaluation.episodes": Range(1, remedy="use 10"),
    "evaluation.test_episodes": Range(1, remedy="use 100"),
    "evaluation.num_envs": Range(1, remedy="use 10"),
    "evaluation.epsilon": Range(0, 1, "use 0.0 for greedy evaluation"),
    "evaluation.max_episode_steps": Range(1, remedy="use 30000"),
    "total_env_steps": Range(1, remedy="use 100000"),
    "total_episodes": Range(1, remedy="use 500, or null where model.total_env_steps is the budget"),
    "seed": Range(0, 2**32 - 1, "use 0"),
}

# legal, and hardly what was meant
UNUSUAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "replay.priority_eps": (lambda v: v > 0.1, "drowns the TD errors: draws are nearly uniform; use 1e-6"),
    "learner.learning_rate": (lambda v: v > 1e-2, "is large for Adam; 1e-4 to 1e-3 is usual"),
    "learner.batch_size": (lambda v: v > 4096, "is large; 32 to 512 is usual"),
    "learner.gamma": (lambda v: v == 1, "lets values grow without bound in long episodes; 0.99 is usual"),
    "learner.n_step": (lambda v: v > 20, "makes targets noisy and off-policy; 1 to 5 is usual"),
    "learner.train_every": (
        lambda v: v < 0.25,
        "makes over 4 updates per env step, which overfits the replay",
    ),
    "evaluation.episodes": (lambda v: v == 1, "leaves no interval around the mean; use 10"),
    "evaluation.test_episodes": (lambda v: v == 1, "leaves no interval around the mean; use 100"),
    "evaluation.epsilon": (lambda v: v > 0.2, "measures random actions more than the policy; use 0.0"),
}

SHORT_NAMES = {"network": TORSO_NAMES, "head": HEAD_NAMES}


def _hints(cls: type, prefix: str = "") -> dict[str, Any]:
    """The type of each setting below ``cls``, by its dotted name; a `ClassSpec` is one setting."""
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        nested = is_dataclass(hint) and hint is not ClassSpec
        hints |= _hints(hint, f"{prefix}{name}.") if nested else {f"{prefix}{name}": hint}
    return hints


HINTS = _hints(Config)
SECTIONS: dict[str, Any] = {
    name: hint
    for name, hint in get_type_hints(Config).items()
    if is_dataclass(hint) and hint is not ClassSpec
}


def flatten(config: Config) -> dict[str, Any]:
    """The value of each setting, by its dotted name."""
    values = {}
    for key in HINTS:
        section, _, name = key.rpartition(".")
        values[key] = getattr(getattr(config, section) if section else config, name)
    return values


DEFAULTS = flatten(Config())


def own_fault(key: str, value: Any) -> str | None:
    """What is wrong with a value whatever the others are."""
    if must := _type_must(HINTS[key], value):
        return sentence(f"model.{key}", must, value, _type_remedy(key, value))
    if key in RANGES and value is not None and value not in RANGES[key]:
        return sentence(f"model.{key}", str(RANGES[key]), value, RANGES[key].remedy)
    if key in SHORT_NAMES:
        return _path_fault(f"model.{key}.class_path", value.class_path, SHORT_NAMES[key])
    if key == "env.wrappers":
        named = [_path_fault(f"model.{key}[{i}].class_path", w.class_path, ()) for i, w in enumerate(value)]
        return next(filter(None, named), None)
    if key == "env.id" and not value.strip():
        return sentence("model.env.id", "name an environment", value, "use CartPole-v1")
    return None


def own_warning(key: str, value: Any) -> str | None:
    """What is unwise about a value that has no fault."""
    is_unusual, why = UNUSUAL.get(key, (lambda _: False, ""))
    return f"model.{key} of {shown(value)} {why}" if is_unusual(value) else None


def _type_must(hint: Any, value: Any) -> str | None:
    """What the value must be, where it is of another type."""
    if get_origin(hint) in (Union, types.UnionType):
        option = next(option for option in get_args(hint) if option is not types.NoneType)
        must = None if value is None else _type_must(option, value)
        return f"{must}, or null" if must else None
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"be one of {', '.join(get_args(hint))}"
    if get_origin(hint) is list:
        return (
            None
            if isinstance(value, list) and all(map(_is_class_spec, value))
            else "be a list of class paths"
        )
    if get_origin(hint) is dict:
        is_fine = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        return None if is_fine else "be a dict of keyword arguments"
    if hint is ClassSpec:
        return None if _is_class_spec(value) else "be a class path with its init_args"
    if hint is float:
        is_fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return None if is_fine else "be a finite number"
    is_fine = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    return None if is_fine else {int: "be an integer", bool: "be true or false", str: "be a string"}[hint]


def _is_class_spec(value: Any) -> bool:
    return (
        isinstance(value, ClassSpec)
        and isinstance(value.class_path, str)
        and _type_must(dict[str, Any], value.init_args) is None
    )


def _type_remedy(key: str, value: Any) -> str:
    hint = HINTS[key]
    if get_origin(hint) is Literal and (meant := nearest(str(value), get_args(hint))):
        return f"did you mean {meant}?"
    if (hint is int or int in get_args(hint)) and (whole := _whole_number(value)) is not None:
        return f"write {whole}"
    return RANGES[key].remedy if key in RANGES else ""


def _whole_number(value: Any) -> int | None:
    """The integer that ``2.0`` or ``1e5`` was probably meant to be."""
    try:
        number = float(value) if isinstance(value, float | str) else math.nan
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _path_fault(key: str, path: str, short_names: tuple[str, ...]) -> str | None:
    parts = path.split(".")
    if path in short_names or (len(parts) > 1 and all(part.isidentifier() for part in parts)):
        return None
    must = f"be one of {', '.join(short_names)} or an import path" if short_names else "be an import path"
    meant = nearest(path, short_names)
    return sentence(key, must, path, f"did you mean {meant}?" if meant else "write package.module.Name")
