"""What an arm's run showed, from its summary and its metrics.csv.

Knows nothing about other arms.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

from perdqn.run.folder import RunFolder

LEARNING = {"final": "final evaluation", "area": "evaluations' mean"}  # what a figure is called
SPEED = {"env_steps_per_second": "env steps/s"}
_RATE = "time/env_steps_per_second"


def csv_logger(folder: Path) -> dict[str, Any]:
    """As a setting: metrics that can be read without TensorBoard, and reach no service."""
    return {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}


def read_figures(run: RunFolder, begin_env_steps: int) -> dict[str, Any]:
    """Figures of a run that has ended, since it began or was forked.

    Returns:
        ``final``, mean return of the test episodes; ``area``, that below the evaluation curve, divided by its
        length: the mean of the evaluations, which are evenly spaced; ``evaluations`` as (env step, mean
        return); ``env_steps_per_second``, median of those logged, or over all of the run where none was;
        ``seconds`` and ``env_steps`` of training. What is not known is None.
    """
    summary, rows = run.read_summary(), _read_rows(run.path / "metrics.csv")
    evaluations = [
        (step, float(row["eval/return_mean"]))
        for row in rows
        if row.get("eval/return_mean") and (step := int(row["step"])) > begin_env_steps
    ]
    rates = [float(row[_RATE]) for row in rows if row.get(_RATE)]
    return {
        "final": summary.get("final_evaluation_mean"),
        "area": fmean(mean for _, mean in evaluations) if evaluations else None,
        "evaluations": evaluations,
        "env_steps_per_second": median(rates) if rates else None,
        "env_steps": summary.get("env_steps"),
        "seconds": summary.get("seconds"),
    }


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is nothing to read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []
