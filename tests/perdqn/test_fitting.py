"""How many environments and threads a run has: decided once before it begins, and kept for life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from holdfast import AutoScaler

from perdqn import fitting
from perdqn.__main__ import main
from perdqn.calibration import time_training
from perdqn.config import Config, ConfigError, from_dict
from perdqn.fitting import SCALABLE, fit_to_machine
from tests.perdqn.small_runs import SMALL, small, trainer

PACES = {1: 4.0, 2: 3.0, 4: 1.0, 8: 2.0}  # seconds an env step, by number of environments


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The numbers of environments that were measured; nothing is remembered from elsewhere."""
    seen: list[int] = []

    def pace(config: Config, *_: Any, **__: Any) -> float:
        seen.append(config.env.num_envs)
        return PACES[config.env.num_envs]

    monkeypatch.setattr(fitting, "time_training", pace)
    monkeypatch.setenv("PERDQN_CACHE_DIR", str(tmp_path / "cache"))
    return seen


def test_the_fastest_number_of_environments_within_bounds_wins(measured: list[int]) -> None:
    assert fit_to_machine(Config(), {"env.num_envs": (1, 8)}) == {"env.num_envs": 4}
    assert fit_to_machine(Config(), {"env.num_envs": (1, 2)}) == {"env.num_envs": 2}
    assert fit_to_machine(Config(), {"learner.updates_per_step": (1, 2)}) == {}


def test_the_answer_is_remembered_whatever_the_seed_and_budget(tmp_path: Path, measured: list[int]) -> None:
    fit_to_machine(from_dict({"seed": 1, "total_env_steps": 9_000}), {"env.num_envs": (1, 8)})
    asked = len(measured)
    assert fit_to_machine(from_dict({"seed": 2}), {"env.num_envs": (1, 8)}) == {"env.num_envs": 4}
    assert len(measured) == asked
    fit_to_machine(from_dict({"learner": {"batch_size": 128}}), {"env.num_envs": (1, 8)})
    assert len(measured) > asked
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2


def test_bounds_that_settings_do_not_allow_are_refused_by_name(measured: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"scaler.bounds\['env.num_envs'\] \[1, 4096\]: .*warmup"):
        fit_to_machine(Config(total_env_steps=2_000), {"env.num_envs": (1, 4096)})
    assert measured == []


def test_measuring_touches_no_random_stream() -> None:
    ticks = iter(range(10**6))
    before = torch.get_rng_state().tolist(), torch.get_num_threads()
    assert time_training(from_dict(SMALL), 0.5, lambda: next(ticks) / 10) > 0
    assert (torch.get_rng_state().tolist(), torch.get_num_threads()) == before


def options(root: Path, **more: Any) -> list[str]:
    given = {"model.replay.capacity": 500, "model.total_env_steps": 120, "trainer.default_root_dir": root}
    given |= {"model.learner.warmup_env_steps": 60, "model.evaluation.every_env_steps": "null"}
    given |= {"model.evaluation.test_episodes": 1, "trainer.enable_progress_bar": False, **more}
    return [f"--{name}={value}" for name, value in given.items()]


BOUNDS = {"watch.scaler": True, "scaler.bounds": '{"env.num_envs": [1, 8]}'}


def num_envs(run: Path) -> int:
    return int(yaml.safe_load((run / "config.yaml").read_text())["model"]["env"]["num_envs"])


def test_a_run_says_what_was_decided_and_keeps_it_when_it_goes_on_or_is_forked(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "lightning_logs" / "version_0"
    assert main(["fit", *options(tmp_path, **BOUNDS)]) == 0
    assert "scaler     env.num_envs 4" in capsys.readouterr().out
    assert num_envs(run) == 4
    saved = torch.load(sorted(run.glob("checkpoints/*.ckpt"))[-1], weights_only=True)
    assert saved["hyper_parameters"]["env"]["num_envs"] == 4
    assert saved["callbacks"]["AutoScaler"]["decisions"]["env.num_envs"] == 4
    measured.clear()
    assert main(["resume", str(run), "--model.total_env_steps=180"]) == 0
    assert main(["resume", str(run), "--fork", "--model.total_env_steps=240"]) == 0
    assert [num_envs(run), num_envs(run.with_name("version_1"))] == [4, 4]
    assert measured == []


def test_a_run_that_starts_from_a_checkpoint_or_is_not_watched_decides_nothing(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *options(tmp_path, **{**BOUNDS, "watch.scaler": False})]) == 0
    run = tmp_path / "lightning_logs" / "version_0"
    assert num_envs(run) == 1
    assert main(["fit", *options(tmp_path, **BOUNDS), "--ckpt_path", str(run)]) == 2
    assert "scaler.bounds['env.num_envs'] cannot be decided" in capsys.readouterr().err
    assert measured == []


def test_settings_that_bounds_may_name_are_those_a_module_declares() -> None:
    assert sorted(SCALABLE) == sorted(small().scalable_settings())


def test_from_python_bounds_without_the_value_at_hand_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bounds\['env.num_envs'\] \[4, 8\] cannot be kept any more"):
        trainer(AutoScaler({"env.num_envs": (4, 8)}, cache_dir=tmp_path)).fit(small())
