"""Trainer settings that work, those that are refused, and what a run shows."""

from __future__ import annotations

import errno
import io
import timeit
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from holdfast.storage.durable import write_whole
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from perdqn.__main__ import main
from perdqn.module import PERDQN
from perdqn.run.folder import RunFolder
from perdqn.run.progress import Rate, RunProgress, get_text
from perdqn.run.summary import format_evaluation, format_seconds, format_table, get_figures

from .test_cli import fit, options, summary_of


def load_last(root: Path) -> dict[str, Any]:
    path = root / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)


# -- Trainer settings that work


@pytest.mark.parametrize("group", [1, 4, 16])
def test_max_steps_ends_after_exactly_so_many_updates(tmp_path: Path, group: int) -> None:
    assert fit(tmp_path, trainer__max_steps=10, model__learner__updates_per_step=group) == 0
    figures = summary_of(tmp_path)
    assert figures["updates"] == 10
    assert figures["status"] == "stopped"
    assert "max_steps of 10" in figures["stop_reason"]
    assert load_last(tmp_path)["global_step"] == 10


def test_run_stopped_by_max_steps_is_resumed_with_more(tmp_path: Path) -> None:
    assert fit(tmp_path, trainer__max_steps=10) == 0
    assert main(["resume", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=-1"]) == 0
    assert summary_of(tmp_path)["updates"] == 75


def test_max_time_ends_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    endless = {"model__total_env_steps": 10**7, "model__replay__beta_env_steps": 10**7}
    assert fit(tmp_path, trainer__max_time="00:00:00:01", **endless) == 0
    figures = summary_of(tmp_path)
    assert figures["status"] == "stopped"
    assert "max_time" in figures["stop_reason"]
    assert load_last(tmp_path)["global_step"] == figures["updates"]


def test_fast_dev_run_trains_validates_and_writes_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, trainer__fast_dev_run="true") == 0
    assert not list(tmp_path.iterdir())


def test_limit_val_batches_plays_fewer_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, trainer__limit_val_batches=1, model__evaluation__num_envs=1) == 0
    assert "evaluation at 200 env steps" in capsys.readouterr().out


def test_no_validation_leaves_no_best_and_a_final_evaluation(tmp_path: Path) -> None:
    assert fit(tmp_path, trainer__limit_val_batches=0) == 0
    figures = summary_of(tmp_path)
    assert figures["best_evaluation_mean"] is None
    assert figures["final_evaluation_mean"] is not None


def test_limit_test_batches_of_zero_skips_the_final_evaluation(tmp_path: Path) -> None:
    assert fit(tmp_path, trainer__limit_test_batches=0) == 0
    assert summary_of(tmp_path)["final_evaluation_mean"] is None


@pytest.mark.filterwarnings("ignore:step .*TensorBoardLogger")
def test_final_evaluation_needs_no_room_for_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    is_full, get = [], TensorBoardLogger.experiment.fget

    def experiment(logger: TensorBoardLogger) -> Any:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return get(logger)

    monkeypatch.setattr(TensorBoardLogger, "experiment", property(experiment))
    monkeypatch.setattr(PERDQN, "on_fit_end", lambda module: is_full.append(True))
    assert fit(tmp_path) == 0
    figures = summary_of(tmp_path)
    assert figures["status"] == "completed"
    assert figures["final_evaluation_mean"] is not None
    assert "final evaluation is not logged: [Errno 28] No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.float32), ("64-true", torch.float64), ("32", torch.float32)]
)
def test_precision_trains(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    assert fit(tmp_path, trainer__precision=precision) == 0
    weights = load_last(tmp_path)["state_dict"].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {dtype}


def test_deterministic_and_profiler_work(tmp_path: Path) -> None:
    assert fit(tmp_path, trainer__deterministic="true", trainer__profiler="simple") == 0


@pytest.mark.parametrize("setting", ["enable_progress_bar", "logger", "enable_checkpointing"])
def test_parts_can_be_turned_off(tmp_path: Path, setting: str) -> None:
    assert fit(tmp_path, **{f"trainer__{setting}": "false"}) == 0
    folder = tmp_path / "lightning_logs" / "version_0"
    assert summary_of(tmp_path)["status"] == "completed"
    assert (folder / "checkpoints" / "last.ckpt").exists() == (setting != "enable_checkpointing")
    assert bool(list(folder.glob("events*"))) == (setting != "logger")


def test_csv_logger_counts_in_env_steps_and_writes_into_the_run(tmp_path: Path) -> None:
    arguments = {"save_dir": str(tmp_path / "elsewhere"), "name": "logs", "version": "mine"}
    logger = {"class_path": "CSVLogger", "init_args": arguments}
    assert fit(tmp_path, trainer__logger=yaml.safe_dump(logger, default_flow_style=True).strip()) == 0
    folder = tmp_path / "lightning_logs" / "version_0"
    assert (folder / "summary.json").exists()
    assert not (tmp_path / "elsewhere").exists()
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    steps = [int(row.split(",")[header.split(",").index("step")]) for row in rows]
    assert max(steps) == 400


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_logger_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = {"project": "perdqn", "offline": True, "save_dir": str(tmp_path)}
    logger = {"class_path": "WandbLogger", "init_args": arguments}
    text = yaml.safe_dump(logger, default_flow_style=True, width=1000).strip()
    assert fit(tmp_path, trainer__logger=text) == 0
    assert summary_of(tmp_path)["status"] == "completed"
    import wandb

    wandb.finish()


def test_stock_callbacks_work(tmp_path: Path) -> None:
    callbacks = [
        {"class_path": "LearningRateMonitor"},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "eval/return_mean", "patience": 100}},
        {
            "class_path": "ModelCheckpoint",
            "init_args": {"dirpath": str(tmp_path / "mine"), "every_n_train_steps": 16, "save_top_k": -1},
        },
    ]
    text = yaml.safe_dump(callbacks, default_flow_style=True, width=1000).strip()
    assert fit(tmp_path, trainer__callbacks=text, trainer__log_every_n_steps=1) == 0
    assert list((tmp_path / "mine").glob("*.ckpt"))


def test_early_stopping_ends_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    arguments = {"monitor": "eval/return_mean", "mode": "max", "stopping_threshold": 1.0}
    stopping = [{"class_path": "EarlyStopping", "init_args": arguments}]
    text = yaml.safe_dump(stopping, default_flow_style=True, width=1000).strip()
    assert fit(tmp_path, trainer__callbacks=text) == 0
    figures = summary_of(tmp_path)
    assert (figures["env_steps"], figures["status"]) == (200, "stopped")
    assert load_last(tmp_path)["global_step"] == figures["updates"]
    again = [f"--trainer.default_root_dir={tmp_path}", "--trainer.callbacks=null"]
    assert main(["resume", *again]) == 0
    assert summary_of(tmp_path)["env_steps"] == 400


# -- those that are refused


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("accumulate_grad_batches", 2),
        ("limit_train_batches", 5),
        ("overfit_batches", 1),
        ("val_check_interval", 10),
        ("check_val_every_n_epoch", 2),
        ("max_epochs", 3),
        ("min_epochs", 2),
        ("min_steps", 5),
        ("reload_dataloaders_every_n_epochs", 1),
        ("gradient_clip_val", 0.5),
        ("devices", 2),
        ("num_nodes", 2),
        ("barebones", "true"),
    ],
)
def test_setting_is_refused_with_a_reason(
    tmp_path: Path, setting: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *options(tmp_path, **{f"trainer__{setting}": value})]) == 2
    said = capsys.readouterr().err
    assert f"trainer.{setting} must" in said
    assert ";" in said


# -- what a run shows


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Module(SimpleNamespace):
    """As much of a PERDQN as a progress line asks for."""

    def __init__(self, **changes: Any) -> None:
        budget = SimpleNamespace(total_env_steps=1000, total_episodes=None)
        latest = {"rollout/return_mean": 21.5, "rollout/length_mean": 22.0, "train/loss": 0.01234}
        counts = {"env_steps": 0, "update_steps": 0, "episodes": 0, "best_evaluation_mean": None}
        super().__init__(**{"config": budget, "latest": latest, **counts, **changes})


def test_lines_are_plain_and_rare_where_there_is_no_terminal() -> None:
    clock, file, module = Clock(), io.StringIO(), Module()
    progress = RunProgress(line_seconds=10, file=file, clock=clock)
    progress.on_train_start(None, module)
    for second in range(1, 26):
        clock.now, module.env_steps = float(second), 20 * second
        progress.on_train_batch_end(None, module, None, None, 0)
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("400/1,000 env steps (40%) 0:30 left, return 21.5, length 22, loss 0.0123")
    assert "20 env steps/s" in lines[1]
    assert "\r" not in file.getvalue()


def test_bar_shows_the_budget_in_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, file, module = Clock(), Terminal(), Module(env_steps=500)
    progress = RunProgress(refresh_seconds=0.2, file=file, clock=clock)
    progress.on_train_start(None, module)
    clock.now, module.env_steps = 1.0, 600
    progress.on_train_batch_end(None, module, None, None, 0)
    progress.print("a line above")
    progress.on_train_end(None, module)
    shown = file.getvalue()
    assert "600/1000 env steps" in shown
    assert "return 21.5" in shown
    assert "a line above" in shown


def test_progress_costs_less_than_ten_microseconds_a_step() -> None:
    progress, module = RunProgress(file=io.StringIO()), Module()
    progress.on_train_start(None, module)
    call = timeit.repeat(
        lambda: progress.on_train_batch_end(None, module, None, None, 0), number=1000, repeat=5
    )
    assert min(call) / 1000 < 10e-6


def test_disabled_progress_is_silent() -> None:
    file, module, clock = io.StringIO(), Module(), Clock()
    progress = RunProgress(file=file, clock=clock)
    progress.disable()
    progress.on_train_start(None, module)
    clock.now = 100.0
    progress.on_train_batch_end(None, module, None, None, 0)
    assert file.getvalue() == ""


def test_budget_in_episodes_is_shown_in_episodes() -> None:
    clock, file = Clock(), io.StringIO()
    module = Module(config=SimpleNamespace(total_env_steps=None, total_episodes=50), episodes=0)
    progress = RunProgress(line_seconds=1, file=file, clock=clock)
    progress.on_train_start(None, module)
    clock.now, module.episodes = 2.0, 10
    progress.on_train_batch_end(None, module, None, None, 0)
    assert file.getvalue().startswith("10/50 episodes (20%) 0:08 left")


def test_rate_is_unknown_before_the_first_interval() -> None:
    rate = Rate(0.0, 0)
    assert rate.get_seconds_left(0, 100) == "?"
    rate.update(2.0, 10)
    assert rate.get_seconds_left(10, 110) == "0:20"
    assert get_text({}, 0.0, "env steps") == "0 env steps/s"


def test_table_is_short_and_states_every_figure() -> None:
    module = Module(env_steps=1000, update_steps=450, episodes=12, best_evaluation_mean=99.0)
    final = {"mean": 90.0, "iqm": 91.0, "low": 80.0, "high": 100.0, "length_mean": 90.0}
    figures = {"status": "completed", "stop_reason": "budget spent", **get_figures(module, 50.0, final)}
    table = format_table(figures, RunFolder(Path("logs/version 3")))
    assert len(table.splitlines()) < 10
    for words in (
        "1,000 env steps",
        "0:50 (20 env steps/s)",
        "99.0",
        "90.0 (95 % interval 80.0 to 100.0, IQM 91.0)",
    ):
        assert words in table
    assert "perdqn resume 'logs/version 3'" in table


def test_numbers_json_cannot_hold_become_null() -> None:
    figures = get_figures(Module(best_evaluation_mean=float("nan")), 1.0)
    assert figures["best_evaluation_mean"] is None
    assert format_evaluation({}) == "none"
    assert format_seconds(3725) == "1:02:05"


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_tensorboard_has_scalars_by_env_step_a_layout_texts_a_film_and_hparams(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert fit(tmp_path, trainer__log_every_n_steps=10, dashboard__video_every=2) == 0
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    tags = events.Tags()
    assert {"train/loss", "rollout/epsilon", "eval/return_mean", "final/return_mean"} <= set(tags["scalars"])
    assert "custom_scalars__config__" in tags["tensors"]
    texts = {f"run/{name}/text_summary" for name in ("settings", "origin", "environment", "result")}
    assert texts <= set(tags["tensors"])
    assert tags["images"] == ["eval/episode"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert events.Scalars("eval/return_mean")[-1].step in (400, 200)
    assert events.Scalars("train/loss")[-1].step > 75  # env steps, not updates
    final = summary_of(tmp_path)["final_evaluation_mean"]
    assert events.Scalars("final/return_mean")[-1].value == pytest.approx(final, abs=1e-3)


def test_python_use_needs_no_command_line(tmp_path: Path) -> None:
    from perdqn import PERDQN

    settings = {"learner": {"warmup_env_steps": 100}, "evaluation": {"every_env_steps": None}}
    agent = PERDQN(
        env="CartPole-v1",
        total_env_steps=200,
        replay={"beta_env_steps": 200},
        exploration={"epsilon_env_steps": 100},
        **settings,
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(agent)
    assert agent.env_steps == 200
