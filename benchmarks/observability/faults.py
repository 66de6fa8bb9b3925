"""Faults put into runs, and whether the advice names them: docs/observability.md has the results.

    python benchmarks/observability/faults.py --set dev      # what thresholds were set on
    python benchmarks/observability/faults.py --set score    # other environments, seeds and magnitudes
    python benchmarks/observability/faults.py --set check    # others again, for what changed since
    python benchmarks/observability/faults.py --quick        # seconds; shows that it works

Each run is short and has one fault, or none. A fault counts as named where one of its own labels is among
the first three pieces of advice; on a healthy run any advice above ``low`` is a false alarm. Rules and
thresholds are looked at on ``dev`` alone. Runs take turns in one process; what a set has run is appended to
``--out`` line by line, and not run again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from holdfast.advising.advice import PRIORITIES
from holdfast.advising.signals import Signals
from lightning.pytorch import Trainer
from torch import nn

from perdqn import PERDQN
from perdqn.advice import RULES, advise

HERE = Path(__file__).resolve().parent
SEEDS = {"dev": 1_000, "score": 2_000, "check": 3_000}
NUM_FIRST = 3


# -- environments ----------------------------------------------------------------------------------


class Scaled(gymnasium.Wrapper):
    """Observations and rewards times a factor."""

    def __init__(self, env: gymnasium.Env, obs: float = 1.0, reward: float = 1.0) -> None:
        super().__init__(env)
        self._obs, self._reward = obs, reward
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        if obs != 1.0:
            self.observation_space = spaces.Box(-np.inf, np.inf, space.shape, np.float32)

    def _scale(self, obs: Any) -> Any:
        return obs if self._obs == 1.0 else (np.asarray(obs, np.float32) * self._obs)

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        return self._scale(obs), info

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._scale(obs), float(reward) * self._reward, terminated, truncated, info


class Blind(gymnasium.ObservationWrapper):
    """Always shows the same."""

    def observation(self, obs: Any) -> Any:
        return np.zeros_like(obs)


class Endless(gymnasium.Wrapper):
    """Reports terminations as truncations."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, False, terminated or truncated, info


class Limited(gymnasium.Wrapper):
    """Cuts episodes after so many steps."""

    def __init__(self, env: gymnasium.Env, steps: int) -> None:
        super().__init__(env)
        self._limit, self._steps = steps, 0

    def reset(self, **kwargs: Any) -> Any:
        self._steps = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        return obs, reward, terminated, truncated or self._steps >= self._limit, info


class Catch(gymnasium.Env):
    """A ball falls through a grid of bytes; 1 for a paddle below it at the end, -1 else."""

    def __init__(self, height: int = 10, width: int = 7) -> None:
        self.height, self.width = height, width
        self.observation_space = spaces.Box(0.0, 1.0, (height * width,), np.float32)
        self.action_space = spaces.Discrete(3)
        self._row = self._column = self._paddle = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._row, self._column = 0, int(self.np_random.integers(self.width))
        self._paddle = self.width // 2
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.width - 1)
        self._row += 1
        has_landed = self._row == self.height - 1
        reward = (1.0 if self._paddle == self._column else -1.0) if has_landed else 0.0
        return self._observe(), reward, has_landed, False, {}

    def _observe(self) -> Any:
        grid = np.zeros((self.height, self.width), np.float32)
        grid[self._row, self._column] = grid[-1, self._paddle] = 1.0
        return grid.reshape(-1)


class Maze(gymnasium.Env):
    """A walk to the corner of a grid, -0.1 a step and 1 at the end."""

    def __init__(self, size: int = 6) -> None:
        self.size = size
        self.observation_space = spaces.Box(0.0, 1.0, (2 * size,), np.float32)
        self.action_space = spaces.Discrete(4)
        self._place = [0, 0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._place = [int(self.np_random.integers(self.size - 1)) for _ in range(2)]
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        axis, sign = divmod(int(action), 2)
        self._place[axis] = min(max(self._place[axis] + 2 * sign - 1, 0), self.size - 1)
        has_arrived = self._place == [self.size - 1, self.size - 1]
        return self._observe(), 1.0 if has_arrived else -0.1, has_arrived, False, {}

    def _observe(self) -> Any:
        obs = np.zeros(2 * self.size, np.float32)
        obs[[self._place[0], self.size + self._place[1]]] = 1.0
        return obs


BASE: dict[str, Any] = {
    "env": {"id": "", "wrappers": []},
    "replay": {"capacity": 50_000, "beta_env_steps": 9_000},
    "learner": {
        "learning_rate": 5e-4,
        "batch_size": 32,
        "n_step": 3,
        "train_every": 2,
        "warmup_env_steps": 500,
        "target_update_period": 200,
    },
    "exploration": {"epsilon_env_steps": 3_000},
    "evaluation": {"every_env_steps": 1_500, "episodes": 5, "num_envs": 5, "max_episode_steps": 500},
    "network": {"class_path": "mlp", "init_args": {"hidden_sizes": [64, 64]}},
    "total_env_steps": 9_000,
}
QUICK: dict[str, Any] = {
    "total_env_steps": 2_000,
    "replay": {"beta_env_steps": 2_000},
    "exploration": {"epsilon_env_steps": 500},
    "learner": {"backend": "eager"},
}
_CNN = {"class_path": "minatar_cnn", "init_args": {"hidden_size": 64}}
_HERE = "observability.faults."
ENVS: dict[str, dict[str, dict[str, Any]]] = {
    "dev": {
        "cartpole": {"env": {"id": "CartPole-v1"}},
        "breakout": {
            "env": {"id": "MinAtar/Breakout-v0"},
            "network": _CNN,
            "learner": {"learning_rate": 2.5e-4, "n_step": 1},
        },
        "maze": {"env": {"id": f"{_HERE}Maze"}, "learner": {"n_step": 1}},
    },
    "score": {
        "acrobot": {"env": {"id": "Acrobot-v1"}, "learner": {"batch_size": 64}},
        "asterix": {
            "env": {"id": "MinAtar/Asterix-v0"},
            "network": _CNN,
            "learner": {"learning_rate": 2.5e-4},
        },
        "catch": {
            "env": {"id": f"{_HERE}Catch"},
            "learner": {"n_step": 1, "learning_rate": 1e-3},
        },
    },
    "check": {
        "lunarlander": {"env": {"id": "LunarLander-v3"}, "learner": {"batch_size": 64}},
        "invaders": {
            "env": {"id": "MinAtar/SpaceInvaders-v0"},
            "network": _CNN,
            "learner": {"learning_rate": 2.5e-4},
        },
        "seaquest": {
            "env": {"id": "MinAtar/Seaquest-v0"},
            "network": _CNN,
            "learner": {"learning_rate": 2.5e-4},
        },
    },
}
HEALTHY: dict[str, dict[str, Any]] = {  # variations that are nobody's fault
    "as is": {},
    "plain": {
        "learner": {"double": False, "dueling": False, "backend": "eager"},
        "replay": {"prioritized": False},
    },
    "soft target": {"learner": {"target_update_period": 1, "target_tau": 0.01}},
    "slower": {"learner": {"learning_rate": 1e-4, "train_every": 4}},
    "faster": {"learner": {"learning_rate": 1e-3, "batch_size": 64, "backend": "eager"}},
    "two envs": {"env": {"num_envs": 2}, "exploration": {"epsilon_env_steps": 5_000}},
    "squared": {"learner": {"loss": "squared", "max_grad_norm": 1.0, "backend": "eager"}},
}


# -- faults ----------------------------------------------------------------------------------------

Patch = Callable[[PERDQN, float], None]
Settings = Callable[[dict[str, Any], float], None]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        labels: rules that name it.
        dev, score: its magnitude; ``check`` has that of ``score``.
        settings: changes the configuration.
        patch: changes the module before it is trained.
        backend: eager where nothing else has its graph, for compiling takes longer than the run.
    """

    labels: tuple[str, ...]
    dev: float
    score: float
    settings: Settings = lambda config, m: None
    patch: Patch = lambda module, m: None
    backend: str = "compiled"


def put(key: str, *more: str, value: Callable[[float, Any], Any] = lambda m, now: m) -> Settings:
    """Settings at dotted names become the magnitude, or what ``value`` makes of it and what was there."""

    def change(config: dict[str, Any], m: float) -> None:
        for name in (key, *more):
            section, _, leaf = name.rpartition(".")
            place = config[section] if section else config
            place[leaf] = value(m, place.get(leaf))

    return change


def wrap(name: str, **init_args: float) -> Settings:
    """A wrapper, whose arguments of -1 are the magnitude."""

    def change(config: dict[str, Any], m: float) -> None:
        given = {key: m if value == -1 else value for key, value in init_args.items()}
        config["env"]["wrappers"].append({"class_path": _HERE + name, "init_args": given})

    return change


def both(*settings: Settings) -> Settings:
    def change(config: dict[str, Any], m: float) -> None:
        for each in settings:
            each(config, m)

    return change


def _whole(m: float, now: Any) -> int:
    return int(m)


def _no_target_update(module: PERDQN, m: float) -> None:
    module._update_target = lambda: None  # type: ignore[method-assign]


def _silence(module: PERDQN, m: float) -> None:
    """The last hidden layer's biases far below 0."""
    layers = [layer for layer in module.online.torso.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        layers[-1].bias.fill_(-m)


def _square_alpha(module: PERDQN, m: float) -> None:
    module.memory._alpha = m


def _bootstrap_always(module: PERDQN, m: float) -> None:
    sample, gamma = module.memory.sample, module.config.learner.gamma**module.config.learner.n_step

    def wrong(*args: Any, **kwargs: Any) -> Any:
        batch = sample(*args, **kwargs)
        batch.discount[batch.discount == 0.0] = gamma
        return batch

    module.memory.sample = wrong  # type: ignore[method-assign]


def _forget_priorities(module: PERDQN, m: float) -> None:
    module.memory.update_priorities = lambda ids, priorities: None  # type: ignore[method-assign]


def _freeze_torso(module: PERDQN, m: float) -> None:
    module.online.torso.requires_grad_(False)


def _flip_rewards(module: PERDQN, m: float) -> None:
    add = module.memory.add

    def wrong(obs: Any, action: Any, reward: Any, *rest: Any) -> None:
        add(obs, action, -m * reward, *rest)

    module.memory.add = wrong  # type: ignore[assignment, method-assign]


def _enlarge(module: PERDQN, m: float) -> None:
    with torch.no_grad():
        for parameter in module.online.parameters():
            parameter.mul_(m)
    module.target.load_state_dict(module.online.state_dict())


def _narrow(config: dict[str, Any], m: float) -> None:
    arguments = config["network"]["init_args"] = dict(config["network"]["init_args"])
    if "hidden_sizes" in arguments:
        arguments["hidden_sizes"] = [int(m), int(m)]
    else:
        arguments["hidden_size"] = int(m)


def _constant_epsilon(config: dict[str, Any], m: float) -> None:
    config["exploration"] |= {"epsilon_start": m, "epsilon_end": m, "epsilon_env_steps": 0}


FAULTS = {
    "beta left at 0": Fault(
        ("beta_low",), 0.0, 0.05, put("replay.beta_start", "replay.beta_end")
    ),
    "learning rate high": Fault(
        ("learning_rate_high",), 100, 60, put("learner.learning_rate", value=lambda m, now: m * now)
    ),
    "learning rate low": Fault(
        ("learning_rate_low",), 1_000, 3_000, put("learner.learning_rate", value=lambda m, now: now / m)
    ),
    "target never updated": Fault(("target_static",), 0, 0, patch=_no_target_update),
    "target updated once": Fault(
        ("target_static", "target_slow"), 3_000, 2_500, put("learner.target_update_period", value=_whole)
    ),
    "target is online": Fault(
        ("target_fast",), 1, 2, put("learner.target_update_period", value=_whole)
    ),
    "no exploration": Fault(("epsilon_low",), 0.0, 0.005, _constant_epsilon),
    "epsilon stuck": Fault(("epsilon_high",), 1.0, 0.85, _constant_epsilon),
    "rewards large": Fault(("reward_large",), 1_000, 400, wrap("Scaled", reward=-1)),
    "rewards clipped away": Fault(
        ("reward_clipped_away",), 0.001, 0.004, put("learner.reward_clip")
    ),
    "rewards flipped": Fault(("rewards_disagree",), 1.0, 0.5, patch=_flip_rewards),
    "dead relus": Fault(("dead_relus",), 10, 30, patch=_silence),
    "torso frozen": Fault(("untrained_parameters",), 0, 0, patch=_freeze_torso, backend="eager"),
    "network narrow": Fault(("network_small",), 2, 4, _narrow, backend="eager"),
    "initial weights large": Fault(("weight_init_large",), 20, 12, patch=_enlarge),
    "replay small": Fault(
        ("replay_small",),
        200,
        400,
        both(put("replay.capacity", value=_whole), put("learner.warmup_env_steps", value=lambda m, _: 150)),
    ),
    "alpha high": Fault(("alpha_high",), 2.0, 3.0, patch=_square_alpha),
    "priorities never updated": Fault(("priorities_not_updated",), 0, 0, patch=_forget_priorities),
    "priority offset large": Fault(("priorities_uniform",), 100, 300, put("replay.priority_eps")),
    "discount short": Fault(("discount_short",), 0.5, 0.7, put("learner.gamma")),
    "bootstraps through ends": Fault(("terminal_bootstrap",), 0, 0, patch=_bootstrap_always),
    "ends reported as cuts": Fault(
        ("termination_hidden", "terminal_bootstrap"), 0, 0, wrap("Endless")
    ),
    "observations large": Fault(("obs_scale",), 1_000, 300, wrap("Scaled", obs=-1)),
    "observations constant": Fault(("obs_constant",), 0, 0, wrap("Blind")),
    "updates rare": Fault(
        ("replay_ratio_low",),
        256,
        200,
        both(
            put("learner.train_every"),
            put("learner.target_update_period", value=lambda m, _: 3),
        ),
    ),
    "batch small": Fault(
        ("batch_small",), 2, 4, put("learner.batch_size", value=_whole), backend="eager"
    ),
    "n_step long": Fault(("n_step_long",), 20, 30, put("learner.n_step", value=_whole)),
    "Adam's offset large": Fault(("adam_eps_large",), 10, 1, put("learner.adam_eps")),
    "clip norm tiny": Fault(("clip_tiny",), 1e-5, 1e-4, put("learner.max_grad_norm")),
    "huber delta tiny": Fault(
        ("huber_delta_tiny",), 0.001, 0.01, put("learner.huber_delta"), backend="eager"
    ),
    "warm-up long": Fault(
        ("warmup_long",), 6_000, 7_000, put("learner.warmup_env_steps", value=_whole)
    ),
}  # fmt: skip


# -- runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training: a fault on an environment, or a healthy variation."""

    fault: str | None
    variation: str
    env: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.fault or 'healthy'} | {self.variation} | {self.env} | {self.seed}"


def merge(base: dict[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of later ones over those of earlier ones; a network is replaced whole."""
    merged = copy.deepcopy(base)
    for other in others:
        for key, value in copy.deepcopy(dict(other)).items():
            is_section = isinstance(value, dict) and key != "network"
            merged[key] = {**merged.get(key, {}), **value} if is_section else value
    return merged


def train(which: str, run: Run, **more: Any) -> Signals:
    """What a run said of itself.

    Args:
        which: ``dev``, ``score`` or ``check``.
        more: settings over all others.
    """
    variation: dict[str, Any] = HEALTHY[run.variation] if run.fault is None else {}
    fault = FAULTS[run.fault] if run.fault else Fault((), 0, 0)
    backend: dict[str, Any] = {"learner": {"backend": fault.backend}}
    config = merge(BASE, ENVS[which][run.env], backend, variation, {"seed": run.seed}, more)
    magnitude = fault.dev if which == "dev" else fault.score
    fault.settings(config, magnitude)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = PERDQN(**config)
        fault.patch(module, magnitude)
        signals = Signals(module.advice_settings())
        module.metrics_watch = lambda metrics: signals.add(module.env_steps, metrics)
        Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            log_every_n_steps=100,
            num_sanity_val_steps=0,
        ).fit(module)
    return signals


def seed_of(which: str, *names: str) -> int:
    return SEEDS[which] + zlib.crc32("|".join(names).encode()) % 1_000


def plan(which: str, num_healthy: int) -> Iterator[Run]:
    """Every fault on one environment in turn, healthy runs on all, every fault on the next environment."""
    envs, variations = [*ENVS[which]], [*HEALTHY]
    rounds = [
        [Run(name, "as is", env, seed_of(which, name, env)) for name, env in zip(FAULTS, turn, strict=False)]
        for turn in (itertools.cycle(envs), itertools.islice(itertools.cycle(envs), 1, None))
    ]
    yield from rounds[0]
    for i in range(num_healthy):
        env, variation = envs[i % len(envs)], variations[i // len(envs) % len(variations)]
        yield Run(None, variation, env, seed_of(which, "healthy", str(i)))
    yield from rounds[1]


# -- the score -------------------------------------------------------------------------------------


def judge(run: Run, signals: Signals) -> dict[str, Any]:
    """The advice, and whether it is right."""
    advice = [a for a in advise(RULES, signals) if a.priority != PRIORITIES[-1]]
    first = [a.rule for a in advice[:NUM_FIRST]]
    labels = FAULTS[run.fault].labels if run.fault else ()
    is_right = bool(set(first) & set(labels)) if run.fault else not advice
    return {"advice": [(a.rule, a.priority, a.confidence) for a in advice], "is_right": is_right}


def report(told: Mapping[str, dict[str, Any]]) -> str:
    """Markdown: shares, and for each fault what was advised how often."""
    faults = {key: value for key, value in told.items() if not key.startswith("healthy |")}
    healthy = {key: value for key, value in told.items() if key.startswith("healthy |")}
    named = sum(value["is_right"] for value in faults.values())
    alarms = sum(not value["is_right"] for value in healthy.values())
    lines = [
        f"{named} of {len(faults)} faults named among the first {NUM_FIRST}; "
        f"{alarms} of {len(healthy)} healthy runs with a false alarm.",
        "",
        "| fault | named | first pieces of advice, and in how many runs |",
        "|-|-|-|",
    ]
    names = dict.fromkeys(key.split(" | ")[0] for key in told)
    for name in names:
        rows = [value for key, value in told.items() if key.split(" | ")[0] == name]
        counts: dict[str, int] = {}
        for row in rows:
            for rule, *_ in row["advice"][:NUM_FIRST]:
                counts[rule] = counts.get(rule, 0) + 1
        said = ", ".join(f"{rule} {n}" for rule, n in sorted(counts.items(), key=lambda c: -c[1]))
        lines.append(f"| {name} | {sum(r['is_right'] for r in rows)}/{len(rows)} | {said or 'none'} |")
    return "\n".join(lines)


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    )
    return done.stdout.strip()


def read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {line["key"]: line for line in map(json.loads, path.read_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--set", choices=[*ENVS], default="dev")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="faults whose name holds this")
    parser.add_argument("--healthy", type=int, default=21)
    parser.add_argument("--keep", action="store_true", help="write down what each run said")
    parser.add_argument("--again", action="store_true", help="judge anew what runs said (--keep)")
    parser.add_argument("--quick", action="store_true", help="three short runs")
    given = parser.parse_args()
    out = given.out or HERE / "results" / f"faults-{given.set}.jsonl"
    runs = [run for run in plan(given.set, given.healthy) if (given.only or "") in run.key]
    more: dict[str, Any] = {}
    if given.quick:
        faults, healthy = ([r for r in runs if bool(r.fault) is is_one] for is_one in (True, False))
        runs, more = [faults[0], faults[2], healthy[-1]], QUICK
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    told = read(out)
    if given.again:
        for run in runs:
            if run.key in told:
                signals = Signals(told[run.key]["settings"])
                signals.load_state_dict(told[run.key]["signals"])
                told[run.key] |= judge(run, signals)
        print(report({run.key: told[run.key] for run in runs if run.key in told}))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run.key in told:
            continue
        started = time.monotonic()
        signals = train(given.set, run, **more)
        line = {"key": run.key, **judge(run, signals), "seconds": round(time.monotonic() - started, 1)}
        line["commit"] = commit()
        if given.keep:
            line |= {"settings": signals.settings, "signals": signals.state_dict()}
        told[run.key] = line
        with out.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")
        verdict = "ok  " if line["is_right"] else "MISS"
        print(verdict, run.key, line["seconds"], line["advice"][:5], flush=True)
    print(report({run.key: told[run.key] for run in runs}))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # where class paths of the environments begin
    main()
