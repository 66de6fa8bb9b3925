"""Draws docs/images/throughput.png and docs/images/replay.png from what the comparisons recorded.

python benchmarks/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
RATE = "env_steps_per_cpu_second"  # what a busy machine disturbs least


def draw_throughput(found: dict[str, Any]) -> None:
    """Env steps a CPU second of every side, a panel a setting; bars end at medians, lines at extremes."""
    figure, axes = plt.subplots(1, len(found), figsize=(2.6 * len(found), 3.4), squeeze=False)
    for axis, (setting, result) in zip(axes[0], found.items(), strict=True):
        sides = sorted(result["sides"].items(), key=lambda side: side[1][RATE]["median"])
        rates = [side[RATE] for _, side in sides]
        medians = [rate["median"] for rate in rates]
        spread = [
            [m - rate["lowest"] for m, rate in zip(medians, rates, strict=True)],
            [rate["highest"] - m for m, rate in zip(medians, rates, strict=True)],
        ]
        colors = ["tab:blue" if name.startswith("perdqn") else "tab:gray" for name, _ in sides]
        axis.barh([name for name, _ in sides], medians, xerr=spread, color=colors)
        axis.set(title=setting, xlabel="env steps per CPU second")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(IMAGES / "throughput.png", dpi=110)


def draw_replay(found: dict[str, Any]) -> None:
    """How many times longer each peer takes than perdqn, by cell; below the line it is faster."""
    cells = {name: cell["us"] for name, cell in found.items() if len(cell.get("us", {})) > 1}
    peers = sorted({peer for us in cells.values() for peer in us if peer != "perdqn"})
    figure, axis = plt.subplots(figsize=(11, 3.6))
    for peer in peers:
        at = [i for i, us in enumerate(cells.values()) if peer in us]
        ratios = [us[peer]["median"] / us["perdqn"]["median"] for us in cells.values() if peer in us]
        axis.plot(at, ratios, "o", label=peer, markersize=4)
    axis.axhline(1.0, color="black", linewidth=1)
    axis.set_yscale("log")
    axis.set_xticks(range(len(cells)), [*cells], rotation=70, fontsize=6)
    axis.set_ylabel("times perdqn's time")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(IMAGES / "replay.png", dpi=110)


def main() -> None:
    draw_throughput(json.loads((RESULTS / "throughput.json").read_text()))
    draw_replay(json.loads((RESULTS / "replay.json").read_text()))


if __name__ == "__main__":
    main()
