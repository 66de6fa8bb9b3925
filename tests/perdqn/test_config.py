"""Settings: what is refused, in which words, what is only warned of, and the summary."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from perdqn.config import (
    ClassSpec,
    Config,
    ConfigError,
    EnvConfig,
    LearnerConfig,
    ReplayConfig,
    Report,
    check,
    coerce,
    format_config_summary,
    from_dict,
    get_config_summary,
    row_bytes,
)
from perdqn.config.trainer import REFUSED
from perdqn.config.values import HINTS, RANGES
from perdqn.transition import Column, EnvSpec

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def with_setting(key: str, value: Any, config: Config | None = None) -> Config:
    """The config, by default the shipped one, with one setting changed."""
    config = Config() if config is None else config
    section, _, name = key.rpartition(".")
    if not section:
        return replace(config, **{name: value})
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def with_settings(**settings: Any) -> Config:
    """As `with_setting` for several; ``__`` stands for the dot."""
    config = Config()
    for key, value in settings.items():
        config = with_setting(key.replace("__", "."), value, config)
    return config


def faults_of(**settings: Any) -> list[str]:
    return check(with_settings(**settings)).faults


def warnings_of(**settings: Any) -> list[str]:
    report = check(with_settings(**settings))
    assert report.faults == []
    return report.warnings


def test_shipped_defaults_have_neither_fault_nor_warning() -> None:
    assert check(Config()) == Report()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_has_neither_fault_nor_warning(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert check(from_dict(settings.get("model", {})), trainer=settings.get("trainer")) == Report()


def test_importing_the_settings_stays_light() -> None:
    heavy = "{'torch', 'lightning', 'gymnasium', 'numpy', 'jsonargparse'}"
    code = f"import sys, perdqn.config; print(sorted({heavy} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_importing_the_settings_checks_the_shipped_defaults() -> None:
    code = """if True:
        import sys
        from perdqn.config import ReplayConfig
        capacity, prioritized, _, *others = ReplayConfig.__init__.__defaults__
        ReplayConfig.__init__.__defaults__ = (capacity, prioritized, 3.0, *others)
        del sys.modules["perdqn.config"]
        import perdqn.config
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError" in ran.stderr
    assert "model.replay.alpha must lie in [0, 1], got 3.0" in ran.stderr


def test_a_fault_names_setting_range_value_and_remedy() -> None:
    assert faults_of(replay__alpha=3.0) == [
        "model.replay.alpha must lie in [0, 1], got 3.0; use 0.6 for the paper's setting"
    ]


def test_all_faults_come_together() -> None:
    faults = faults_of(
        replay__alpha=3.0, learner__gamma=-1.0, env__num_envs=0, seed=-1, network=ClassSpec("x")
    )
    keys = [fault.split(" ", 1)[0] for fault in faults]
    assert keys == [
        "model.env.num_envs",
        "model.replay.alpha",
        "model.learner.gamma",
        "model.network.class_path",
        "model.seed",
    ]


@pytest.mark.parametrize("key", RANGES)
def test_a_number_outside_its_range_is_refused(key: str) -> None:
    below = RANGES[key].low if RANGES[key].above else RANGES[key].low - 1
    value = int(below) if "int" in str(HINTS[key]) else float(below)
    [fault] = [f for f in check(with_setting(key, value)).faults if f.startswith(f"model.{key} ")]
    assert str(RANGES[key]) in fault
    assert fault.endswith(RANGES[key].remedy)


@pytest.mark.parametrize("key", [key for key in RANGES if RANGES[key].high < math.inf])
def test_a_number_above_its_range_is_refused(key: str) -> None:
    value = type(getattr(Config(), key, 1.0))(RANGES[key].high + 1)
    assert f"model.{key} must {RANGES[key]}" in check(with_setting(key, value)).faults[0]


@pytest.mark.parametrize("key", [key for key, hint in HINTS.items() if "float" in str(hint)])
@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.5", [1.0]], ids=str)
def test_a_float_setting_takes_finite_numbers_only(key: str, value: Any) -> None:
    [fault] = check(with_setting(key, value)).faults
    assert fault.startswith(f"model.{key} must be a finite number")


@pytest.mark.parametrize("key", [key for key, hint in HINTS.items() if "int" in str(hint)])
@pytest.mark.parametrize("value", [True, 2.0, math.nan, "3"], ids=str)
def test_an_integer_setting_takes_integers_only(key: str, value: Any) -> None:
    [fault] = check(with_setting(key, value)).faults
    assert fault.startswith(f"model.{key} must be an integer")


@pytest.mark.parametrize(
    "key", [key for key, hint in HINTS.items() if hint in (bool, str) or "Literal" in str(hint)]
)
def test_booleans_strings_and_choices_refuse_numbers(key: str) -> None:
    [fault] = check(with_setting(key, 1)).faults
    assert fault.startswith(f"model.{key} must be ")


@pytest.mark.parametrize("key", [key for key, hint in HINTS.items() if "None" not in str(hint)])
def test_null_is_refused_where_it_means_nothing(key: str) -> None:
    [fault] = check(with_setting(key, None)).faults
    assert fault.startswith(f"model.{key} must ")
    assert "got null" in fault


def test_a_whole_float_is_told_how_to_be_written() -> None:
    assert faults_of(total_env_steps=1e5)[0].endswith("got 100000.0; write 100000")


def test_a_misspelt_choice_names_the_nearest() -> None:
    assert faults_of(env__vectorization="asinc")[0].endswith("got 'asinc'; did you mean async?")


def test_a_torso_is_a_short_name_or_an_import_path() -> None:
    assert faults_of(network=ClassSpec("nature_cn"))[0].endswith("did you mean nature_cnn?")
    assert faults_of(head=ClassSpec("c 51.x"))[0].startswith("model.head.class_path must be one of expected")
    assert faults_of(network=ClassSpec("package.module.Net")) == []


def test_wrappers_are_class_specs_with_import_paths() -> None:
    assert faults_of(env__wrappers=["gymnasium.wrappers.TimeLimit"])[0].startswith(
        "model.env.wrappers must be a list"
    )
    fault = faults_of(env__wrappers=[ClassSpec("a.B"), ClassSpec("TimeLimit")])[0]
    assert fault.startswith("model.env.wrappers[1].class_path must be an import path, got 'TimeLimit'")


def test_keyword_arguments_are_named_by_strings() -> None:
    assert faults_of(env__kwargs={1: 2})[0].startswith("model.env.kwargs must be a dict of keyword arguments")


def test_a_section_of_another_type_is_named() -> None:
    assert check(Config(env="CartPole-v1")).faults[0].startswith("model.env must be of EnvConfig")  # type: ignore[arg-type]


CROSS_FAULTS = {
    "warm-up reaches the capacity": (
        {"replay__capacity": 1000},
        "model.learner.warmup_env_steps must be below model.replay.capacity (1000), got 1000",
    ),
    "warm-up reaches the budget": (
        {"total_env_steps": 1000},
        "model.learner.warmup_env_steps must be below model.total_env_steps (1000), got 1000",
    ),
    "no update fits after the warm-up": (
        {"total_env_steps": 1003},
        "model.learner.train_every must leave room for an update in the 3 env steps",
    ),
    "batch above the warm-up": (
        {"learner__batch_size": 1001},
        "model.learner.batch_size must be at most model.learner.warmup_env_steps (1000)",
    ),
    "warm-up too short for one transition in each environment": (
        {"env__num_envs": 300, "learner__n_step": 3},
        "model.learner.warmup_env_steps must give each of 300 environments model.learner.n_step + 1 = 4",
    ),
    "ring too short for a window and its stack": (
        {"env__num_envs": 100, "replay__capacity": 1100, "learner__n_step": 6, "env__frame_stack": 4},
        "model.replay.capacity must hold n_step + frame_stack + 2 = 12 rows for each of 100 environments",
    ),
    "target network never moves": (
        {"learner__target_update_period": 24_751},
        "model.learner.target_update_period must be at most 24750",
    ),
    "beta never arrives": (
        {"replay__beta_env_steps": 100_001},
        "model.replay.beta_env_steps must be at most model.total_env_steps (100000)",
    ),
    "epsilon never arrives": (
        {"exploration__epsilon_env_steps": 100_001},
        "model.exploration.epsilon_env_steps must be at most model.total_env_steps (100000)",
    ),
    "evaluation never happens": (
        {"evaluation__every_env_steps": 100_001},
        "model.evaluation.every_env_steps must be at most model.total_env_steps (100000)",
    ),
    "score to stop at is never measured": (
        {"evaluation__every_env_steps": None, "evaluation__stop_at_return": 475.0},
        "model.evaluation.stop_at_return must be null where evaluations are off, got 475.0",
    ),
    "more environments than steps": (
        {"env__num_envs": 200_000},
        "model.env.num_envs must be at most model.total_env_steps (100000)",
    ),
    "beta falls": (
        {"replay__beta_start": 0.9, "replay__beta_end": 0.5},
        "model.replay.beta_start must be at most model.replay.beta_end (0.5), got 0.9",
    ),
    "clip below eps": (
        {"replay__priority_clip": 1e-6},
        "model.replay.priority_clip must be above model.replay.priority_eps (1e-06)",
    ),
    "two budgets": (
        {"total_episodes": 5},
        "model.total_env_steps (100000) and model.total_episodes (5) are both set",
    ),
    "no budget": (
        {"total_env_steps": None},
        "model.total_env_steps and model.total_episodes are both null",
    ),
}


@pytest.mark.parametrize(("settings", "start"), CROSS_FAULTS.values(), ids=CROSS_FAULTS)
def test_settings_that_cannot_work_together_are_refused(settings: dict[str, Any], start: str) -> None:
    assert any(fault.startswith(start) for fault in faults_of(**settings)), faults_of(**settings)


AT_THE_EDGE = {
    "batch of the warm-up": {"learner__batch_size": 1000},
    "warm-up just below the capacity": {"replay__capacity": 1001},
    "one update": {"total_env_steps": 1004, "learner__target_update_period": 1, "learner__target_tau": 0.5},
    "schedules as long as the budget": {
        "replay__beta_env_steps": 100_000,
        "exploration__epsilon_env_steps": 100_000,
    },
    "one target update": {"learner__target_update_period": 24_750},
    "shortest ring": {"env__num_envs": 250, "replay__capacity": 1250, "learner__n_step": 2},
    "constant beta with a long schedule": {"replay__beta_start": 1.0, "replay__beta_env_steps": 10**9},
    "uniform replay with a long schedule": {"replay__prioritized": False, "replay__beta_env_steps": 10**9},
    "episodes as the budget": {
        "total_env_steps": None,
        "total_episodes": 5,
        "replay__beta_env_steps": 10**9,
        "learner__target_update_period": 10**9,
    },
}


@pytest.mark.parametrize("settings", AT_THE_EDGE.values(), ids=AT_THE_EDGE)
def test_settings_at_the_edge_are_accepted(settings: dict[str, Any]) -> None:
    assert faults_of(**settings) == []


def test_a_default_that_outlasts_a_shortened_budget_is_only_warned_of() -> None:
    warned = {warning.split(" ", 1)[0] for warning in warnings_of(total_env_steps=4000)}
    assert warned == {
        "model.learner.target_update_period",
        "model.replay.beta_env_steps",
        "model.exploration.epsilon_env_steps",
        "model.evaluation.every_env_steps",
    }


def test_a_faulty_setting_is_not_judged_beside_others() -> None:
    faults = faults_of(replay__capacity=-5)
    assert [fault.split(" ", 1)[0] for fault in faults] == ["model.replay.capacity"]


def test_a_setting_reported_elsewhere_is_left_out() -> None:
    config = with_settings(replay__alpha=3.0, replay__capacity=10)
    assert check(config, known_faulty={"replay.alpha", "replay.capacity"}).faults == []


UNWISE = {
    "model.learner.learning_rate": {"learner__learning_rate": 0.1},
    "model.learner.gamma": {"learner__gamma": 1.0},
    "model.learner.train_every": {"learner__train_every": 0.1},
    "model.learner.n_step": {"learner__n_step": 50},
    "model.learner.batch_size": {"learner__batch_size": 5000, "learner__warmup_env_steps": 5000},
    "model.learner.warmup_env_steps": {"learner__warmup_env_steps": 60_000},
    "model.learner.target_update_period": {"learner__target_update_period": 1},
    "model.learner.target_tau": {"learner__target_tau": 0.005},
    "model.replay.prioritized": {"replay__prioritized": False, "replay__beta_start": 0.5},
    "model.replay.alpha": {"replay__alpha": 0.0},
    "model.replay.priority_eps": {"replay__priority_eps": 1.0},
    "model.exploration.epsilon_end": {"exploration__epsilon_start": 0.01},
    "model.evaluation.every_env_steps": {"evaluation__every_env_steps": 50},
    "model.evaluation.episodes": {"evaluation__episodes": 1},
    "model.evaluation.test_episodes": {"evaluation__test_episodes": 1},
    "model.evaluation.num_envs": {"evaluation__num_envs": 101},
    "model.evaluation.epsilon": {"evaluation__epsilon": 0.5},
}


@pytest.mark.parametrize(("key", "settings"), UNWISE.items(), ids=UNWISE)
def test_what_is_legal_but_unwise_is_warned_of(key: str, settings: dict[str, Any]) -> None:
    assert any(warning.startswith(f"{key} ") for warning in warnings_of(**settings)), warnings_of(**settings)


def frames(*shapes: tuple[int, ...]) -> Any:
    return SimpleNamespace(columns=[SimpleNamespace(shape=s, dtype=np.dtype(np.uint8)) for s in shapes])


def test_a_row_is_its_single_frames_and_31_bytes() -> None:
    assert row_bytes(frames((84, 84), (3,))) == 84 * 84 + 3 + 31


def test_a_compressed_image_is_not_counted_beforehand() -> None:
    columns = (Column("image", (84, 84), np.dtype(np.uint8)), Column("place", (3,), np.dtype(np.float32)))
    spec = EnvSpec(columns, True, 2)
    assert row_bytes(spec, "lz4") == 12 + 3 * 4 + 31
    assert row_bytes(spec) == 84 * 84 + 3 * 4 + 31


REFUSED_VALUES = {
    "accumulate_grad_batches": 4,
    "limit_train_batches": 1,
    "overfit_batches": 0.1,
    "val_check_interval": 100,
    "check_val_every_n_epoch": 2,
    "max_epochs": 5,
    "min_epochs": 2,
    "min_steps": 10,
    "reload_dataloaders_every_n_epochs": 1,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "norm",
    "precision": "16-mixed",
    "devices": 2,
    "num_nodes": 2,
    "barebones": True,
    "max_time": "abc",
}


def test_every_refused_trainer_setting_is_tried_here() -> None:
    assert REFUSED_VALUES.keys() == REFUSED.keys()


@pytest.mark.parametrize(("name", "value"), REFUSED_VALUES.items())
def test_a_trainer_setting_that_cannot_work_is_refused_with_a_remedy(name: str, value: Any) -> None:
    [fault] = check(Config(), trainer={name: value}).faults
    assert fault.startswith(f"trainer.{name} must ")
    assert fault.endswith(REFUSED[name].remedy)


@pytest.mark.parametrize("devices", [0, 2, -1, "2", "-1", "0,1", [0, 1]], ids=str)
def test_other_than_one_device_is_refused(devices: Any) -> None:
    assert len(check(Config(), trainer={"devices": devices}).faults) == 1


def test_trainer_settings_that_work_pass() -> None:
    working = {
        "max_steps": 100,
        "max_time": "00:00:10:00",
        "max_epochs": -1,
        "fast_dev_run": True,
        "limit_val_batches": 2,
        "limit_train_batches": 1.0,
        "devices": [0],
        "precision": "bf16-mixed",
        "deterministic": True,
        "log_every_n_steps": 1,
    }
    assert check(Config(), trainer=working).faults == []


def test_no_default_of_the_trainer_is_refused() -> None:
    import inspect

    from lightning.pytorch import Trainer

    defaults = {name: p.default for name, p in inspect.signature(Trainer).parameters.items()}
    assert check(Config(), trainer=defaults).faults == []


def test_from_dict_reads_sections_short_forms_and_dataclasses() -> None:
    config = from_dict(
        {"env": "Acrobot-v1", "network": "mlp", "replay": {"alpha": 1}, "learner": LearnerConfig()}
    )
    assert (config.env.id, config.network, config.replay.alpha) == ("Acrobot-v1", ClassSpec("mlp"), 1.0)


def test_from_dict_leaves_the_callers_objects_alone() -> None:
    env = EnvConfig(kwargs={"a": 1}, wrappers=[ClassSpec("a.B")])
    made = from_dict({"env": env}).env
    made.kwargs["a"], made.wrappers[0].class_path = 2, "c.D"
    assert env == EnvConfig(kwargs={"a": 1}, wrappers=[ClassSpec("a.B")])


def test_from_dict_reports_names_types_values_and_combinations_together() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(
            {"replay": {"alhpa": 0.5, "capacity": 1000}, "learner": {"gamma": "x"}, "headd": "expected"}
        )
    assert caught.value.faults == [
        "model.headd is not a setting; did you mean model.head?",
        "model.replay.alhpa is not a setting; did you mean model.replay.alpha?",
        "model.learner.gamma must be a finite number, got 'x'; use 0.99",
        "model.learner.warmup_env_steps must be below model.replay.capacity (1000), got 1000; "
        "use at most 999, or a larger replay",
    ]
    assert str(caught.value).startswith("4 faults in the settings\n  - model.headd")


def test_coerce_turns_numpy_numbers_into_plain_ones() -> None:
    made = coerce(ReplayConfig, {"capacity": np.int64(5000), "alpha": np.float32(0.5)})
    assert (type(made.capacity), type(made.alpha)) == (int, float)


def test_coerce_reads_wrappers_given_as_strings_and_dicts() -> None:
    made = coerce(EnvConfig, {"wrappers": ("a.B", {"class_path": "c.D", "init_args": {"x": 1}})})
    assert made.wrappers == [ClassSpec("a.B"), ClassSpec("c.D", {"x": 1})]


@pytest.mark.parametrize(
    ("cls", "value", "fault"),
    [
        (EnvConfig, 3, "model.env must be a dict of its settings, a string or an object of EnvConfig, got 3"),
        (
            ReplayConfig,
            "x",
            "model.replay must be a dict of its settings or an object of ReplayConfig, got 'x'",
        ),
        (ClassSpec, {"init_args": {}}, "ClassSpec must name a class_path, got {'init_args': {}}"),
        (EnvConfig, {"wrappers": [{"clas": 1}]}, "model.env.wrappers[0].clas is not a setting"),
    ],
    ids=str,
)
def test_coerce_refuses_what_it_cannot_read(cls: type, value: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        coerce(cls, value)
    assert caught.value.faults[0].startswith(fault)


def test_summary_of_the_defaults_names_the_learning_rate() -> None:
    summary = get_config_summary()
    assert summary["training"]["learning_rate"] == 0.0001
    assert summary["training"]["total_env_steps"] == 100_000
    assert summary.keys() == {
        "training", "replay", "exploration", "network", "environment", "evaluation", "derived"
    }  # fmt: skip


def test_summary_derives_what_follows_from_the_settings() -> None:
    derived = get_config_summary(with_settings(env__num_envs=4))["derived"]
    assert derived == {
        "updates": 24_750,
        "target_updates": 24,
        "evaluations": 10,
        "samples_drawn": 792_000,
        "replay_ratio": 8.0,
        "updates_per_env_step": 0.25,
        "rows_per_env": 25_000,
    }


def test_summary_leaves_open_what_a_budget_in_episodes_leaves_open() -> None:
    derived = get_config_summary(with_settings(total_env_steps=None, total_episodes=5))["derived"]
    assert (derived["updates"], derived["target_updates"], derived["evaluations"]) == (None, None, None)


def test_summary_is_a_copy_of_every_setting() -> None:
    config = Config()
    get_config_summary(config)["environment"]["kwargs"]["x"] = 1
    assert config == Config()
    named = {name for section in get_config_summary().values() for name in section}
    assert {key.rpartition(".")[2] for key in HINTS} - {"network", "head"} <= named


def test_summary_as_text_has_a_line_per_setting() -> None:
    text = format_config_summary(get_config_summary(with_settings(network=ClassSpec("mlp", {"sizes": [64]}))))
    assert "\nreplay\n  capacity               100000\n" in text
    assert "  torso.init_args.sizes  [64]\n" in text
    assert "  stop_at_return     null\n" in text
