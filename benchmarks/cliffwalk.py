"""Blind Cliffwalk of the PER paper: updates to learn a rare reward, prioritized against uniform.

    python benchmarks/cliffwalk.py --states 4 6 8 10 --seeds 10

A walk of n states has one right action in each; a wrong one ends the episode without reward, and
only n right ones in a row earn 1. The replay holds every action sequence once, in random order, as
a random policy would meet them: 2^(n+1) - 2 transitions, one of them rewarded. A table of Q-values is
trained from it, one transition at a time, until its mean squared error is below 1e-3.
Source: arXiv:1511.05952, section 3.1 and figure 1.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np

from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec

ROOT = Path(__file__).resolve().parent.parent
STEP_SIZE = 0.25
TOLERANCE = 1e-3


def right_action(state: int) -> int:
    """The action that goes on; it alternates, so that no fixed action is right."""
    return state % 2


def fill(num_states: int, prioritized: bool, seed: int) -> PrioritizedReplay:
    """A replay that holds every sequence of actions once, each until it ends."""
    spec = EnvSpec((Column(OBS, (), np.dtype(np.int64), num_states + 1),), False, num_actions=2)
    sequences = np.random.default_rng(seed).permutation(list(product((0, 1), repeat=num_states)))
    replay = PrioritizedReplay(
        spec,
        capacity=4 * 2**num_states * 2,
        prioritized=prioritized,
        gamma=1.0 - 1.0 / num_states,
        seed=seed,
    )
    for actions in sequences:
        for state, action in enumerate(actions):
            is_right = action == right_action(state)
            ends = not is_right or state == num_states - 1
            replay.add(
                {OBS: np.array([state])},
                np.array([action]),
                np.array([float(is_right and ends)]),
                np.array([ends]),
                np.array([False]),
                {OBS: np.array([state + 1])},
            )
            if ends:
                break
    return replay


def true_values(num_states: int) -> np.ndarray:
    """Optimal Q-values [states + 1, 2]: gamma to the steps still to go for the right action, else 0."""
    gamma = 1.0 - 1.0 / num_states
    q = np.zeros((num_states + 1, 2))
    for state in range(num_states):
        q[state, right_action(state)] = gamma ** (num_states - 1 - state)
    return q


def count_updates(num_states: int, prioritized: bool, seed: int, limit: int = 2_000_000) -> int:
    """Updates until the table is right; ``limit`` if it is not by then."""
    replay = fill(num_states, prioritized, seed)
    q = np.random.default_rng(seed).normal(0.0, 0.1, (num_states + 1, 2))
    q[num_states] = 0.0
    truth = true_values(num_states)
    for update in range(1, limit + 1):
        batch = replay.sample(1)
        state, action = int(batch.obs[OBS][0]), int(batch.action[0])
        target = float(batch.reward[0]) + float(batch.discount[0]) * q[int(batch.next_obs[OBS][0])].max()
        error = target - q[state, action]
        q[state, action] += STEP_SIZE * error
        replay.update_priorities(batch.id, np.array([abs(error)]))
        if update % 10 == 0 and np.mean((q[:num_states] - truth[:num_states]) ** 2) < TOLERANCE:
            return update
    return limit


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--states", type=int, nargs="+", default=[4, 6, 8, 10])
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    print("| states | transitions | uniform: median updates (range) | prioritized | ratio |\n|-|-|-|-|-|")
    results = []
    for n in args.states:
        counts = {p: [count_updates(n, p, seed) for seed in range(args.seeds)] for p in (False, True)}
        uniform, prioritized = (np.array(counts[p]) for p in (False, True))
        ratio = np.median(uniform / prioritized)
        spelled = [f"{np.median(c):,.0f} ({c.min():,} to {c.max():,})" for c in (uniform, prioritized)]
        print(f"| {n} | {2 ** (n + 1) - 2:,} | {spelled[0]} | {spelled[1]} | {ratio:.1f} |", flush=True)
        results.append({"states": n, "uniform": counts[False], "prioritized": counts[True]})
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "cliffwalk.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
