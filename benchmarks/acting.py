"""What acting costs beside the bare environments, and the policy by torch beside ours.

    python benchmarks/acting.py             # some minutes, writes benchmarks/results/acting.json
    python benchmarks/acting.py --quick     # seconds; shows that it works, writes nothing

A round takes the same number of steps of each side in turn, in one thread: ``bare`` the environments
alone, as Gymnasium or ALE makes them; ``acting`` the same through `Actor.step` with our policy, all but
adding to the replay; ``policy`` and ``torch`` the greedy choice alone, by us and by the network's own
forward. Both kinds of environment take the same actions, whatever the policy says, and begin their
episodes from seeds. Ratios and differences are taken round by round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from perdqn import PERDQN
from perdqn.acting.actor import Actor
from perdqn.acting.environment import is_native, make, make_native
from perdqn.acting.vector import Environments
from perdqn.config import EnvConfig

RESULTS = Path(__file__).parent / "results" / "acting.json"
EPSILON = 0.05
MLP = {"class_path": "mlp", "init_args": {"hidden_sizes": [64, 64]}}
CASES: list[tuple[str, dict[str, Any], int]] = [  # environment, network, steps in a round
    ("CartPole-v1", {"network": MLP}, 400),
    ("MinAtar/Breakout-v0", {}, 200),
    ("ALE/Pong-v5", {}, 40),
]


class NoReplay:
    """Takes rows and forgets them."""

    def add(self, *row: Any) -> None:
        """Do nothing."""


def script(num_actions: int, num_envs: int) -> Callable[[], np.ndarray]:
    """Each action in turn, over and over; CartPole stays up some forty steps."""
    actions = itertools.cycle([np.full(num_envs, action) for action in range(num_actions)])
    return lambda: next(actions)


def bare(config: EnvConfig, num_envs: int, num_actions: int) -> Callable[[], None]:
    """One step of every environment, without anything of ours."""
    choose, seeds = script(num_actions, num_envs), itertools.count()
    if is_native(config):
        vector = make_native(config, num_envs)
        vector.reset(seed=np.arange(num_envs))

        def step_vector() -> None:
            _, _, terminated, truncated, _ = vector.step(choose())
            ended = terminated | truncated
            if np.count_nonzero(ended):
                fresh = np.array([next(seeds) for _ in range(np.count_nonzero(ended))])
                vector.reset(seed=fresh, options={"reset_mask": ended})

        return step_vector
    if config.id.startswith("MinAtar/"):
        envs = [make(config) for _ in range(num_envs)]  # registers it
    else:
        envs = [gymnasium.make(config.id, disable_env_checker=True) for _ in range(num_envs)]
    for env in envs:
        env.reset(seed=next(seeds))

    def step() -> None:
        for env, action in zip(envs, choose().tolist(), strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset(seed=next(seeds))

    return step


def sides(env_id: str, settings: dict[str, Any], num_envs: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    config = EnvConfig(id=env_id, num_envs=num_envs)
    module = PERDQN(env=config, **settings)
    environments = Environments(config, module.spec, num_envs, lambda env, episode: episode)
    environments.reset()
    choose = script(module.spec.num_actions, num_envs)

    def scripted(obs: Any) -> np.ndarray:
        module._act_in_training(obs)
        return choose()

    actor = Actor(environments, NoReplay(), scripted, lambda total, length: None, seed=0)  # type: ignore[arg-type]
    obs = {name: column.copy() for name, column in environments.obs.items()}
    return {
        "bare": bare(config, num_envs, module.spec.num_actions),
        "acting": lambda: actor.step(EPSILON),
        "policy": lambda: module._act_in_training(obs),
        "torch": lambda: module._policy._by_torch(obs, module._noise),
    }


def seconds(step: Callable[[], Any], num_steps: int) -> float:
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - started) / num_steps


def summary(values: np.ndarray) -> list[float]:
    """10, 50 and 90 % of the rounds."""
    return [round(float(v), 2) for v in np.percentile(values, [10, 50, 90])]


def measure(
    env_id: str, settings: dict[str, Any], num_envs: int, num_steps: int, rounds: int
) -> dict[str, Any]:
    timed = sides(env_id, settings, num_envs)
    rows = [[seconds(step, num_steps) * 1e6 for step in timed.values()] for _ in range(rounds + 2)]
    bare, acting, policy, by_torch = np.array(rows[2:]).T
    return {
        "env": env_id,
        "num_envs": num_envs,
        **{f"{name}_us": summary(column) for name, column in zip(timed, np.array(rows[2:]).T, strict=True)},
        "acting_to_bare": summary(acting / bare),
        "without_policy_us": summary(acting - bare - policy),
        "torch_to_policy": summary(by_torch / policy),
    }


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| environments | bare, us | acting, us | ratio | less policy, us | policy, us | torch, us | ratio |"
    )
    print("|-|-|-|-|-|-|-|-|")
    results = []
    for (env_id, settings, num_steps), num_envs in itertools.product(CASES, (1, 8)):
        steps, rounds = (num_steps // 10, 3) if args.quick else (num_steps, args.rounds)
        row = measure(env_id, settings, num_envs, steps, rounds)
        results.append(row)
        keys = ["bare_us", "acting_us", "acting_to_bare", "without_policy_us", "policy_us", "torch_us"]
        cells = [f"{row[key][1]:,.2f}" for key in (*keys, "torch_to_policy")]
        print(f"| {env_id} x {num_envs} | {' | '.join(cells)} |", flush=True)
    if not args.quick:
        machine = {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        RESULTS.write_text(
            json.dumps({**machine, "rounds": args.rounds, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
