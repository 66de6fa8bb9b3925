"""Does following the first advice help? Badly set runs, none of which the rules were written on.

    python benchmarks/observability/advice_helps.py --out benchmarks/results/advice_helps.json
    python benchmarks/observability/advice_helps.py --round 3 --out benchmarks/results/advice_helps_3.json
    python benchmarks/observability/advice_helps.py --only acrobot_gamma --seeds 5

Each task is a shipped config with one plausible mistake, five a round, chosen by somebody who knew neither
rules nor figures, for each round another one. (One of the first, epsilon falling over 1,000,000 of 40,000
env steps, is refused before anything starts; a reserve took its place.) Rules were changed after a round and
frozen before the next. A task is trained once; the first advice that names a change is then followed in whole
runs under other seeds, each beside an unchanged run and one with another setting changed as much at random
(`perdqn advise --prove --from-start --control`). What is done is kept: started again, it goes on. On two idle
cores a round of ten seeds takes about an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"model.evaluation.stop_at_return": "null", "trainer.enable_progress_bar": "false"}


def shorten(config: str, env_steps: int, **mistake: Any) -> list[str]:
    """Options of a run: the shipped config, a budget, and the mistake."""
    budget = dict.fromkeys(("model.total_env_steps", "model.replay.beta_env_steps"), env_steps)
    options = {**SHORT, **budget, **{f"model.{name.replace('__', '.')}": v for name, v in mistake.items()}}
    return ["--config", config, *(f"--{name}={value}" for name, value in options.items())]


FIRST = {
    # the target network's period of papers on Atari, in a run of 14,500 updates
    "cartpole_target_period": shorten("cartpole", 30_000, learner__target_update_period=10_000),
    # the discount of a gridworld, where the goal is about 80 steps away
    "acrobot_gamma": shorten("acrobot", 40_000, learner__gamma=0.5),
    # 5e-2 typed for 5e-4
    "lunarlander_learning_rate": shorten("lunarlander", 60_000, learner__learning_rate=0.05),
    # Atari's clip, where landing and crashing pay 100
    "lunarlander_reward_clip": shorten("lunarlander", 60_000, learner__reward_clip=1.0),
    # the warm-up of papers on Atari
    "minatar_warmup": shorten(
        "minatar",
        60_000,
        learner__warmup_env_steps=50_000,
        learner__train_every=4,
        exploration__epsilon_env_steps=20_000,
        evaluation__every_env_steps=10_000,
    ),
}
SECOND = {
    # soft updates copied in, the period of hard ones kept
    "cartpole_target_tau": shorten("cartpole", 30_000, learner__target_tau=0.005),
    # about once an episode
    "minatar_train_every": shorten(
        "minatar",
        60_000,
        learner__train_every=100,
        exploration__epsilon_env_steps=20_000,
        evaluation__every_env_steps=10_000,
    ),
    # two zeros too many
    "lunarlander_learning_rate_low": shorten("lunarlander", 60_000, learner__learning_rate=5e-6),
    # a short horizon, "for stability"
    "acrobot_gamma_0.8": shorten("acrobot", 40_000, learner__gamma=0.8),
    # from old advice about Inception
    "lunarlander_adam_eps": shorten("lunarlander", 60_000, learner__adam_eps=1.0),
}
THIRD = {
    # once an episode, for episodes of 200 steps
    "cartpole_train_every": shorten("cartpole", 30_000, learner__train_every=200),
    # of a tutorial's gridworld
    "lunarlander_gamma": shorten("lunarlander", 60_000, learner__gamma=0.8),
    # e-7 typed for e-4
    "minatar_learning_rate": shorten(
        "minatar",
        60_000,
        learner__learning_rate=2.5e-7,
        exploration__epsilon_env_steps=20_000,
        evaluation__every_env_steps=10_000,
    ),
    # from old advice about Inception
    "acrobot_adam_eps": shorten("acrobot", 40_000, learner__adam_eps=1.0),
    # two zeros too many
    "lunarlander_target_tau": shorten("lunarlander", 60_000, learner__target_tau=0.00005),
}
ROUNDS = (FIRST, SECOND, THIRD)
TASKS = FIRST | SECOND | THIRD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--round", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--only", nargs="*", choices=TASKS, help="of any round")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget-env-steps", type=int, help="of each run; by default all of its own")
    parser.add_argument("--runs", type=Path, default=Path("advice_runs"), help="where runs are kept")
    parser.add_argument("--out", type=Path, default=Path("advice_helps.json"))
    given = parser.parse_args()
    found = {}
    for name in given.only or ROUNDS[given.round - 1]:
        found[name] = measure(given.runs / name, TASKS[name], given)
        given.out.write_text(json.dumps({"command": sys.argv, "tasks": found}, indent=2) + "\n")
        print(f"{name}: {describe(found[name])}", flush=True)
    helped = sum(is_better(each, "mean") for each in found.values())
    surely = sum(is_better(each, "low") for each in found.values())
    print(f"better than as is and than at random: {helped} of {len(found)}, intervals above 0: {surely}")


def measure(root: Path, options: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Train, ask, follow; what came of it."""
    run = root / "lightning_logs" / "version_0"
    if not (run / "summary.json").exists():
        perdqn("fit", *options, f"--trainer.default_root_dir={root}")
    advice = [record["advice"] for record in json.loads(perdqn("advise", str(run), "--json"))]
    kept = ("rule", "priority", "message", "changes")
    asked = {"options": options, "advice": [{key: each[key] for key in kept} for each in advice]}
    if not any(each["changes"] for each in advice):
        return {**asked, "proof": None}
    budget = [] if given.budget_env_steps is None else [f"--budget-env-steps={given.budget_env_steps}"]
    how = ["--prove", "--from-start", "--control", f"--seeds={given.seeds}", f"--jobs={given.jobs}", *budget]
    proof = json.loads(perdqn("advise", str(run), *how, "--json"))
    return {**asked, "proof": {key: value for key, value in proof.items() if key != "folder"}}


def perdqn(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run([sys.executable, "-m", "perdqn", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):  # 1: an arm failed, which is told
        raise SystemExit(f"perdqn {' '.join(words)} ended with {done.returncode}")
    return done.stdout


def get_effects(found: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Of the change on the final evaluation, by what it is compared with."""
    effects = found["proof"]["effects"] if found["proof"] else []
    return {
        each["against"]: each["effect"]
        for each in effects
        if each["of"] == "changed" and each["figure"] == "final"
    }


def is_better(found: dict[str, Any], bound: str) -> bool:
    """Whether the ``mean``, or the ``low`` end of its interval, lies above 0 in both comparisons."""
    effects = get_effects(found).values()
    return len(effects) == 2 and all(effect and (effect[bound] or 0) > 0 for effect in effects)


def describe(found: dict[str, Any]) -> str:
    if found["proof"] is None:
        return "no advice with a change"
    changes = ", ".join(f"{name} {value}" for name, value in found["proof"]["changes"].items())
    shown = [
        f"{effect['mean']:+.1f} ({effect['low']:+.1f} to {effect['high']:+.1f}) against {against}"
        for against, effect in get_effects(found).items()
        if effect and effect["low"] is not None
    ]
    return f"{changes}: {'; '.join(shown)}"


if __name__ == "__main__":
    main()
