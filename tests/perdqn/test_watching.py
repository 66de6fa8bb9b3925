"""What watches a run from the command line: on, off, all at once, and without a trace in what is learnt."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from holdfast import AutoScaler, ErrorRecovery, PerformanceMonitor, ResourceMonitor, TuningAdvisor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter

from perdqn.__main__ import main
from perdqn.assembly import RunCLI
from perdqn.cli.quiet import quiet
from perdqn.config import ConfigError
from perdqn.run.folder import RunFolder
from perdqn.run.keeping import KEEPERS, WATCHERS, find_faults
from perdqn.shipped import expand

KINDS = {
    "resources": ResourceMonitor,
    "performance": PerformanceMonitor,
    "advisor": TuningAdvisor,
    "scaler": AutoScaler,
}
SHORT = [
    *("--config", "cartpole", "--model.total_env_steps", "3000", "--model.replay.beta_env_steps", "3000"),
    *("--model.exploration.epsilon_env_steps", "2000", "--model.evaluation.every_env_steps", "1500"),
    *("--model.evaluation.episodes", "2", "--model.evaluation.test_episodes", "2"),
    *("--model.evaluation.stop_at_return", "null", "--trainer.enable_progress_bar", "false"),
]


def watchers(tmp_path: Path, *options: str) -> set[str]:
    options = (*SHORT, *options, "--trainer.default_root_dir", str(tmp_path))
    cli = RunCLI("fit", expand(list(options)))
    return {name for name, kind in KINDS.items() if any(isinstance(c, kind) for c in cli.trainer.callbacks)}


def test_a_run_is_watched_and_advised_unless_told_otherwise(tmp_path: Path) -> None:
    assert watchers(tmp_path) == {"resources", "performance", "advisor"}


@pytest.mark.parametrize("name", ["resources", "performance", "advisor"])
def test_each_has_a_switch(tmp_path: Path, name: str) -> None:
    found = watchers(tmp_path, f"--watch.{name}", "false")
    assert found == {"resources", "performance", "advisor"} - {name}


def test_the_overlay_turns_everything_on(tmp_path: Path) -> None:
    assert watchers(tmp_path, "--config", "guarded") == KINDS.keys()


def run(tmp_path: Path, *options: str) -> Path:
    assert main(["fit", *SHORT, *options, "--trainer.default_root_dir", str(tmp_path)]) == 0
    return tmp_path / "lightning_logs" / "version_0"


def test_whoever_watches_leaves_no_trace_in_what_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = [f"--watch.{name}=false" for name in ("resources", "performance", "advisor")]
    plain = run(tmp_path / "off", *off)
    guarded = run(tmp_path / "on", "--config", "guarded", "--performance.every_s", "0.01")
    assert not (plain / "monitor" / "resources.jsonl").exists()
    written = {path.name for path in (guarded / "monitor").iterdir()}
    assert {"performance_report.json", "resources.jsonl", "preflight.json"} <= written
    capsys.readouterr()
    assert main(["fingerprint", str(plain), str(guarded)]) == 0, capsys.readouterr().out


def test_advice_and_alarms_are_seen_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, "--model.learner.learning_rate", "0.05", "--advisor.every_n_steps", "20")
    shown = capsys.readouterr().out
    assert "advised (learning_rate_high, critical)" in shown
    assert f"improve it        perdqn advise {folder} (1 critical" in shown


def test_what_lightning_says_on_the_way_stays_off_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        ResourceMonitor().release_memory()
        rank_zero_info("a tip")
        Trainer(logger=False, enable_checkpointing=False)
    shown = capsys.readouterr()
    assert shown.out.startswith("ResourceMonitor: memory given back")
    assert "tip" not in shown.out + shown.err
    assert len(shown.out.splitlines()) == 1
    assert not shown.err


WRONG = {
    "resources.interval_s": 0.0,
    "resources.log_every_seconds": -1.0,
    "resources.write_every_seconds": 0.0,
    "performance.report_every_steps": 0,
    "performance.report_every_episodes": -3,
    "performance.window_steps": 0,
    "performance.every_s": -1.0,
    "performance.max_cost": 2.0,
    "advisor.every_n_steps": 0,
    "advisor.num_samples": 2,
    "advisor.bounds": {"model.learner.learning_rate": [1.0, 0.0]},
    "scaler.bounds": {"num_threads": [4, 1]},
    "scaler.window": 0,
    "scaler.min_gain": 3.0,
    "checkpoint.keep": 0,
    "emergency.grace_seconds": -1.0,
    "recovery.lr_factor": 0.0,
}


@pytest.mark.parametrize(("setting", "value"), WRONG.items())
def test_what_a_callback_refuses_names_setting_value_range_and_remedy(setting: str, value: Any) -> None:
    settings = {section: dict(defaults) for section, (_, defaults) in {**KEEPERS, **WATCHERS}.items()}
    assert find_faults(settings) == []
    section, _, name = setting.partition(".")
    settings[section][name] = value
    (fault,) = find_faults(settings)
    assert re.match(rf"{setting}\b.* must .*, got .*; ", fault), fault


@pytest.mark.parametrize("command", ["fit", "check"])
def test_faults_of_all_sections_come_at_once_before_anything_starts(tmp_path: Path, command: str) -> None:
    wrong = ["--model.replay.alpha=3", "--resources.interval_s=0", "--dashboard.video_every=0"]
    names = ['--advisor.without=["alpha_hi"]', '--advisor.bounds={"model.learner.learning_rat": [0, 1]}']
    names.append('--scaler.bounds={"env.num_env": [1, 4]}')
    with pytest.raises(ConfigError) as refused:
        RunCLI(command, expand([*SHORT, *wrong, *names, f"--trainer.default_root_dir={tmp_path}"]))
    assert sorted(refused.value.faults) == [
        "advisor.bounds must name what there is, got model.learner.learning_rat; "
        "use model.learner.learning_rate",
        "advisor.without must name what there is, got alpha_hi; use alpha_high",
        "dashboard.video_every must be at least 1, got 0; use null for no video",
        "model.replay.alpha must lie in [0, 1], got 3.0; use 0.6 for the paper's setting",
        "resources.interval_s must be positive, got 0.0; use 1 to 60 seconds",
        "scaler.bounds must name what there is, got env.num_env; use env.num_envs",
    ]
    assert not any(tmp_path.iterdir())


def test_a_run_that_left_a_batch_out_ends_well_and_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(self: ErrorRecovery, trainer: Trainer, module: LightningModule) -> None:
        self._record("batch left out", "the loss is nan", "the run goes on")

    monkeypatch.setattr(ErrorRecovery, "on_train_start", begin)
    folder = run(tmp_path, "--model.evaluation.every_env_steps=null")
    (event,) = RunFolder(folder).read_summary()["events"]
    assert event["what"] == "batch left out"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_told_of_without_the_tracebacks_of_tensorboards_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("threading.excepthook", threading.__excepthook__)  # pytest has one of its own
    monkeypatch.setattr(RecordWriter, "write", full)
    with quiet(), pytest.raises(OSError, match="No space left"):
        EventFileWriter(str(tmp_path))
    assert capsys.readouterr().err == ""
