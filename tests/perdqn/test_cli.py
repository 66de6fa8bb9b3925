"""The command line, run in this process on budgets of a few hundred steps."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from perdqn import shipped
from perdqn.__main__ import COMMANDS, main
from perdqn.evaluation import EpisodeStatistics
from perdqn.module import PERDQN

TINY = {
    "model.total_env_steps": 400,
    "model.env.id": "CartPole-v1",
    "model.replay.capacity": 1000,
    "model.replay.beta_env_steps": 400,
    "model.learner.warmup_env_steps": 100,
    "model.learner.target_update_period": 20,
    "model.exploration.epsilon_env_steps": 200,
    "model.evaluation.every_env_steps": 200,
    "model.evaluation.episodes": 2,
    "model.evaluation.test_episodes": 3,
    "model.evaluation.num_envs": 2,
    "model.evaluation.max_episode_steps": 50,
    "model.network.class_path": "mlp",
    "model.network.init_args.hidden_sizes": "[16]",
}


HEAVY = {"torch", "lightning", "numba", "gymnasium", "numpy", "jsonargparse"}


def fit(root: Path, **changes: Any) -> int:
    """Exit code of a tiny run; ``trainer__max_steps=3`` stands for ``--trainer.max_steps 3``."""
    return main(["fit", *options(root, **changes)])


def options(root: Path, **changes: Any) -> list[str]:
    settings = {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}
    settings["trainer.default_root_dir"] = root
    return [f"--{name}={value}" for name, value in settings.items()]


def refusal(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    """What a command says that is refused in one line."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def files_of(root: Path) -> dict[Path, int]:
    """When each file changed; the lock says who looked last, and is no part of a run."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"}


def summary_of(root: Path, version: int = 0) -> dict[str, Any]:
    return json.loads((root / "lightning_logs" / f"version_{version}" / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder nobody may change."""
    root = tmp_path_factory.mktemp("finished")
    assert fit(root) == 0
    return root / "lightning_logs" / "version_0"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, moved to another folder."""
    return Path(shutil.copytree(finished, tmp_path / "lightning_logs" / "version_0"))


# -- the outer commands


def loaded_by(*words: Any) -> set[str]:
    """Those of the heavy packages that a process has imported when its command is over."""
    script = "import sys; from perdqn.__main__ import main; main(sys.argv[1:]); "
    script += f"print(*{HEAVY!r} & sys.modules.keys())"
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "verify --help",
        "fingerprint --help",
        "export --help",
        "completion --help",
        "export",  # refused: it needs --to
        "fti",
        "fit --config cartpol",
    ],
)
def test_what_reads_no_settings_answers_without_a_heavy_import(words: str) -> None:
    assert loaded_by(*words.split()) == set()


@pytest.mark.parametrize("options", [[], ["--json"], ["--repair"]])
def test_a_run_is_verified_without_a_heavy_import(run: Path, options: list[str]) -> None:
    assert loaded_by("verify", run, *options) == set()


def test_written_fingerprints_are_compared_without_lightning(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    assert main(["fingerprint", str(finished), "--out", str(path)]) == 0
    assert loaded_by("fingerprint", path, path).isdisjoint({"lightning", "numba", "gymnasium"})


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt"]) == 2
    assert "did you mean fit?" in capsys.readouterr().err


def test_windows_is_refused_in_so_many_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["fit"]) == 2
    assert "WSL" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "resume", "validate", "test", "check"])
def test_help_lists_the_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--model.replay.alpha" in shown
    assert "--trainer.max_steps" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_settings(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "validate" in script
    assert "model.replay.alpha" in script
    assert "repair" in script  # of verify, whose parser is another kind


def test_completion_refuses_a_shell_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "bash, zsh, tcsh" in capsys.readouterr().err


def test_installed_script_imports_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from gymnasium.envs.classic_control import CartPoleEnv\nclass Env(CartPoleEnv): pass\n"
    )
    elsewhere = [entry for entry in sys.path if entry not in ("", ".")]
    script = f"import sys; sys.path[:] = {elsewhere!r}; from perdqn.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-I", "-c", script, "check", *options(tmp_path, model__env__id="mine.Env")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# -- settings


@pytest.mark.parametrize("name", shipped.get_names())
def test_shipped_config_is_free_of_faults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    capacity = ["--model.replay.capacity=50000"]  # the checks must not depend on this machine's memory
    assert main(["check", "--config", name, *capacity]) == 0
    said = capsys.readouterr()
    assert "no faults" in said.out
    assert "warning" not in said.err


@pytest.mark.parametrize("name", shipped.get_names())
def test_shipped_config_starts(name: str, tmp_path: Path) -> None:
    few = {
        "trainer.fast_dev_run": 1,
        "trainer.default_root_dir": tmp_path,
        "model.replay.capacity": 50000,
        "model.evaluation.max_episode_steps": 5,
    }
    assert main(["fit", "--config", name, *(f"--{key}={value}" for key, value in few.items())]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", shipped.get_names())
def test_shipped_config_states_hardware_duration_and_score(name: str) -> None:
    header = (shipped.find_folder() / f"{name}.yaml").read_text().split("model:")[0]
    assert all(f"# {word} " in header for word in ("hardware", "duration", "score"))


def test_unknown_config_is_refused_with_the_shipped_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "cartpoel"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "did you mean cartpole?" in said
    assert "minatar" in said


def test_file_of_that_name_comes_before_a_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cartpole").write_text("model: {seed: 7}")
    assert shipped.find_config("cartpole") == "cartpole"
    assert shipped.expand(["--config=acrobot", "-c", "minatar", "minatar"])[3] == "minatar"


def test_configs_merge_in_order_and_options_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"seed": 9, "replay": {"capacity": 60000}}}))
    asked = ["--config", "cartpole", "--config", str(overlay), "--model.seed=3", "--print_config"]
    assert main(["fit", *asked]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["seed"] == 3
    assert printed["model"]["replay"]["capacity"] == 60000
    assert printed["model"]["learner"]["n_step"] == 3  # from cartpole


def test_environment_variables_are_read_and_options_win(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERDQN_CONFIG", "cartpole")
    monkeypatch.setenv("PERDQN_MODEL__SEED", "5")
    monkeypatch.setenv("PERDQN_MODEL__REPLAY__ALPHA", "0.5")
    assert main(["fit", "--model.replay.alpha=0.4", "--print_config"]) == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert (model["seed"], model["replay"]["alpha"], model["learner"]["batch_size"]) == (5, 0.4, 64)


def test_every_fault_is_listed_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "model__replay__alhpa": 0.5,
        "model__learner__batch_size": "many",
        "model__replay__beta_start": 3.0,
        "trainer__max_step": 5,
        "trainer__gradient_clip_val": 1.0,
    }
    assert fit(tmp_path, **wrong) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for words in (
        "did you mean model.replay.alpha?",
        "model.learner.batch_size must be an integer",
        "model.replay.beta_start must lie in [0, 1], got 3.0",
        "did you mean trainer.max_steps?",
        "model.learner.max_grad_norm",
    ):
        assert words in said
    assert not list(tmp_path.iterdir())


def test_value_faults_are_listed_with_an_environment_that_does_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, model__env__id="CartPool-v1", model__replay__alpha=3) == 2
    said = capsys.readouterr().err
    assert "model.replay.alpha must lie in [0, 1]" in said
    assert "CartPool" in said
    assert not list(tmp_path.iterdir())


def test_wrong_argument_of_a_network_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, model__network__init_args="{hiden_sizes: [8]}") == 2
    assert "did you mean hidden_sizes?" in capsys.readouterr().err


def test_too_little_memory_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, model__replay__capacity=10**12) == 2
    assert "GiB are available" in capsys.readouterr().err


def test_missing_extra_is_one_line_naming_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdqn.acting import environment

    monkeypatch.setattr(environment, "_EXTRAS", {"ALE/": ("no_such_package", "atari")})
    assert fit(tmp_path, model__env__id="ALE/Pong-v5") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "perdqn[atari]" in said


def test_check_reports_memory_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *options(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "replay" in said
    assert "learning_rate" in said
    assert not list(tmp_path.iterdir())


def test_trainer_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, trainer__accelerator="abacus") == 2
    assert "abacus" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_environment_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "fit", *options(tmp_path, model__env__kwargs='{"foo": 1}'))
    assert "model.env.kwargs {'foo': 1}: TypeError" in said
    assert not list(tmp_path.iterdir())


def test_root_that_cannot_hold_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    said = refusal(capsys, "fit", *options(tmp_path / "file"))
    assert f"trainer.default_root_dir {tmp_path / 'file'} cannot hold a run: Not a directory" in said


def test_warning_is_one_line_and_advice_is_given_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdqn.module import PERDQN

    def complain(_: Any) -> None:
        warnings.warn("beware\n of this", stacklevel=2)

    monkeypatch.setattr(PERDQN, "on_train_end", complain, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        unwise = {"model__learner__warmup_env_steps": 300, "trainer__enable_progress_bar": "false"}
        assert fit(tmp_path, **unwise) == 0
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") for line in said)
    assert "warning: beware of this" in said
    assert sum("without learning" in line for line in said) == 1


# -- a run and its folder


def test_run_leaves_what_the_readme_says(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    expected = {"config.yaml", "config_summary.txt", "summary.json"}
    assert expected | {"checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".part") for name in names)


def test_summary_holds_the_figures(finished: Path) -> None:
    figures = json.loads((finished / "summary.json").read_text())
    assert figures["status"] == "completed"
    assert figures["env_steps"] == 400
    assert figures["updates"] == 75
    assert figures["episodes"] > 0
    assert figures["seconds"] > 0
    assert figures["final_evaluation_low"] <= figures["final_evaluation_mean"]
    assert figures["final_evaluation_mean"] <= figures["final_evaluation_high"]
    assert figures["best_evaluation_mean"] > 0
    assert figures["command"].startswith("perdqn fit --model.total_env_steps=400")


def test_written_config_repeats_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(finished / "config.yaml"), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for of_one_command in ("ckpt_path", "preflight"):
        printed.pop(of_one_command)
    assert printed == yaml.safe_load((finished / "config.yaml").read_text())
    assert "learning_rate" in (finished / "config_summary.txt").read_text()


def test_table_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path) == 0
    said = capsys.readouterr()
    for words in ("final evaluation", "95 % interval", "tensorboard --logdir", "perdqn resume"):
        assert words in said.out
    assert said.err == ""


def test_target_score_ends_the_run(tmp_path: Path) -> None:
    assert fit(tmp_path, model__evaluation__stop_at_return=1) == 0
    figures = summary_of(tmp_path)
    assert figures["status"] == "stopped at target"
    assert figures["env_steps"] == 200


def test_runs_started_together_have_folders_of_their_own(tmp_path: Path) -> None:
    from perdqn.run.folder import claim_run

    assert claim_run(tmp_path).path != claim_run(tmp_path).path


def test_failing_run_says_so_in_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdqn.module import PERDQN

    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(PERDQN, "training_step", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tmp_path)
    figures = summary_of(tmp_path)
    assert figures["status"] == "failed"
    assert "broken on purpose" in figures["stop_reason"]


def test_interrupt_saves_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    from perdqn.module import PERDQN

    update = PERDQN._update

    def interrupt(self: PERDQN, batch: Any) -> None:
        update(self, batch)
        if self.update_steps == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(PERDQN, "_update", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert fit(tmp_path) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "perdqn resume" in capsys.readouterr().out
    stopped = summary_of(tmp_path)
    assert (stopped["status"], stopped["stop_reason"]) == ("interrupted", "SIGINT")
    monkeypatch.setattr(PERDQN, "_update", update)
    assert main(["resume", f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert summary_of(tmp_path)["env_steps"] == 400
    assert summary_of(tmp_path)["seconds"] > stopped["seconds"]


def test_signal_during_the_last_save_leaves_the_final_evaluation_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from perdqn.module import PERDQN

    with monkeypatch.context() as patch:
        patch.setattr(PERDQN, "on_train_end", lambda _: signal.raise_signal(signal.SIGTERM), raising=False)
        assert fit(tmp_path) == 128 + signal.SIGTERM
    stopped = summary_of(tmp_path)
    assert (stopped["status"], stopped["stop_reason"], stopped["env_steps"]) == (
        "interrupted",
        "SIGTERM",
        400,
    )
    assert main(["resume", f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert summary_of(tmp_path)["final_evaluation_mean"] is not None


# -- going on


@pytest.mark.parametrize("change", ["--model.env.num_envs=2", "--model.replay.capacity=300"])
def test_resume_refuses_to_reshape_a_run(run: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "summary.json").read_text()
    assert main(["resume", str(run), "--model.total_env_steps=600", change]) == 2
    assert "keeps the shape" in capsys.readouterr().err
    assert (run / "summary.json").read_text() == before


def test_resume_allows_what_leaves_the_shape_alone(run: Path) -> None:
    more = ["--model.total_env_steps=410", "--model.env.max_restarts", "100"]
    assert main(["resume", *more, str(run)]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["env"]["max_restarts"] == 100


def test_new_run_keeps_the_shape_of_the_checkpoint_it_starts_from(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"ckpt_path": finished / "checkpoints" / "last.ckpt", "model__env__num_envs": 3}
    assert "model.env.num_envs: 1 -> 3" in refusal(capsys, "fit", *options(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["fit", "resume"])
def test_weights_alone_are_not_trained_on(
    run: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(tmp_path)
    best = run / "checkpoints" / "best.ckpt"
    asked = [best] if command == "resume" else options(tmp_path, ckpt_path=best)
    said = refusal(capsys, command, *asked)
    assert "last.ckpt" in said
    assert "PERDQN.load_from_checkpoint" in said
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "neither a run folder nor a checkpoint"),
        (b"", "it is damaged or something else"),
        (b"PK\x03\x04 cut short", "cannot be read as a checkpoint"),
        (
            {"state_dict": {}},
            "no checkpoint of perdqn: it has no hyper_parameters, pytorch-lightning_version",
        ),
    ],
)
def test_damaged_and_foreign_checkpoints_are_refused_by_name(
    run: Path, tmp_path: Path, content: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    shutil.rmtree(last.parent)  # and with it all generations, as in a run of an earlier version
    last.parent.mkdir()
    if isinstance(content, bytes):
        last.write_bytes(content)
    elif content is not None:
        torch.save(content, last)
    before = files_of(tmp_path)
    commands = {"fit": options(tmp_path, ckpt_path=last)}
    if last.is_file():
        commands |= {"resume": [run], "test": [last], "export": [last, "--to", tmp_path / "policy.pt2"]}
    for command, asked in commands.items():
        said = refusal(capsys, command, *asked)
        assert f"{last}" in said
        assert reason in said
    assert files_of(tmp_path) == before


def test_failure_before_training_leaves_a_run_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdqn.module import PERDQN

    def fail(*_: Any) -> None:
        raise RuntimeError("cannot restore")

    before = (run / "summary.json").read_text()
    monkeypatch.setattr(PERDQN, "on_load_checkpoint", fail)
    with pytest.raises(RuntimeError, match="cannot restore"):
        main(["resume", str(run), "--model.total_env_steps=600"])
    assert (run / "summary.json").read_text() == before


def test_refused_resume_leaves_a_csv_log_where_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.csv").write_text("step\n")
    logger = json.dumps({"class_path": "CSVLogger", "init_args": {"save_dir": "."}})
    assert "has finished" in refusal(capsys, "resume", run, "--trainer.logger", logger)
    assert (run / "metrics.csv").is_file()


def test_a_run_says_whether_its_episodes_can_be_restored(run: Path) -> None:
    assert json.loads((run / "summary.json").read_text())["exactness"] == "bit-exact"


def test_resume_extends_a_run_in_its_folder_and_lists_changes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run / "summary.json").read_text())
    changed = ["--model.total_env_steps=600", "--model.learner.learning_rate=0.0002"]
    assert main(["resume", str(run), *changed]) == 0
    said = capsys.readouterr().out
    assert "model.learner.learning_rate: 0.0001 -> 0.0002" in said
    assert "model.total_env_steps: 400 -> 600" in said
    after = json.loads((run / "summary.json").read_text())
    assert (after["env_steps"], after["updates"]) == (600, 125)
    assert after["seconds"] > before["seconds"]
    assert after["best_evaluation_mean"] >= before["best_evaluation_mean"]
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["total_env_steps"] == 600
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


def test_worse_agent_does_not_replace_the_best_after_a_resume_of_a_moved_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = (run / "checkpoints" / "best.ckpt").read_bytes()
    compute = EpisodeStatistics.compute
    monkeypatch.setattr(EpisodeStatistics, "compute", lambda self: {**compute(self), "mean": -1e6})
    assert main(["resume", str(run), "--model.total_env_steps=600"]) == 0
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == best


def test_resumed_csv_log_goes_on_without_doubles(tmp_path: Path) -> None:
    arguments = {"save_dir": str(tmp_path / "elsewhere")}
    logger = json.dumps({"class_path": "CSVLogger", "init_args": arguments})
    assert fit(tmp_path, trainer__logger=logger, trainer__log_every_n_steps=5) == 0
    log = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    before = losses_in(log)
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["resume", root, "--model.total_env_steps=600"]) == 0
    after = losses_in(log)
    assert len(after) > len(before) > 0
    assert after[: len(before)] == before
    assert len({step for step, _ in after}) == len(after)


def losses_in(log: Path) -> list[tuple[str, str]]:
    with log.open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_run_at_its_target_is_not_resumed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, model__evaluation__stop_at_return=1) == 0
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["resume", root]) == 2
    assert "stop_at_return" in capsys.readouterr().err
    assert main(["resume", root, "--model.evaluation.stop_at_return=null"]) == 0
    assert summary_of(tmp_path)["env_steps"] == 400


def test_interrupted_final_evaluation_is_made_up_for_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdqn.module import PERDQN

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PERDQN, "test_step", interrupt)
        assert fit(tmp_path) == 130
    assert summary_of(tmp_path)["status"] == "interrupted"
    assert main(["resume", f"--trainer.default_root_dir={tmp_path}"]) == 0
    figures = summary_of(tmp_path)
    assert (figures["status"], figures["env_steps"]) == ("completed", 400)
    assert figures["final_evaluation_mean"] is not None


def test_new_run_starts_from_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "last.ckpt"
    assert fit(tmp_path, ckpt_path=checkpoint, model__total_env_steps=500) == 0
    assert summary_of(tmp_path)["env_steps"] == 500


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nowhere", "neither a run folder nor a checkpoint"),
        ("empty", "no run folder"),
    ],
)
def test_resume_refuses_with_the_reason(
    tmp_path: Path, reference: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["resume", str(tmp_path / reference)]) == 2
    assert reason in capsys.readouterr().err


def test_run_killed_before_its_first_save_begins_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = summary_of(run.parent.parent)
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    assert main(["resume", str(run)]) == 0
    assert "begins anew" in capsys.readouterr().out
    after = summary_of(run.parent.parent)
    assert after["final_evaluation_mean"] == before["final_evaluation_mean"]
    assert after["exactness"] == before["exactness"] == "bit-exact"


def test_run_killed_between_the_two_names_of_its_first_save_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PERDQN, "training_step", lambda self, dataloader_iter: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path)
    run = tmp_path / "lightning_logs" / "version_0"
    for path in (run / "checkpoints").iterdir():
        if path.name not in ("parts", "regular-000001.ckpt", "regular-000001.json"):
            path.unlink()
    manifest = run / "checkpoints" / "regular-000001.json"
    manifest.rename(manifest.with_name(f".{manifest.name}.{2**30}.part"))  # of a process that is no more
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "resuming" in said
    assert "begins anew" not in said


def test_run_killed_after_its_first_boundary_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PERDQN, "training_step", lambda self, dataloader_iter: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path)
    assert summary_of(tmp_path)["exactness"] == "bit-exact"
    assert main(["resume", str(tmp_path / "lightning_logs" / "version_0")]) == 0
    assert "0 env steps, 0 updates" in capsys.readouterr().out
    assert summary_of(tmp_path)["status"] == "completed"


def test_finished_run_is_not_resumed_without_more_to_do(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(run)]) == 2
    assert "--model.total_env_steps 800" in capsys.readouterr().err


def test_newest_run_is_the_one_changed_last(tmp_path: Path) -> None:
    import os

    from perdqn.run.folder import RunNotFound, newest_run

    with pytest.raises(RunNotFound):
        newest_run(tmp_path)
    for version, changed_at in ((2, 300), (10, 200)):
        config = tmp_path / "lightning_logs" / f"version_{version}" / "config.yaml"
        config.parent.mkdir(parents=True)
        config.touch()
        os.utime(config, (changed_at, changed_at))
    assert newest_run(tmp_path).path.name == "version_2"


# -- reading a run


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_prints_statistics_and_leaves_the_run_alone(
    finished: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    out, video = tmp_path / "figures.json", tmp_path / "episode.gif"
    asked = [str(finished), "--best", f"--out={out}"]
    if command == "test" and find_spec("pygame"):
        asked.append(f"--video={video}")
    assert main([command, *asked]) == 0
    said = capsys.readouterr().out
    assert "95 % interval" in said
    assert "IQM" in said
    figures = json.loads(out.read_text())
    assert figures["low"] <= figures["mean"] <= figures["high"]
    assert figures["episodes"] == (2 if command == "validate" else 3)
    assert video.exists() == ("video" in figures)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_final_evaluation_is_repeated_by_test(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert main(["test", str(finished), f"--out={out}"]) == 0
    expected = json.loads((finished / "summary.json").read_text())["final_evaluation_mean"]
    assert json.loads(out.read_text())["mean"] == expected


def test_checkpoint_without_its_run_brings_its_own_settings(finished: Path, tmp_path: Path) -> None:
    lone = Path(shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "agent.ckpt"))
    assert main(["test", str(lone), f"--out={tmp_path / 'figures.json'}"]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["episodes"] == 3


def test_evaluation_says_how_many_episodes_were_played(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert main(["test", "--trainer.limit_test_batches", "1", f"--out={out}", "--best", str(finished)]) == 0
    assert json.loads(out.read_text())["episodes"] == 2


@pytest.mark.parametrize("option", ["out", "video"])
def test_file_that_cannot_be_written_is_refused_before_an_episode_is_played(
    finished: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "figures.json"
    said = refusal(capsys, "test", finished, f"--{option}={path}")
    assert f"--{option} {path} cannot be written: Not a directory" in said


@pytest.mark.parametrize(
    ("argv", "reference", "options_left"),
    [
        (["run", "--best"], "run", ["--best"]),
        (["--best", "run"], "run", ["--best"]),
        (["--trainer.max_steps", "-1", "run"], "run", ["--trainer.max_steps", "-1"]),
        (["--config=a", "-c", "b", "run", "--out", "x"], "run", ["--config=a", "-c", "b", "--out", "x"]),
        (["--out", "x"], None, ["--out", "x"]),
    ],
)
def test_run_may_stand_anywhere(argv: list[str], reference: str | None, options_left: list[str]) -> None:
    from perdqn.cli.command_line import split_reference

    assert split_reference(argv) == (reference, options_left)


@pytest.mark.parametrize("command", ["test", "export"])
def test_best_beside_a_checkpoint_is_refused(
    finished: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["--to", tmp_path / "policy.pt2"] if command == "export" else []
    last = finished / "checkpoints" / "last.ckpt"
    assert "leave it out" in refusal(capsys, command, "--best", last, *to)


def test_export_looks_for_runs_where_the_other_commands_do(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERDQN_TRAINER__DEFAULT_ROOT_DIR", str(finished.parent.parent))
    assert main(["export", "--to", str(tmp_path / "policy.pt2")]) == 0
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, "export", "--to", tmp_path / "file" / "policy.pt2")


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"not a checkpoint")
    assert main(["test", str(tmp_path / "x.ckpt")]) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_export_writes_a_program_checked_against_the_network(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished), "--to", str(tmp_path / "policy.pt2")]) == 0
    assert "agrees with the network" in capsys.readouterr().out
    assert main(["export", str(finished), "--to", str(tmp_path / "policy.txt")]) == 2
    assert ".onnx or .pt2" in capsys.readouterr().err
