"""Every fault of a command line and its files, in one list."""

from __future__ import annotations

import functools
import shlex
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

import pytest
from lightning.pytorch import Trainer

from perdqn.arguments import ArgumentParser
from perdqn.faults import collect
from perdqn.module import PERDQN

WriteYaml = Callable[[str, str], str]


@functools.cache
def fit_parser() -> ArgumentParser:
    parser = ArgumentParser(allow_abbrev=False, default_env=True, env_prefix="PERDQN")
    parser.add_argument("-c", "--config", action="config")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(PERDQN, "model")
    return parser


def faults_of(command_line: str) -> list[str]:
    return collect(fit_parser(), shlex.split(command_line))


@pytest.fixture
def yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteYaml:
    """Writes a file into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    return write


SOUND = [
    "",
    "--model.env.id=Acrobot-v1 --model.env.kwargs.render_mode=null",
    "--model.replay.alpha 0.5 --model.exploration.epsilon_start 1e-1 --model.exploration.epsilon_end=.05",
    "--model.env.wrappers+=gymnasium.wrappers.FlattenObservation",
    "--model.network.class_path=mlp --model.network.init_args.hidden_sizes=[64]",
    "--model.network '{class_path: mlp}'",
    "--trainer.logger=CSVLogger --trainer.logger.save_dir=x",
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=train/loss",
    "--trainer.max_steps=-1 --trainer.fast_dev_run=true",
    "--print_config",
]


@pytest.mark.parametrize("command_line", SOUND)
def test_a_sound_command_line_has_no_faults(command_line: str) -> None:
    assert faults_of(command_line) == []


ONE_FAULT = [
    (
        "--model.replay.alhpa=1",
        "model.replay.alhpa is not a setting; did you mean model.replay.alpha?",
    ),
    (
        "--alpha 0.5",
        "alpha is not a setting; did you mean model.replay.alpha?",
    ),
    (
        "--model.alpha=0.5",
        "model.alpha is not a setting; did you mean model.replay.alpha?",
    ),
    (
        "--trainer.max_step 5",
        "trainer.max_step is not a setting; did you mean trainer.max_steps?",
    ),
    (
        "--modle.seed=5",
        "modle.seed is not a setting; did you mean model.seed?",
    ),
    (
        "--xyzzy",
        "xyzzy is not a setting",
    ),
    (
        "--model.replay.alpha.x=1",
        "model.replay.alpha.x is not a setting",
    ),
    (
        "--model.replay.alpha=x",
        "model.replay.alpha must be a finite number, got 'x'; use 0.6 for the paper's setting",
    ),
    (
        "--model.replay.alpha=3",
        "model.replay.alpha must lie in [0, 1], got 3.0; use 0.6 for the paper's setting",
    ),
    (
        "--model.replay.prioritized=maybe",
        "model.replay.prioritized must be true or false, got 'maybe'",
    ),
    (
        "--model.total_env_steps=1e5",
        "model.total_env_steps must be an integer, or null, got 100000.0; write 100000",
    ),
    (
        "--model.env.vectorization=asyn",
        "model.env.vectorization must be one of auto, sync, async, native, got 'asyn'; did you mean async?",
    ),
    (
        "--model.env.wrappers=[3]",
        "model.env.wrappers must be a list of class paths, got [3]",
    ),
    (
        "--model.env.kwargs=3",
        "model.env.kwargs must be a dict of keyword arguments, got 3",
    ),
    (
        "--model.env=Acrobot-v1",
        "model.env must hold settings by name, got 'Acrobot-v1'; write model.env.id: 'Acrobot-v1'",
    ),
    (
        "--model.network=mlp",
        "model.network must hold settings by name, got 'mlp'; write model.network.class_path: 'mlp'",
    ),
    (
        "--model.network.class_path=nature_cn",
        "model.network.class_path must be one of auto, mlp, nature_cnn, minatar_cnn or an import "
        "path, got 'nature_cn'; did you mean nature_cnn?",
    ),
    (
        "--model.env.id",
        "--model.env.id needs a value",
    ),
    (
        "--model.env.id --model.seed=1",
        "--model.env.id needs a value",
    ),
    (
        "stray",
        "stray is not an option; settings are given as --name=value or --name value",
    ),
    (
        "--config absent.yaml",
        "--config absent.yaml cannot be read: No such file or directory",
    ),
    (
        "--trainer.max_steps=abc",
        "trainer.max_steps must be an integer, got 'abc'",
    ),
    (
        "--trainer.logger=Foo",
        "trainer.logger must be Logger or a list of Logger or true or false or null, got 'Foo'",
    ),
    (
        "--trainer.logger=CSVLogger --trainer.logger.save_dirr=x",
        "trainer.logger: lightning.pytorch.loggers.CSVLogger takes no argument save_dirr; did you "
        "mean save_dir?",
    ),
    (
        "--trainer.max_epochs=5",
        "trainer.max_epochs must be null, -1 or 1, got 5; the run is one epoch, ended by its own "
        "budget: use model.total_env_steps or trainer.max_steps",
    ),
    (
        "--trainer.gradient_clip_val=1",
        "trainer.gradient_clip_val must stay unset, got 1; updates clip their own gradients: use "
        "model.learner.max_grad_norm",
    ),
    (
        "--trainer.accumulate_grad_batches=x",
        "trainer.accumulate_grad_batches must stay 1, got 'x'; batches are drawn anew with the newest"
        " priorities: use model.learner.batch_size",
    ),
    (
        "--model.replay.capacity=1000",
        "model.learner.warmup_env_steps must be below model.replay.capacity (1000), got 1000; use at "
        "most 999, or a larger replay",
    ),
]


@pytest.mark.parametrize(("command_line", "fault"), ONE_FAULT, ids=[line for line, _ in ONE_FAULT])
def test_a_fault_is_told_in_the_users_words(command_line: str, fault: str) -> None:
    assert faults_of(command_line) == [fault]


def test_faults_of_all_kinds_come_together(yaml_file: WriteYaml) -> None:
    name = yaml_file(
        "own.yaml",
        """
        trainer: {max_step: 5, accumulate_grad_batches: 4}
        model:
          env: {num_env: 3}
          replay: {alpha: 3.0, capacity: many}
          network: mlp
        """,
    )
    keys = [
        fault.split(" ", 1)[0]
        for fault in faults_of(f"--config {name} --model.learner.batch_size=1.5 --lr=3")
    ]
    assert sorted(keys) == [
        "lr",
        "model.env.num_env",
        "model.learner.batch_size",
        "model.network",
        "model.replay.alpha",
        "model.replay.capacity",
        "trainer.accumulate_grad_batches",
        "trainer.max_step",
    ]


def test_a_fault_in_a_file_names_the_file(yaml_file: WriteYaml) -> None:
    name = yaml_file("own.yaml", "model: {replay: {alpha: 3.0, alhpa: 1}, learner: {gamma: x}, env: 3}")
    faults = faults_of(f"--config {name}")
    assert len(faults) == 4
    assert all(fault.endswith(" (in own.yaml)") for fault in faults)


def test_the_command_line_wins_over_a_file(yaml_file: WriteYaml) -> None:
    name = yaml_file("own.yaml", "model: {replay: {alpha: 3.0}}")
    assert faults_of(f"--config {name} --model.replay.alpha=0.5") == []
    assert len(faults_of(f"--model.replay.alpha=0.5 --config={name}")) == 1


def test_files_merge_in_order(yaml_file: WriteYaml) -> None:
    first = yaml_file(
        "first.yaml", "model: {replay: {alpha: 3.0, capacity: 50000}, network: {class_path: mlp}}"
    )
    second = yaml_file(
        "second.yaml", "model: {replay: {alpha: 0.5}, network: {init_args: {hidden_sizes: [8]}}}"
    )
    assert faults_of(f"-c {first} --config {second}") == []
    assert faults_of(f"--config {second} --config {first}")[0].endswith("(in first.yaml)")


def test_a_section_may_stand_in_a_file_of_its_own(yaml_file: WriteYaml) -> None:
    name = yaml_file("replay.yaml", "alpha: 3.0\nalhpa: 1")
    assert faults_of(f"--model.replay {name}") == [
        "model.replay.alhpa is not a setting; did you mean model.replay.alpha? (in replay.yaml)",
        "model.replay.alpha must lie in [0, 1], got 3.0; use 0.6 for the paper's setting (in replay.yaml)",
    ]


@pytest.mark.parametrize("text", ["", "model:\n  replay:\n"])
def test_an_empty_file_or_section_is_no_fault(yaml_file: WriteYaml, text: str) -> None:
    assert faults_of(f"--config {yaml_file('own.yaml', text)}") == []


def test_a_file_that_is_no_yaml_is_named(yaml_file: WriteYaml) -> None:
    [fault] = faults_of(f"--config {yaml_file('own.yaml', 'model: [')}")
    assert fault.startswith("--config own.yaml is not YAML: ")
    assert "\n" not in fault


def test_a_file_without_names_is_named(yaml_file: WriteYaml) -> None:
    [fault] = faults_of(f"--config {yaml_file('own.yaml', '- 1')}")
    assert fault == "a config must hold settings by name, got [1] (in own.yaml)"


def test_floats_in_a_file_may_be_written_as_on_the_command_line(yaml_file: WriteYaml) -> None:
    assert faults_of(f"--config {yaml_file('own.yaml', 'model: {learner: {learning_rate: 1e-4}}')}") == []


def test_environment_variables_are_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDQN_MODEL__REPLAY__ALPHA", "3.0")
    monkeypatch.setenv("PERDQN_MODEL__LEARNER__GAMMA", "x")
    faults = faults_of("--model.seed=-1 --trainer.max_steps=5")
    assert [fault.rpartition(" (in ")[2] for fault in faults if "(in " in fault] == [
        "PERDQN_MODEL__LEARNER__GAMMA)",
        "PERDQN_MODEL__REPLAY__ALPHA)",
    ]
    assert len(faults) == 3


def test_an_environment_variable_yields_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDQN_MODEL__REPLAY__ALPHA", "3.0")
    assert faults_of("--model.replay.alpha=0.5") == []


def test_no_rule_reads_a_setting_that_is_faulty_itself() -> None:
    faults = faults_of("--model.replay.capacity=x --model.learner.batch_size=999")
    assert [fault.split(" ", 1)[0] for fault in faults] == ["model.replay.capacity"]
    faults = faults_of("--model.network.init_args=3 --model.network.class_path=nature_cn")
    assert [fault.split(" ", 1)[0] for fault in faults] == ["model.network.init_args"]


def test_the_parser_is_left_as_it_was() -> None:
    parser = fit_parser()
    before = parser.exit_on_error, parser.default_env
    collect(parser, ["--model.replay.alpha=x"])
    assert (parser.exit_on_error, parser.default_env) == before


class FloatFirst:
    """As Lightning's Trainer may look where ``Optional[Union[float, int]]`` was seen shortly before."""


def _init(self: FloatFirst, limit: Any = None) -> None: ...


def test_whole_numbers_stay_whole_whatever_order_a_union_was_cached_in() -> None:
    for clear in typing._cleanups:  # type: ignore[attr-defined]
        clear()
    _init.__annotations__ = {"limit": Optional[Union[float, int]]}  # noqa: UP007, UP045
    FloatFirst.__init__ = _init  # type: ignore[method-assign, assignment]
    parser = ArgumentParser()
    parser.add_class_arguments(FloatFirst, "trainer")
    assert isinstance(parser.parse_args(["--trainer.limit=1"]).trainer.limit, int)
    assert isinstance(parser.parse_args(["--trainer.limit=1.0"]).trainer.limit, float)
