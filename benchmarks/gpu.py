"""Training with a GPU, beside TorchRL on the same card: updates a second, an update every env step.

    python benchmarks/gpu.py                                    # CartPole, MinAtar and Pong
    python benchmarks/gpu.py --settings pong --rounds 3
    python benchmarks/gpu.py --device cpu --quick               # does it work?

The sides are those of `throughput.py`, trained in the same way; ours with the replay on the host or on the
device, updates eager or compiled, in fp32 or bf16. First, the replay on this device is compared with the one
on the host: ``replay_has_same_bits`` tells whether both drew the same rows with the same weights, where
priorities are raised to the power 1 and where to 0.6, which may round otherwise.

TorchRL's buffer, networks and updates are on the device too. Results go to ``benchmarks/results/gpu.json``.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import peers
import throughput
import torch

from perdqn.replay.on_device import OnDeviceReplay
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec

CHOICES = {
    "host": "replay.device=host",
    "device": "replay.device=learner",
    "eager": "learner.backend=eager",
    "compiled": "learner.backend=compiled",
    "fp32": "trainer.precision=32-true",
    "bf16": "trainer.precision=bf16-mixed",
}
VARIANTS = {
    "-".join([peers.OURS, *names]): [CHOICES[name] for name in names]
    for names in itertools.product(("host", "device"), ("eager", "compiled"), ("fp32", "bf16"))
}


def has_same_bits(device: torch.device, alpha: float) -> bool:
    """Whether some thousand operations end alike on the host and on ``device``."""
    spec = EnvSpec((Column(OBS, (3,), np.dtype(np.float32)),), False, 4)
    host, there = (
        kind(spec, 2, 5_000, alpha=alpha, n_step=3) for kind in (PrioritizedReplay, OnDeviceReplay)
    )
    there.place(device)
    return all(map(torch.equal, _operate(host), _operate(there)))


def _operate(replay: PrioritizedReplay) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    seen = []
    for step in range(4_000):
        frames = rng.normal(size=(2, 2, 3)).astype(np.float32)
        action, reward = rng.integers(4, size=2), rng.normal(size=2)
        ends = rng.random((2, 2)) < 0.02
        replay.add({OBS: frames[0]}, action, reward, ends[0], ends[1], {OBS: frames[1]})
        if step >= 100 and step % 4 == 0:
            batch = replay.sample(32, 0.5)
            seen += [part.cpu() for part in (batch.id, batch.is_weight, batch.reward, batch.next_obs[OBS])]
            replay.update_priorities(batch.id, rng.exponential(size=32))
    return seen


def to_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, side in result["sides"].items():
        rate = side["updates_per_second"]
        spread = f"({rate['lowest']:,.0f} to {rate['highest']:,.0f})"
        lines.append(f"  {name:28} {rate['median']:9,.0f} updates/s {spread}")
    return lines


def main() -> None:
    parser = peers.get_parser(__doc__, "gpu.json", [*VARIANTS, "torchrl"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    settings = ["c4", "minatar", "pong"]
    parser.add_argument("--settings", nargs="+", choices=settings, default=settings)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no cuda here; use cpu to see that it works")
    args.begin, args.ours_set = None, []
    args.sides = peers.choose_sides(parser, args, [*VARIANTS, "torchrl"])
    if args.quick:
        args.settings, args.rounds, args.seconds, args.begin = ["c4"], 1, 0.2, 1_200
        args.sides = [f"{peers.OURS}-{replay}-eager-fp32" for replay in ("host", "device")]
    name = torch.cuda.get_device_name() if args.device == "cuda" else peers.get_cpu()
    same = {f"alpha {a}": has_same_bits(torch.device(args.device, 0), a) for a in (1.0, 0.6)}
    print(name, "replay has same bits:", same, flush=True)
    for setting in args.settings:
        changes = {"device": args.device, "train_every": 1}
        result = throughput.compare(setting, args.threads, VARIANTS, args, **changes)
        result |= {"device": name, "replay_has_same_bits": same, **peers.get_provenance("gpu.py")}
        print("\n".join([f"{setting}, {name}", *to_lines(result)]), flush=True)
        peers.record(args.out, {f"{setting}, {name}": result})


if __name__ == "__main__":
    main()
