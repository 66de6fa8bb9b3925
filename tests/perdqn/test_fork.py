"""A run that goes on in a new folder, knows where it comes from, and leaves the old one as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from holdfast.storage.generations import GenerationFolder

from perdqn.__main__ import main
from perdqn.fingerprint import differing, fingerprint, parts_of

from .saved_runs import add_generation, copy_run, damage, keeping, make_run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder nobody may change."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of it elsewhere."""
    return copy_run(original, tmp_path)


def fork(capsys: pytest.CaptureFixture[str], *argv: Any, code: int = 0) -> str:
    """What is said on standard output, or on standard error where it is refused."""
    capsys.readouterr()
    assert main(["resume", "--fork", *map(str, argv)]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def files_of(root: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_fork_goes_on_beside_the_run_and_leaves_it_as_it_was(
    run: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(run)
    said = fork(capsys, run, keeping(tmp_path))
    assert f"run folder {run.with_name('version_1')}" in said
    assert files_of(run) == before
    states = original.parents[1] / "states"
    ends = [torch.load(folder / "end.ckpt", weights_only=True) for folder in (states, tmp_path)]
    assert differing(*map(fingerprint, ends)) == []
    audit = GenerationFolder(run.with_name("version_1") / "checkpoints").audit()
    assert "update-32" in {generation.name for generation in audit.good}
    assert not audit.damaged


def test_run_that_saves_anew_while_it_is_forked_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdqn.cli import resume

    report = resume.format_report

    def rotate(*args: Any, **kwargs: Any) -> str:
        (run / "checkpoints" / "update-32.ckpt").unlink()
        return report(*args, **kwargs)

    monkeypatch.setattr(resume, "format_report", rotate)
    assert "update-32.ckpt went away" in fork(capsys, run, code=2)


def test_fork_remembers_where_it_comes_from_for_life(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run / "checkpoints" / "update-32.ckpt"
    said = fork(capsys, run, "--model.seed=0")
    expected = {
        "run": str(run),
        "generation": "update-32",
        "sequence": 2,
        "env_steps": torch.load(checkpoint, weights_only=True)["perdqn"]["env_steps"],
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    assert f"forked from  {run}, generation 2 (update-32) at {expected['env_steps']} env steps" in said
    forked = run.with_name("version_1")
    for more in (None, "--model.total_env_steps=320"):
        if more:
            assert main(["resume", str(forked), more]) == 0
        assert summary_of(forked)["forked_from"] == expected
        first, rest = (forked / "config.yaml").read_text().split("\n", 1)
        assert json.loads(first.removeprefix("# forked_from: ")) == expected
        assert yaml.safe_load(rest)["model"]["seed"] == 0
    assert "forked_from" not in summary_of(run)


def test_fork_takes_the_best_so_far_along_but_none_from_after_it(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "update-32.json").unlink()
    states = original.parents[1] / "states"
    best = [("before", "16"), ("newest", "32"), ("after", "end")]
    for name, state in best:
        kind = "regular" if name == "newest" else "best"
        add_generation(run, name, states / f"{state}.ckpt", kind, is_resumable=kind == "regular")
    fork(capsys, run)
    folder = GenerationFolder(run.with_name("version_1") / "checkpoints")
    names = {generation.name for generation in folder.audit().good}
    assert {"before", "newest"} <= names
    assert "after" not in names


def test_fork_of_a_named_checkpoint_starts_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fork(capsys, run / "checkpoints" / "update-16.ckpt")
    assert summary_of(run.with_name("version_1"))["forked_from"]["generation"] == "update-16"


def test_fork_passes_over_damage_without_setting_it_aside(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints" / "update-32.ckpt")
    before = files_of(run)
    assert "passed over update-32 is damaged" in fork(capsys, run)
    assert files_of(run) == before
    assert summary_of(run.with_name("version_1"))["forked_from"]["generation"] == "update-16"


def test_fork_of_an_earlier_versions_run_knows_the_checkpoint_by_its_checksum(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    last = Path(shutil.copy(original.parents[1] / "states" / "16.ckpt", run / "checkpoints" / "last.ckpt"))
    fork(capsys, run)
    lineage = summary_of(run.with_name("version_1"))["forked_from"]
    assert (lineage["generation"], lineage["sequence"]) == ("last", None)
    assert lineage["sha256"] == hashlib.sha256(last.read_bytes()).hexdigest()


def test_fork_lies_where_the_user_says(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    fork(capsys, run, "--trainer.default_root_dir", elsewhere)
    assert summary_of(elsewhere / "lightning_logs" / "version_0")["forked_from"]["run"] == str(run)
    assert not run.with_name("version_1").exists()


def test_run_in_use_can_be_forked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from holdfast.storage.lock import FolderLock

    with FolderLock(run / "checkpoints"):
        fork(capsys, run)


@pytest.mark.parametrize("change", ["--model.env.num_envs=3", "--model.replay.capacity=200"])
def test_fork_with_another_replay_warms_up_again(
    run: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fork(capsys, run, change, "--model.total_env_steps=500")
    assert "without the replay, training warms up again" in said
    forked, name = run.with_name("version_1"), change.lstrip("-").partition("=")[0]
    assert f"changed      {name}: " in said
    summary = summary_of(forked)
    updates_after_warmup = (summary["env_steps"] - summary["forked_from"]["env_steps"] - 50) // 4
    assert summary["env_steps"] >= 500
    assert summary["updates"] == 32 + updates_after_warmup


@pytest.mark.parametrize("change", ["--model.seed=0", "--model.env.num_envs=3"])
def test_fork_that_dies_before_its_first_save_goes_on_by_itself(
    run: Path, change: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdqn.module import PERDQN

    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(PERDQN, "training_step", fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            fork(capsys, run, change)
    shutil.rmtree(run)
    forked = run.with_name("version_1")
    assert main(["resume", str(forked)]) == 0
    assert summary_of(forked)["forked_from"]["generation"] == "update-32"
    assert summary_of(forked)["env_steps"] >= 300


@pytest.mark.parametrize("change", ["--model.seed=5", "--model.seed=6"])
def test_fork_with_another_seed_keeps_the_past_and_has_another_future(
    run: Path, original: Path, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fork(capsys, run, change, keeping(tmp_path))
    assert "random streams begin anew" in said
    assert "could not be played again" not in said
    assert summary_of(run.with_name("version_1"))["forked_from"]["seed"] == 0
    again = tmp_path / "again"
    fork(capsys, run, change, keeping(again))
    as_was, other, same = (
        torch.load(folder / "end.ckpt", weights_only=True)
        for folder in (original.parents[1] / "states", tmp_path, again)
    )
    parts = differing(fingerprint(as_was), fingerprint(other))
    assert {"rng", "environments", "weights", "replay_rows"} <= set(parts)
    assert differing(fingerprint(other), fingerprint(same)) == []
    one, another = parts_of(as_was)["rng"], parts_of(other)["rng"]
    assert one["sampling"] != another["sampling"]
    assert one["exploration"] != another["exploration"]
    assert not torch.equal(one["noise"], another["noise"])
    assert not torch.equal(one["global"]["torch"], another["global"]["torch"])


@pytest.mark.parametrize("killed_at", ["before its first save", "under way"])
def test_fork_with_another_seed_resumes_exactly(
    run: Path, original: Path, killed_at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork(capsys, run / "checkpoints" / "update-16.ckpt", "--model.seed=5", keeping(tmp_path / "whole"))
    forked = run.with_name("version_1")
    states = {"before its first save": original.parents[1] / "states/16.ckpt"}
    source = states.get(killed_at, tmp_path / "whole/32.ckpt")
    shutil.rmtree(forked / "checkpoints")
    add_generation(forked, "killed", source)
    (forked / "summary.json").write_text(json.dumps({**summary_of(forked), "status": "running"}))
    assert main(["resume", str(forked), keeping(tmp_path / "resumed")]) == 0
    ends = [torch.load(tmp_path / name / "end.ckpt", weights_only=True) for name in ("whole", "resumed")]
    assert differing(*map(fingerprint, ends)) == []


@pytest.mark.parametrize(
    "change", ["--model.network.init_args.hidden_sizes=[16]", "--model.env.frame_stack=2"]
)
def test_fork_keeps_what_cannot_change(run: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "for life" in fork(capsys, run, change, code=2)
    assert not run.with_name("version_1").exists()


def test_fork_with_nothing_left_to_do_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedules = ["--model.replay.beta_env_steps=100", "--model.exploration.epsilon_env_steps=100"]
    said = fork(capsys, run, "--model.total_env_steps=100", *schedules, code=2)
    assert "has finished its 100 env steps" in said
    assert not run.with_name("version_1").exists()
