"""What a proof compares: a run as it is, with a change, and with a random one, under several seeds.

Knows nothing about how an arm is run, nor what it shows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from perdqn.config import check, read
from perdqn.config.values import HINTS, RANGES

Kind = Literal["as is", "control", "changed"]
KINDS = get_args(Kind)
NUM_EVALUATIONS = 10  # of an arm, evenly over its budget

FOR_SPEED = frozenset(
    f"model.{name}"
    for name in (
        "env.num_envs",
        "env.vectorization",
        "learner.num_threads",
        "learner.updates_per_step",
        "learner.act_ahead",
        "learner.backend",
        "replay.storage",
        "replay.cached_frames",
        "replay.device",
    )
)
CONTROLS = tuple(
    f"model.{name}"
    for name in (
        "learner.learning_rate",
        "learner.gamma",
        "learner.n_step",
        "learner.target_update_period",
        "learner.target_tau",
        "learner.adam_eps",
        "learner.huber_delta",
        "learner.max_grad_norm",
        "replay.capacity",
        "replay.alpha",
        "replay.beta_start",
        "exploration.epsilon_end",
        "exploration.epsilon_env_steps",
    )
)  # that an advice may be about, and that change an arm's cost little


@dataclass(frozen=True)
class Arm:
    """One run of a proof; those of one seed make a pair.

    Args:
        changes: value of each setting that is not the run's own.
    """

    kind: Kind
    seed: int
    changes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"seed-{self.seed}-{self.kind.replace(' ', '-')}"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        changes: value of each changed setting, by the name a user types.
        settings: of the run, as a nested dict, under ``model``.
        begin_env_steps: where the arms begin; 0 is from nothing.
        budget_env_steps: how long each goes on.
    """

    changes: Mapping[str, Any]
    settings: Mapping[str, Any]
    begin_env_steps: int
    budget_env_steps: int

    @property
    def is_about_speed(self) -> bool:
        """Whether the change makes a run no better, only faster: then its speed is compared."""
        return self.changes.keys() <= FOR_SPEED

    @property
    def end_env_steps(self) -> int:
        """Where the arms end."""
        return self.begin_env_steps + self.budget_env_steps

    def arms(self, num_seeds: int, with_control: bool = False) -> list[Arm]:
        """Pair by pair; which goes first alternates, so that a machine that slows down hits both."""
        first = int(self.settings.get("seed", 0)) + 1  # the run's own showed what the advice came from
        arms: list[Arm] = []
        for seed in range(first, first + num_seeds):
            pair = [Arm("as is", seed, {}), Arm("changed", seed, self.changes)]
            if with_control:
                pair.append(Arm("control", seed, self._draw_control(seed)))
            arms += pair[::-1] if (seed - first) % 2 else pair
        return arms

    def overlay(self, arm: Arm) -> dict[str, Any]:
        """The arm's settings over those of the run, as a nested dict."""
        evaluation: dict[str, Any] = {"model.evaluation.stop_at_return": None}
        if self.is_about_speed:
            evaluation |= {"model.evaluation.every_env_steps": None, "model.evaluation.test_episodes": 1}
        else:
            period = max(1, self.budget_env_steps // NUM_EVALUATIONS)
            evaluation |= {"model.evaluation.every_env_steps": period}
        # no less than the run's own, which its schedules may not outlast
        own = self.settings.get("total_env_steps")
        unit, budget = ("episodes", _ENDLESS) if own is None else ("env_steps", max(own, self.end_env_steps))
        others = {"model.seed": arm.seed, f"model.total_{unit}": budget, "trainer.enable_progress_bar": False}
        return nest({**evaluation, **others, **arm.changes})

    def find_faults(self, changes: Mapping[str, Any]) -> list[str]:
        """What keeps the run's settings with ``changes`` from working."""
        config, faults = read(nest(changes, {"model": self.settings})["model"])
        return faults + check(config).faults

    def _draw_control(self, seed: int) -> dict[str, Any]:
        """Another setting, scaled as much as the change scales its own, up or down."""
        now = flat(self.settings)
        size = max((_distance(name, now, value) for name, value in self.changes.items()), default=0.0)
        rng = np.random.default_rng(seed)
        names = [name for name in CONTROLS if name not in self.changes and self._may_change(name)]
        for name in rng.permutation(names).tolist():
            for sign in rng.permutation([-1, 1]).tolist():
                value = _scale(
                    name, now.get(name.removeprefix("model.")), math.exp(sign * (size or _UNSIZED))
                )
                if value is not None and not self.find_faults({name: value}):
                    return {name: value}
        raise ValueError(f"no other setting can be changed by a factor of {math.exp(size):g}")

    def _may_change(self, name: str) -> bool:
        return self.begin_env_steps == 0 or name != "model.replay.capacity"  # a fork would lose its replay


_ENDLESS = 10**9
_UNSIZED = math.log(10)  # for changes that are no matter of more or less


def _from_one(name: str) -> bool:
    """Whether what counts of a setting is how far it is from 1."""
    return name == "model.learner.gamma"


def _distance(name: str, now: Mapping[str, Any], value: Any) -> float:
    """How far a change goes, as the logarithm of a factor; 0 where that makes no sense."""
    pair = [now.get(name.removeprefix("model.")), value]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in pair):
        return 0.0
    before, after = (1 - v if _from_one(name) else v for v in pair)
    return abs(math.log(after / before)) if before > 0 and after > 0 else 0.0


def _scale(name: str, value: Any, factor: float) -> Any:
    """The setting's value times ``factor``, in its type and range; None where that changes nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    key = name.removeprefix("model.")
    scaled = 1 - (1 - value) * factor if _from_one(name) else value * factor
    if key in RANGES:
        scaled = min(max(scaled, RANGES[key].low), RANGES[key].high)
    scaled = round(scaled) if HINTS[key] is int or isinstance(value, int) else float(f"{scaled:.3g}")
    return None if scaled == value else scaled


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; what is no setting by itself, such as ``env.kwargs``, stays whole."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaves |= flat(value, f"{key}.") if isinstance(value, Mapping) and key not in HINTS else {key: value}
    return leaves


def nest(leaves: Mapping[str, Any], above: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Dotted names as nested dicts, over those of ``above``, which is left as it is."""
    tree: dict[str, Any] = copy.deepcopy(dict(above or {}))
    for name, value in leaves.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree
