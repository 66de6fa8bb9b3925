"""Paired runs: what they compare, how they run, and what is made of their figures."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from perdqn.config import Config
from perdqn.proving import proof as proof_module
from perdqn.proving.arms import CONTROLS, FOR_SPEED, Arm, Plan, nest
from perdqn.proving.effect import paired_effect, t_quantile
from perdqn.proving.processes import Job, run_jobs
from perdqn.proving.proof import Proof
from perdqn.proving.words import format_comparison

LEARNING_RATE, GAMMA = "model.learner.learning_rate", "model.learner.gamma"


def settings(**sections: Any) -> dict[str, Any]:
    config = asdict(Config())
    return {**config, **{name: {**config[name], **values} for name, values in sections.items()}}


def plan(changes: dict[str, Any], begin: int = 20_000, **sections: Any) -> Plan:
    return Plan(changes, settings(**sections), begin, 10_000)


# -- the effect


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 29, 100])
def test_t_quantile_is_scipys(freedom: int) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize("num_pairs", [2, 3, 5, 12])
def test_paired_effect_is_scipys(num_pairs: int) -> None:
    rng = np.random.default_rng(num_pairs)
    unchanged = rng.normal(100.0, 30.0, num_pairs)
    changed = unchanged + rng.normal(8.0, 10.0, num_pairs)
    effect = paired_effect(list(unchanged), list(changed))
    expected = stats.ttest_rel(changed, unchanged)
    interval = expected.confidence_interval(0.95)
    assert (effect.mean, effect.low, effect.high) == pytest.approx(
        ((changed - unchanged).mean(), interval.low, interval.high)
    )
    assert effect.verdict == ("no evidence" if expected.pvalue > 0.05 else "better")
    assert effect.improved == np.mean(changed > unchanged)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [([11, 12, 13], "better"), ([-9, -8, -7], "worse"), ([0, 9, -9], "no evidence"), ([5], "no evidence")],
)
def test_verdict_needs_an_interval_without_0(changed: list[float], verdict: str) -> None:
    assert paired_effect([0.5, 1.5, 2.5][: len(changed)], changed).verdict == verdict


def test_pairs_that_are_equal_show_no_effect() -> None:
    effect = paired_effect([3.0, 5.0], [3.0, 5.0])
    assert (effect.mean, effect.low, effect.high, effect.improved) == (0.0, 0.0, 0.0, 0.5)
    assert effect.verdict == "no evidence"


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covers = 0
    for _ in range(2_000):
        effect = paired_effect([0.0] * 5, list(rng.normal(1.0, 3.0, 5)))
        covers += effect.low <= 1.0 <= effect.high
    assert stats.binomtest(covers, 2_000, 0.95).pvalue > 0.001  # alpha 0.001


# -- the arms


def test_pairs_share_a_seed_that_is_not_the_runs_and_differ_in_the_change_alone() -> None:
    compared = plan({GAMMA: 0.9})
    arms = compared.arms(3)
    assert sorted((arm.seed, arm.kind) for arm in arms) == [
        (seed, kind) for seed in (1, 2, 3) for kind in ("as is", "changed")
    ]
    as_is, changed = (
        compared.overlay(Arm(kind, 2, c)) for kind, c in [("as is", {}), ("changed", {GAMMA: 0.9})]
    )
    assert changed["model"].pop("learner") == {"gamma": 0.9}
    assert as_is == changed
    assert as_is["model"]["seed"] == 2


def test_arms_keep_a_budget_that_schedules_fit_into() -> None:
    for own, expected in [(100_000, 100_000), (25_000, 30_000)]:
        model = nest({"total_env_steps": own}, settings())
        overlay = Plan({}, model, 20_000, 10_000).overlay(Arm("as is", 1, {}))["model"]
        assert overlay["total_env_steps"] == expected
    by_episodes = nest({"total_env_steps": None, "total_episodes": 50}, settings())
    overlay = Plan({}, by_episodes, 20_000, 10_000).overlay(Arm("as is", 1, {}))["model"]
    assert "total_env_steps" not in overlay
    assert overlay["total_episodes"] > 10**6


def test_which_arm_of_a_pair_goes_first_alternates() -> None:
    assert [arm.kind for arm in plan({GAMMA: 0.9}).arms(2)] == ["as is", "changed", "changed", "as is"]


def test_control_changes_another_setting_by_the_same_factor() -> None:
    compared = plan({LEARNING_RATE: 1e-5})
    controls = [arm.changes for arm in compared.arms(20, with_control=True) if arm.kind == "control"]
    assert controls == [arm.changes for arm in compared.arms(20, with_control=True) if arm.kind == "control"]
    assert len({next(iter(changes)) for changes in controls}) > 4
    for changes in controls:
        [(name, value)] = changes.items()
        assert name in CONTROLS
        assert name not in (LEARNING_RATE, "model.replay.capacity")  # a fork would lose its replay
        assert not compared.find_faults(changes)
        section, key = name.removeprefix("model.").split(".")
        before = compared.settings[section][key]
        if name == GAMMA:
            before, value = 1 - before, 1 - value
        within = abs(math.log(value / before)) if value > 0 else math.inf
        assert within <= math.log(10) + 0.05 or value == 0


def test_faulty_change_is_named_before_anything_runs() -> None:
    assert "gamma" in plan({GAMMA: 2.0}).find_faults({GAMMA: 2.0})[0]


@pytest.mark.parametrize("name", sorted(FOR_SPEED))
def test_change_of_cost_alone_is_about_speed(name: str) -> None:
    assert plan({name: 2}).is_about_speed
    assert not plan({name: 2, GAMMA: 0.9}).is_about_speed
    assert plan({name: 2}).overlay(Arm("as is", 1, {}))["model"]["evaluation"]["every_env_steps"] is None


def test_nesting_leaves_what_is_above_alone() -> None:
    above = {"model": {"network": {"init_args": {"hidden_sizes": [8]}}}}
    nested = nest({"model.network.init_args.hidden_sizes": [16]}, above)
    assert nested["model"]["network"]["init_args"]["hidden_sizes"] == [16]
    assert above["model"]["network"]["init_args"]["hidden_sizes"] == [8]


# -- processes


def job(name: str, script: str, root: Path) -> Job:
    return Job(name, (sys.executable, "-S", "-c", script), root / f"{name}.txt")


def test_jobs_run_in_order_and_tell_how_they_ended(tmp_path: Path) -> None:
    ended = []
    jobs = [job("good", "print('well')", tmp_path), job("bad", "raise SystemExit(3)", tmp_path)]
    run_jobs(jobs, 1, lambda job, code, wall_s: ended.append((job.name, code)))
    assert ended == [("good", 0), ("bad", 3)]
    assert (tmp_path / "good.txt").read_text() == "well\n"


def test_interruption_kills_what_is_running(tmp_path: Path) -> None:
    child = "import os, subprocess, sys, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    script = f"import os; os.chdir({str(tmp_path)!r}); {child}"

    def interrupt(job: Job, code: int, wall_s: float) -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job("first", "", tmp_path), job("long", script, tmp_path)], 2, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# -- the proof


class Machine:
    """Stands for the processes: an arm scores its seed, 10 more where it is changed; may be interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.lasts = math.inf
        self.fails: set[str] = set()
        monkeypatch.setattr(proof_module, "run_jobs", self.run)

    def run(self, jobs: list[Job], num_at_once: int, on_end: Any) -> None:
        self.num_at_once = num_at_once
        for each in jobs:
            if len(self.ran) >= self.lasts:
                raise KeyboardInterrupt
            self.ran.append(each.name)
            run = each.output.parent / "lightning_logs" / "version_0"
            (run / "checkpoints" / "parts").mkdir(parents=True)
            (run / "checkpoints" / "parts" / "rows").write_text("much")
            score = int(each.name.split("-")[1]) + 10 * each.name.endswith("changed")
            figures = {"final_evaluation_mean": score, "seconds": 1.0, "env_steps": 100}
            (run / "summary.json").write_text(json.dumps(figures))
            rows = ["9.0,20000,", "1.0,20050,", ",20060,200", "3.0,20100,"]  # the first is of the fork's past
            heading = "eval/return_mean,step,time/env_steps_per_second"
            (run / "metrics.csv").write_text("\n".join([heading, *rows]))
            each.output.write_text("trying\nbroken\n")
            on_end(each, int(each.name in self.fails), 60.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def make_proof(root: Path, changes: dict[str, Any] | None = None) -> Proof:
    made = Proof(root, plan(changes or {GAMMA: 0.9}))
    made.start.checkpoints.mkdir(parents=True)
    made.start.config.write_text(yaml.safe_dump({"trainer": {"callbacks": None}}))
    return made


def test_proof_compares_what_its_arms_showed(tmp_path: Path, machine: Machine) -> None:
    made = make_proof(tmp_path)
    arms = made.plan.arms(2)
    made.run(arms, 2, lambda text: None)
    found = made.compare(arms)
    assert [by["changed"]["final"] for by in found["arms"]] == [11, 12]
    assert found["arms"][0]["as is"]["evaluations"] == [[20050, 1.0], [20100, 3.0]]
    assert found["arms"][0]["as is"]["area"] == 2.0
    final, area = found["effects"]
    assert (final["of"], final["against"], final["figure"]) == ("changed", "as is", "final")
    assert final["effect"]["mean"] == 10
    assert final["effect"]["verdict"] == "better"
    assert area["effect"]["verdict"] == "no evidence"
    assert json.loads(json.dumps(found)) == found
    text = format_comparison(found)
    assert "+10.0 (+10.0 to +10.0), better in 100% of 2 pairs: better" in text
    assert "took 4:00 in all arms" in text
    assert "no evidence" in text


def test_done_arms_keep_no_saved_states(tmp_path: Path, machine: Machine) -> None:
    made = make_proof(tmp_path)
    made.run(made.plan.arms(1), 1, lambda text: None)
    assert not list(tmp_path.rglob("checkpoints"))


def test_interrupted_proof_goes_on_where_it_was(tmp_path: Path, machine: Machine) -> None:
    made = make_proof(tmp_path)
    arms = made.plan.arms(2)
    machine.lasts = 3
    with pytest.raises(KeyboardInterrupt):
        made.run(arms, 1, lambda text: None)
    assert made.start.checkpoints.is_dir()
    found = made.compare(arms)
    assert [by["as is"] is None for by in found["arms"]] == [False, True]
    assert found["effects"][0]["effect"]["num_pairs"] == 1
    machine.lasts = math.inf
    left = [arm for arm in arms if made.get_result(arm) is None]
    made.run(left, 1, lambda text: None)
    assert machine.ran == ["seed-1-as-is", "seed-1-changed", "seed-2-changed", "seed-2-as-is"]
    assert made.compare(arms)["effects"][0]["effect"]["num_pairs"] == 2


def test_failed_arm_is_told_and_its_pair_left_out(tmp_path: Path, machine: Machine) -> None:
    made, told = make_proof(tmp_path), []
    machine.fails = {"seed-1-changed"}
    arms = made.plan.arms(2)
    made.run(arms, 1, told.append)
    found = made.compare(arms)
    assert found["failures"] == {"seed-1-changed": "broken"}
    assert found["effects"][0]["effect"]["num_pairs"] == 1
    assert any("broken" in text for text in told)
    assert "seed-1-changed failed: broken" in format_comparison(found)
    assert made.start.checkpoints.is_dir()


def test_speed_is_compared_one_run_at_a_time(tmp_path: Path, machine: Machine) -> None:
    made = make_proof(tmp_path, {"model.env.num_envs": 8})
    arms = made.plan.arms(2)
    made.run(arms, 4, lambda text: None)
    assert machine.num_at_once == 1
    [speed] = made.compare(arms)["effects"]
    assert speed["figure"] == "env_steps_per_second"
    assert made.compare(arms)["arms"][0]["as is"]["env_steps_per_second"] == 200


def test_control_is_compared_with_both(tmp_path: Path, machine: Machine) -> None:
    made = make_proof(tmp_path)
    arms = made.plan.arms(2, with_control=True)
    made.run(arms, 1, lambda text: None)
    pairs = {(each["of"], each["against"]) for each in made.compare(arms)["effects"]}
    assert pairs == {("changed", "as is"), ("control", "as is"), ("changed", "control")}
