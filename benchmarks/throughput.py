"""Training beside Stable-Baselines3, Tianshou and TorchRL: env steps a second, updates included.

    python benchmarks/throughput.py                                      # everything: a long afternoon
    python benchmarks/throughput.py --settings c4 c10 --rounds 5
    python benchmarks/throughput.py --settings pong --threads 1 2 --seconds 20
    python benchmarks/throughput.py --settings c4 --sides perdqn perdqn-wide sb3 \\
        --variant wide learner.updates_per_step=64 env.num_envs=8        # a side of our own making
    python benchmarks/throughput.py --settings c4 --ours-set learner.backend=compiled

Every side trains plain DQN (neither double nor dueling, n_step 1) at a constant epsilon, in one process of
its own environment, and is watched for ``--seconds`` once it has learnt for a while; the sides take turns,
round after round. perdqn is what `perdqn fit` runs: Lightning's loop with priorities, TensorBoard, progress
bar and all default callbacks. Stable-Baselines3 draws uniformly; Tianshou and TorchRL have priorities; the
peers log nothing. ``-8`` has 8 environments. The counters of each window show that all make as many updates
an env step. A rate by CPU time is what a busy machine disturbs least; all threads count there.

    c4       CartPole, MLP 64-64, batch 64, an update every 4 env steps
    c10      CartPole, MLP 120-84, batch 128, an update every 10
    minatar  MinAtar Breakout, the MinAtar paper's network, batch 32, an update every 4
    pong     Atari Pong, the Nature network, batch 32, an update every 4, 4 frames a step, stacks of 4

Linux only. Results go to ``benchmarks/results/throughput.json``, by setting and number of threads.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
from peers.window import Setting, Window

SETTINGS = {
    "c4": Setting("CartPole-v1", "mlp", 64, 4, 1e-3, begin=3_000, hidden_sizes=[64, 64]),
    "c10": Setting("CartPole-v1", "mlp", 128, 10, 2.5e-4, begin=4_000, hidden_sizes=[120, 84]),
    "minatar": Setting("MinAtar/Breakout-v0", "minatar", 32, 4, 2.5e-4, begin=2_000),
    "pong": Setting("ALE/Pong-v5", "nature", 32, 4, 1e-4, begin=1_200, capacity=10_000),
}
VARIANTS = {"perdqn": [], "perdqn-8": ["env.num_envs=8"]}
PEERS = ("sb3", "sb3-8", "tianshou", "tianshou-8", "torchrl")


def train(
    side: str,
    setting: str,
    num_threads: int,
    seconds: float,
    begin: int,
    changes: dict[str, Any],
    **ours: Any,
) -> dict[str, Any]:
    """What a side's process does: rates and counters of one window, with some ``changes`` to the setting."""
    import torch

    torch.set_num_threads(num_threads)
    window = Window(begin, seconds)
    library, _, num_envs = side.partition("-")
    module = importlib.import_module(f"peers.{library}")
    task = replace(SETTINGS[setting], **changes)
    if library == peers.OURS:
        module.train(task, window, num_threads, **ours)
    else:
        module.train(task, window, int(num_envs or 1))
    return window.result()


def compare(
    setting: str, num_threads: int, variants: dict[str, list[str]], args: argparse.Namespace, **changes: Any
) -> dict[str, Any]:
    """One setting: all sides in turns, each round in a fresh process."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.sides}
    begin = min(args.begin or SETTINGS[setting].begin, SETTINGS[setting].begin)
    versions = {}
    for _ in range(args.rounds):
        for name in args.sides:
            job = {"setting": setting, "num_threads": num_threads, "seconds": args.seconds, "begin": begin}
            job["changes"] = changes
            if name in variants:
                job["overrides"] = [*args.ours_set, *variants[name]]
            with peers.Side(name, Path(__file__), args.environments, num_threads) as side:
                found[name].append(side.ask(side=name, **job))
                versions[name] = side.versions
            print(setting, num_threads, name, found[name][-1], flush=True)
    shared = {"rounds": args.rounds, "seconds": args.seconds, "threads": num_threads}
    shared |= {"ours_set": args.ours_set, "variants": variants, "changes": changes}
    return {**shared, **peers.get_provenance("throughput.py"), "versions": versions, **judge(found)}


def judge(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Rates of each side, and how each of ours stands to the fastest peer, round by round."""
    sides: dict[str, Any] = {
        name: {
            **{key: peers.summary(each[key] for each in runs) for key in runs[0] if "_per_" in key},
            "env_steps": [each["env_steps"] for each in runs],
            "updates": [each["updates"] for each in runs],
        }
        for name, runs in found.items()
    }
    ours = [name for name in found if name.startswith(peers.OURS)]
    peer_names = [name for name in found if name not in ours]
    rates = {"times_faster": "env_steps_per_second", "times_faster_by_cpu_time": "env_steps_per_cpu_second"}
    ratios = {
        name: {a: {b: _ratio(found[a], found[b], rate) for b in peer_names} for a in ours}
        for name, rate in rates.items()
    }
    return {"sides": sides, **ratios}


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], rate: str) -> dict[str, Any]:
    return peers.summary(a[rate] / b[rate] for a, b in zip(ours, theirs, strict=True))


def to_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, side in result["sides"].items():
        rate, each = side["env_steps_per_second"], side["env_steps_per_update"]["median"]
        spread = f"({rate['lowest']:,.0f} to {rate['highest']:,.0f})"
        lines.append(f"  {name:14} {rate['median']:9,.0f} env steps/s {spread}, {each:.2f} per update")
    for name, ratios in result["times_faster"].items():
        by_cpu = result["times_faster_by_cpu_time"][name]
        told = [
            f"{r['median']:.2f} x {peer} (CPU {by_cpu[peer]['median']:.2f})" for peer, r in ratios.items()
        ]
        lines += [f"  {name:14} {', '.join(told)}"] if told else []
    return lines


def main() -> None:
    parser = peers.get_parser(__doc__, "throughput.json", [*VARIANTS, *PEERS])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--begin", type=int, help="open the window at this env step already")
    text = "section.key=value for all sides of ours, as behind --model. on the command line"
    parser.add_argument("--ours-set", nargs="+", default=[], metavar="SETTING", help=text)
    peers.add_variants(parser, "as in --ours-set")
    args = parser.parse_args()
    if args.side:
        peers.serve(train)
        return
    variants = VARIANTS | peers.get_variants(args)
    args.sides = peers.choose_sides(parser, args, [*variants, *PEERS])
    if args.quick:
        args.settings, args.rounds, args.seconds, args.begin = ["c4"], 1, 0.2, 1_200
    for setting in args.settings:
        for num_threads in args.threads:
            result = compare(setting, num_threads, variants, args)
            print("\n".join([f"{setting}, {num_threads} threads", *to_lines(result)]), flush=True)
            peers.record(args.out, {f"{setting}, {num_threads} threads": result})


if __name__ == "__main__":
    main()
