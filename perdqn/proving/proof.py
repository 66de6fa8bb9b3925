"""A proof on disk: what it compares, the arms that are done, and what they show.

Knows nothing about where the settings come from, nor what a person is shown.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from holdfast.storage.durable import write_whole

from perdqn.proving.arms import KINDS, Arm, Plan
from perdqn.proving.effect import Effect, paired_effect
from perdqn.proving.figures import LEARNING, SPEED, csv_logger, read_figures, read_json
from perdqn.proving.processes import Job, run_jobs
from perdqn.proving.until import until
from perdqn.run.folder import LOGS, RunFolder


class Proof:
    """The arms of one plan, below ``path``; an arm that is done is never run again.

    ::

        plan.json, proof.json         what is compared, and what it shows
        start/                        what arms begin from, without saved states once all are done
        seed-1-as-is/overlay.yaml     of an arm: its settings over the run's,
                     output.txt       what it said,
                     lightning_logs/  its run, without saved states once it is done,
                     result.json      and what it showed

    Args:
        path: its folder.
        plan: what it compares.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.failures: dict[str, str] = {}  # by arm: its last words

    @property
    def start(self) -> RunFolder:
        """The run that arms fork, or whose settings they begin with."""
        return RunFolder(self.path / "start")

    @property
    def figures(self) -> dict[str, str]:
        """What is compared, and what it is called."""
        return SPEED if self.plan.is_about_speed else LEARNING

    def run(self, arms: Sequence[Arm], num_at_once: int, tell: Callable[[str], None]) -> None:
        """Run arms; one at a time where their speed is compared.

        Raises:
            KeyboardInterrupt: interrupted; what is done stays.
        """
        write_whole(self.path / "plan.json", json.dumps(asdict(self.plan), indent=2) + "\n")
        by_name = {arm.name: arm for arm in arms}
        num_at_once = 1 if self.plan.is_about_speed else num_at_once
        jobs = [self._prepare(arm) for arm in arms]
        try:
            run_jobs(jobs, num_at_once, lambda job, *ended: tell(self._end(by_name[job.name], *ended)))
        finally:
            for arm in arms:
                if self.get_result(arm) is None:
                    shutil.rmtree(self.path / arm.name / LOGS, ignore_errors=True)
        if not self.failures:
            shutil.rmtree(self.start.checkpoints, ignore_errors=True)

    def get_result(self, arm: Arm) -> dict[str, Any] | None:
        """What an arm showed; None where it is not done."""
        return read_json(self.path / arm.name / "result.json")

    def compare(self, arms: Sequence[Arm]) -> dict[str, Any]:
        """What the arms that are done show, for JSON.

        Returns:
            the plan; ``arms``, results by kind, a dict a seed; ``effects``, a list with what is compared
            (``of``, ``against``), its ``figure`` and its `Effect`, None without a pair; ``failures``,
            the last words of arms that failed; ``wall_s``, of the arms that are done, summed.
        """
        kinds = [kind for kind in KINDS if any(arm.kind == kind for arm in arms)]
        by_seed: dict[int, dict[str, Any]] = {arm.seed: dict.fromkeys(kinds) for arm in arms}
        for arm in arms:
            by_seed[arm.seed][arm.kind] = self.get_result(arm)
        done = [result for results in by_seed.values() for result in results.values() if result]
        pairs = [(of, against) for against, of in combinations(kinds, 2)]

        def effect(of: str, against: str, figure: str) -> Effect | None:
            results = [(by[against], by[of]) for by in by_seed.values() if by[against] and by[of]]
            values = [(one[figure], other[figure]) for one, other in results]
            known = [pair for pair in values if None not in pair]
            return paired_effect(*zip(*known, strict=True)) if known else None

        return {
            **asdict(self.plan),
            "arms": [{"seed": seed, **results} for seed, results in by_seed.items()],
            "effects": [
                {"of": of, "against": against, "figure": figure, "effect": found and found.as_dict()}
                for of, against in pairs
                for figure in self.figures
                for found in [effect(of, against, figure)]
            ],
            "failures": self.failures,
            "wall_s": sum(result["wall_s"] for result in done),
        }

    def _prepare(self, arm: Arm) -> Job:
        folder = self.path / arm.name
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was interrupted
        folder.mkdir(parents=True)
        file, overlay = folder / "overlay.yaml", self.plan.overlay(arm)
        callbacks = [*self._get_callbacks(), until(self.plan.end_env_steps)]
        own = {"default_root_dir": str(folder), "logger": csv_logger(folder), "callbacks": callbacks}
        overlay["trainer"] |= own
        file.write_text(yaml.safe_dump(overlay))
        begin = ["fit", "--config", str(self.start.config)]
        if self.plan.begin_env_steps:
            begin = ["resume", str(self.start.path), "--fork", "--trainer.default_root_dir", str(folder)]
        command = (sys.executable, "-m", "perdqn", *begin, "--config", str(file))
        return Job(arm.name, command, folder / "output.txt")

    def _get_callbacks(self) -> list[Any]:
        """The run's own."""
        given = yaml.safe_load(self.start.config.read_text())["trainer"].get("callbacks") or []
        return given if isinstance(given, list) else [given]

    def _end(self, arm: Arm, code: int, wall_s: float) -> str:
        """Keep what an arm showed, and no saved state of it; a line that says so."""
        folder = self.path / arm.name
        run = RunFolder(folder / LOGS / "version_0")
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        if code:
            said = (folder / "output.txt").read_text(errors="replace").strip()
            self.failures[arm.name] = said.rpartition("\n")[2] or f"exit code {code}"
            return f"{arm.name:<20} failed: {self.failures[arm.name]}"
        figures = read_figures(run, self.plan.begin_env_steps)
        result = {**figures, "changes": dict(arm.changes), "wall_s": wall_s}
        write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
        shown = [
            f"{name} {result[key]:,.1f}" for key, name in self.figures.items() if result[key] is not None
        ]
        return f"{arm.name:<20} {', '.join(shown)}"
