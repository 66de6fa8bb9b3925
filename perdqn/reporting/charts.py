"""Curves as drawings that take their colours from the page around them.

Knows nothing about where the curves come from.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import cycle
from typing import Any

# What matplotlib draws in these colours, the page's style sheet paints: --ink, --line, --series-0 and on.
INK, LINE = "#010101", "#020202"
SERIES = [f"#0300{i:02x}" for i in range(8)]
SIZE_INCHES = (4.6, 2.3)
DASHES = ("-", "--", ":", "-.")  # by series, where colours tell runs apart
LONG = 1_000.0  # numbers from here on are shortened


@dataclass(frozen=True)
class Chart:
    """What belongs into one drawing.

    Args:
        section: heading it stands under.
        series: tags with their labels.
        band: tags of the lower and upper end around the first series.
        is_log: whether values are spread over powers of ten.
    """

    section: str
    title: str
    unit: str
    series: tuple[tuple[str, str], ...]
    band: tuple[str, str] | None = None
    is_log: bool = False


CHARTS = (
    Chart(
        "learning",
        "Return",
        "reward",
        (("eval/return_mean", "evaluation, 95 % band"), ("rollout/return_mean", "training")),
        ("eval/return_low", "eval/return_high"),
    ),
    Chart(
        "learning",
        "Episode length",
        "env steps",
        (("eval/length_mean", "evaluation"), ("rollout/length_mean", "training")),
    ),
    Chart(
        "learning",
        "Q-values",
        "discounted reward",
        (
            ("train/q_mean", "estimate"),
            ("health/q_taken_mean", "of actions taken"),
            ("health/realised_return_mean", "what they earned"),
        ),
    ),
    Chart(
        "learning",
        "TD error",
        "discounted reward",
        (
            ("train/td_error_abs_mean", "mean"),
            ("health/td_error_abs_p50", "median"),
            ("health/td_error_abs_p99", "99th percentile"),
            ("train/td_error_abs_max", "largest"),
        ),
        is_log=True,
    ),
    Chart("learning", "Loss", "", (("train/loss", "loss"),), is_log=True),
    Chart("learning", "Gradient norm", "before clipping", (("train/grad_norm", "norm"),), is_log=True),
    Chart("learning", "Schedules", "", (("rollout/epsilon", "epsilon"), ("replay/beta", "beta"))),
    Chart("learning", "Learning rate", "", (("train/learning_rate", "learning rate"),)),
    Chart("replay", "Effective sample size", "of a batch", (("replay/effective_sample_size", "ESS"),)),
    Chart("replay", "Age of what is drawn", "rows", (("replay/age_mean", "mean"),)),
    Chart("replay", "Priority entropy", "1 is uniform", (("health/priority_entropy", "entropy"),)),
    Chart("replay", "Largest priority", "", (("replay/priority_max", "running maximum"),), is_log=True),
    Chart("replay", "Rows", "", (("replay/size", "rows"),)),
    Chart("replay", "Replay ratio", "drawn / added", (("health/replay_ratio", "ratio"),)),
    Chart("replay", "Never replayed", "share of the rows", (("health/never_replayed_fraction", "never"),)),
    Chart(
        "replay", "Stale priorities", "stored against fresh", (("health/priority_staleness", "staleness"),)
    ),
    Chart(
        "health",
        "Q-values against returns",
        "discounted reward",
        (("health/q_taken_mean", "estimate"), ("health/realised_return_mean", "realised")),
    ),
    Chart(
        "health",
        "Units without use",
        "share",
        (("health/dormant_fraction", "dormant"), ("health/dead_fraction", "dead")),
    ),
    Chart("health", "Rank of the features", "", (("health/feature_rank", "effective rank"),)),
    Chart("health", "Overestimation", "of what is earned", (("health/overestimation", "overestimation"),)),
    Chart("health", "Policy churn", "share of states", (("health/policy_churn", "churn"),)),
    Chart("health", "Action gap", "", (("health/action_gap", "gap"),)),
    Chart("health", "Target lag", "", (("health/target_lag", "lag"),)),
    Chart("speed", "Env steps a second", "", (("time/env_steps_per_second", "env steps/s"),)),
    Chart("resource", "Memory", "share of the tightest limit", (("resource/memory_share", "memory"),)),
    Chart("resource", "Resident memory", "bytes", (("resource/rss_bytes", "this process"),)),
    Chart("resource", "Processor", "cores in use", (("resource/cpu_used_cores", "this process"),)),
    Chart(
        "resource",
        "Waiting",
        "share of the time",
        (
            ("resource/pressure_cpu_some", "for a processor"),
            ("resource/pressure_memory_some", "for memory"),
            ("resource/pressure_io_some", "for disks"),
        ),
    ),
    Chart("resource", "Disk", "bytes free", (("resource/disk_free_bytes", "free"),)),
    Chart("resource", "GPU memory", "bytes", (("resource/accelerator_used_bytes", "used"),)),
)


def choose_charts(tags: Sequence[str]) -> list[Chart]:
    """The charts that have something to show, and one for each other tag."""
    shown = [chart for chart in CHARTS if any(tag in tags for tag, _ in chart.series)]
    known = {tag for chart in CHARTS for tag, _ in chart.series}
    known |= {tag for chart in CHARTS for tag in chart.band or ()}
    return shown + [_plain_chart(tag) for tag in tags if tag not in known and not tag.startswith("test/")]


def _plain_chart(tag: str) -> Chart:
    return Chart("other", tag.rpartition("/")[2].replace("_", " "), tag.rpartition("/")[0], ((tag, tag),))


def draw_curves(chart: Chart, runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """An SVG of one chart; a colour a series, or a colour a run and a dash a series where there are several.

    Args:
        runs: curves by tag, each with ``steps`` and ``values``, by the run's name.

    Returns:
        None where no run has any of it.
    """
    is_one = len(runs) == 1
    lines = [
        (
            label,
            curves[tag],
            SERIES[(j if is_one else i) % len(SERIES)],
            DASHES[0 if is_one else j % len(DASHES)],
        )
        for i, curves in enumerate(runs.values())
        for j, (tag, label) in enumerate(chart.series)
        if tag in curves
    ]
    if not lines:
        return None
    from matplotlib.ticker import LogLocator

    figure, axes = _new_axes()
    for label, curve, colour, dash in lines:
        values = _numbers(curve["values"])
        mark = "o" if len(values) == 1 else None
        axes.plot(curve["steps"], values, color=colour, ls=dash, lw=1.4, label=label, marker=mark, ms=3)
    for colour, curves in zip(cycle(SERIES), runs.values(), strict=False):
        _draw_band(axes, chart, curves, colour)
    everything = [value for _, curve, *_ in lines for value in curve["values"] if value is not None]
    if chart.is_log and everything and min(everything) > 0 and max(everything) > 20 * min(everything):
        axes.set_yscale("log", subs=[])
        is_narrow = max(everything) < 1000 * min(everything)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_narrow else (1.0,), numticks=6))
    axes.xaxis.set_major_formatter(_short)
    if axes.get_yscale() == "log" or max(map(abs, everything), default=0.0) >= LONG:
        axes.yaxis.set_major_formatter(_short)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if len({label for label, *_ in lines}) > 1:
        _draw_legend(axes, is_one)
    return _as_svg(figure)


def _draw_band(axes: Any, chart: Chart, curves: Mapping[str, Any], colour: str) -> None:
    if not (chart.band and chart.series[0][0] in curves and all(tag in curves for tag in chart.band)):
        return
    low, high = (curves[tag] for tag in chart.band)
    if low["steps"] == high["steps"]:
        ends = (_numbers(curve["values"]) for curve in (low, high))
        axes.fill_between(low["steps"], *ends, color=colour, alpha=0.18, lw=0)


def _draw_legend(axes: Any, is_one: bool) -> None:
    """A line a series; of several runs in no run's colour."""
    by_label = {line.get_label(): copy(line) for line in reversed(axes.get_lines())}
    handles = list(reversed(by_label.values()))
    if not is_one:
        for handle in handles:
            handle.set_color(INK)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.0, "ncols": 4}
    look = {"frameon": False, "fontsize": 7.5, "labelcolor": INK, "columnspacing": 1.0}
    axes.legend(handles=handles, handlelength=1.2 if is_one else 1.9, **look, **place)


def draw_bars(shares: Mapping[str, float]) -> str:
    """An SVG of shares of the time, largest first."""
    rows = sorted(shares.items(), key=lambda row: row[1])
    figure, axes = _new_axes((11.0, 0.28 * len(rows) + 0.4))
    bars = axes.barh(
        [name.replace("_", " ") for name, _ in rows],
        [100 * share for _, share in rows],
        color=SERIES[0],
        height=0.62,
    )
    axes.bar_label(bars, fmt="%.1f %%", fontsize=8, color=INK, padding=3)
    axes.grid(False)
    axes.set_xticks([])
    axes.margins(x=0.12)
    axes.spines["bottom"].set_visible(False)
    return _as_svg(figure)


def draw_histogram(edges: Sequence[float], heights: Sequence[float | None], is_log: bool) -> str:
    """An SVG of one height for each stretch between two edges; None is left out."""
    figure, axes = _new_axes()
    axes.stairs(_numbers(heights), edges, fill=True, color=SERIES[0], alpha=0.75)
    if is_log:
        axes.set_xscale("log", subs=[])
    else:
        axes.xaxis.set_major_formatter(_short)
    axes.yaxis.set_major_formatter(_short)
    axes.set_ylim(bottom=0.0)
    return _as_svg(figure)


def _new_axes(size: tuple[float, float] = SIZE_INCHES) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no window, no global state

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    figure.patch.set_alpha(0.0)
    axes.grid(color=LINE, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=7.5, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    return figure, axes


def _as_svg(figure: Any) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "perdqn", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 role="presentation"', text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    for i, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--series-{i})")
    return re.sub(r"font: [^;\"]*", lambda match: _font(match[0]), text)


def _font(declared: str) -> str:
    """The page's own font in the size that was laid out."""
    size = re.search(r"([\d.]+)px", declared)
    return f"font: {size[1] if size else '8'}px var(--font)"


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _short(value: float, _: Any = None) -> str:
    """1,500 as 1.5k."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"
