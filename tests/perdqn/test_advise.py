"""`perdqn advise`: the advice of a run as a person reads it, and what `--prove` measures of it."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from holdfast.advising.advice import Advice, Change
from holdfast.timing.bottlenecks import Bottleneck, advice_on

from perdqn.__main__ import main
from perdqn.advice.remedies import REMEDIES
from perdqn.fingerprint import differing, fingerprint
from perdqn.proving.arms import Arm, Plan
from perdqn.proving.proof import Proof
from perdqn.reporting.gather import gather
from perdqn.run.folder import RunFolder
from perdqn.run.saves import adopt, find_save
from perdqn.run.summary import format_table

from .saved_runs import copy_run, make_run

LEARNING_RATE = "model.learner.learning_rate"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder nobody may change."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of it elsewhere, interrupted at 178 of 300 env steps."""
    return copy_run(original, tmp_path)


def advice(rule: str, priority: str = "high", confidence: float = 1.0, **changes: Any) -> Advice:
    named = tuple(Change(name.replace("__", "."), None, value) for name, value in changes.items())
    evidence = {"newest(q)": 812.25, "newest(q) >": 100}
    return Advice(rule, priority, f"{rule} is wrong.", evidence, "a paper", named, "calm", None, confidence)


def give(run: Path, *events: tuple[str, Advice], torn: str = "") -> None:
    lines = [
        json.dumps({"time": 1e9, "step": 1000 * i, "event": event, "advice": each.as_dict()})
        for i, (event, each) in enumerate(events, 1)
    ]
    (run / "monitor").mkdir(exist_ok=True)
    (run / "monitor" / "advice.jsonl").write_text("\n".join([*lines, torn]))


def ask(capsys: pytest.CaptureFixture[str], *argv: Any, code: int = 0) -> str:
    """What is said on standard output, or on standard error where it is refused."""
    capsys.readouterr()
    assert main(["advise", *map(str, argv)]) == code
    said = capsys.readouterr()
    return said.err if code == 2 else said.out


LOWER = advice("learning_rate", "critical", model__learner__learning_rate=1e-5)


def test_advice_is_printed_most_urgent_first_with_the_command_that_follows_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(run, ("advised", advice("surer")), ("advised", advice("lesser", confidence=0.5)), ("advised", LOWER))
    said = ask(capsys, run)
    assert (
        said.index("1. critical: learning_rate")
        < said.index("2. high: surer")
        < said.index("3. high: lesser")
    )
    assert "newest(q) 812.2, newest(q) > 100" in said
    assert "a paper" in said
    assert "calm" in said
    assert f"perdqn resume {run} --fork --{LEARNING_RATE} 1e-05" in said
    assert "since     step 3,000" in said


def test_command_can_be_pasted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(run, ("advised", LOWER))
    [found] = json.loads(ask(capsys, run, "--json"))
    program, *argv = shlex.split(found["command"])
    assert program == "perdqn"
    assert main(argv) == 0
    changes = json.loads((run.with_name("version_1") / "summary.json").read_text())["changes"]
    assert changes == [f"{LEARNING_RATE}: 0.0001 -> 1.0e-05"]


@pytest.mark.parametrize(
    ("change", "status"),
    [({"model__learner__dueling": False}, "running"), ({"model__learner__gamma": 0.9}, "completed")],
)
def test_what_a_fork_cannot_change_is_a_new_run(
    run: Path, change: dict[str, Any], status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "summary.json").write_text(json.dumps({"status": status}))
    give(run, ("advised", advice("rule", **change)))
    assert f"perdqn fit --config {run / 'config.yaml'} --model.learner." in ask(capsys, run)


def test_withdrawn_advice_is_gone_and_applied_advice_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = advice("obsolete")
    give(
        run, ("advised", gone), ("advised", LOWER), ("withdrawn", gone), ("applied", LOWER), torn='{"time": 1'
    )
    said = ask(capsys, run)
    assert "obsolete" not in said
    assert "step 4,000, applied" in said


def test_advised_run_with_nothing_left_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(run)
    assert "nothing to change" in ask(capsys, run)
    assert json.loads(ask(capsys, run, "--json")) == []


def test_what_was_measured_to_be_slow_is_said_beside_the_advice(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(run, ("advised", advice("lesser", "medium")), ("advised", LOWER))
    slow = Bottleneck("environment", 0.5, 0.4, 0.6, 0.99, 20, {"threshold": 0.05})
    report = {"time": 1e9, "step": 500, "recommendations": [advice_on(slow, REMEDIES).as_dict()]}
    (run / "monitor" / "performance_report.json").write_text(json.dumps(report))
    critical, high, medium, _ = ask(capsys, run).split("\n\n")
    assert critical.startswith("1. critical: learning_rate")
    assert high.startswith("2. high: the training waits for environments, 50% of the time")
    assert "model.env.num_envs" in high
    assert "speed-up  2 x" in high
    assert "since" not in high  # steps of the report are not those of the environment
    assert medium.startswith("3. medium: lesser")
    assert [record["event"] for record in json.loads(ask(capsys, run, "--json"))][1] == "measured"
    assert [each["rule"] for each in gather(RunFolder(run))["advice"]][1] == "bottleneck/environment"
    figures = json.loads((run / "summary.json").read_text())
    assert "(1 critical, 1 high, 1 medium)" in format_table(figures, RunFolder(run))


def test_run_that_nobody_advised_is_examined(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "monitor")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("n_step: 1\n", "n_step: 30\n"))
    found = {record["advice"]["rule"]: record for record in json.loads(ask(capsys, run, "--json"))}
    assert f"perdqn resume {run} --fork --model.learner.n_step" in found["n_step_long"]["command"]


def test_run_that_logged_nothing_is_examined_by_its_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("reward_clip: null", "reward_clip: 0.01"))
    shutil.rmtree(run / "monitor")
    assert "reward_clipped_away" in ask(capsys, run, "--json")
    for path in run.glob("events.*"):
        path.unlink()
    assert "reward_clipped_away" in ask(capsys, run, "--json")


def test_help_and_given_advice_come_without_torch(run: Path) -> None:
    give(run, ("advised", LOWER))
    script = (
        "import sys; from perdqn.__main__ import main\n"
        f"main(['advise', {str(run)!r}]); main(['advise', '--help'])\n"
        "assert not {'torch', 'numpy', 'lightning'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# -- measuring


@pytest.fixture
def _toys_in_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def read_losses(proof: Path, arm: str) -> list[str]:
    """Of every update, as written, so to the last bit."""
    with next((proof / arm).glob("lightning_logs/*/metrics.csv")).open() as file:
        losses = [row["train/loss"] for row in csv.DictReader(file)]
    found = list(filter(None, losses))
    assert len(found) > 15
    return found


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_toys_in_arms")
def test_arms_that_differ_in_nothing_are_bit_equal_and_their_seeds_are_not(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("log_every_n_steps: 200", "log_every_n_steps: 1"))
    same = [
        "--change",
        f"{LEARNING_RATE}=1e-4",
        "--seeds",
        2,
        "--jobs",
        1,
        "--budget-env-steps",
        80,
        "--json",
    ]
    found = json.loads(ask(capsys, run, "--prove", *same))
    assert [(each["of"], each["against"]) for each in found["effects"]] == [("changed", "as is")] * 2
    for each in found["effects"]:
        effect = each["effect"]
        assert (effect["mean"], effect["low"], effect["high"]) == (0.0, 0.0, 0.0)
        assert effect["verdict"] == "no evidence"
    one, _ = found["arms"]
    assert one["as is"]["evaluations"] == one["changed"]["evaluations"]
    assert len(one["as is"]["evaluations"]) in (10, 11)  # a group of updates may reach one more
    assert one["as is"]["final"] == one["changed"]["final"] is not None
    as_is, changed, other_seed = (
        read_losses(Path(found["folder"]), arm) for arm in ("seed-1-as-is", "seed-1-changed", "seed-2-as-is")
    )
    assert as_is == changed
    assert not set(as_is) & set(other_seed)
    begin = found["begin_env_steps"]
    assert begin + 80 <= one["as is"]["env_steps"] < begin + 110
    proof = Path(found["folder"])
    forked = json.loads(next(proof.glob("seed-2-as-is/lightning_logs/*/summary.json")).read_text())
    assert forked["forked_from"]["generation"] == "update-32"
    assert forked["forked_from"]["seed"] == 0
    assert not list(proof.rglob("checkpoints"))
    assert json.loads((proof / "proof.json").read_text()) == found
    assert json.loads(ask(capsys, run, "--prove", *same)) == found  # nothing is run again


def run_arms(run: Path, root: Path, *arms: Arm) -> list[Path]:
    """In this process; folders of each arm's states: as it began its first update, and at its end."""
    states = root / "states"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["callbacks"] = {"class_path": "saved_runs.Keep", "init_args": {"folder": str(states)}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    save = find_save(str(run), run)
    begin = int(save.generation.counters["env_steps"])
    proof = Proof(root / "proof", Plan({LEARNING_RATE: 1e-2}, config["model"], begin, 300 - begin))
    proof.start.path.mkdir(parents=True)
    shutil.copy(run / "config.yaml", proof.start.config)
    adopt(save, proof.start)
    folders = []
    for arm in arms:
        assert main([*proof._prepare(arm).command[3:]]) == 0
        folders.append(states.rename(root / arm.name))
    return folders


def fingerprint_of(state: Path) -> dict[str, Any]:
    return fingerprint(torch.load(state, weights_only=True))


def test_unchanged_arm_with_the_runs_own_seed_is_the_run_continued_bit_by_bit(
    run: Path, original: Path, tmp_path: Path
) -> None:
    (arm,) = run_arms(run, tmp_path, Arm("as is", 0, {}))
    states = original.parents[1] / "states"
    for state in ("32.ckpt", "end.ckpt"):  # what an arm does differ in is when it is evaluated
        parts = set(differing(fingerprint_of(states / state), fingerprint_of(arm / state)))
        assert parts <= {"settings", "metrics", "schedules"}


def test_arms_of_one_seed_draw_from_the_same_streams_up_to_the_change(run: Path, tmp_path: Path) -> None:
    change = {LEARNING_RATE: 1e-2}
    as_is, changed, other = run_arms(
        run, tmp_path, Arm("as is", 1, {}), Arm("changed", 1, change), Arm("as is", 2, {})
    )
    began = [fingerprint_of(folder / "32.ckpt") for folder in (as_is, changed, other)]
    assert differing(began[0], began[1]) == ["optimizer", "settings"]  # which hold the rate
    assert "rng" in differing(began[0], began[2])
    assert "weights" not in differing(began[0], began[2])
    end = [fingerprint_of(folder / "end.ckpt") for folder in (as_is, changed)]
    assert "weights" in differing(*end)


def test_first_advice_with_a_change_is_the_one_that_is_proved(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdqn.cli.parsers import get_parsers
    from perdqn.cli.prove import _choose_changes

    given = get_parsers()["advise"].parse_args(["--prove"])
    ranked = [each.as_dict() for each in (advice("wordy"), LOWER, advice("other", model__learner__gamma=0.9))]
    assert _choose_changes(given, ranked) == {LEARNING_RATE: 1e-5}
    given.rank = 3
    assert _choose_changes(given, ranked) == {"model.learner.gamma": 0.9}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--rank", "1"], "no advice of rank 1 changes a setting; choose from 2, or name a --change"),
        (["--change", "model.learner.gamma=3"], "model.learner.gamma"),
        (["--change", "model.learner.dueling=false"], "cannot change in a fork; add --from-start"),
        (["--change", "gamma"], "must be SETTING=VALUE"),
        (["--seeds", "0"], "must be a whole number from 1 on, got 0"),
    ],
)
def test_proof_that_cannot_be_is_refused_before_anything_runs(
    run: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    give(run, ("advised", advice("wordy", "critical")), ("advised", LOWER))
    assert reason in ask(capsys, run, "--prove", *options, code=2)
    assert not list(run.glob("proofs/*/seed-*"))


def test_proof_by_fork_of_a_finished_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": "completed"}))
    said = ask(capsys, run, "--prove", "--change", f"{LEARNING_RATE}=1e-5", code=2)
    assert "is finished, so that a change comes too late; add --from-start" in said
