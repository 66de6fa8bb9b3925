"""What a run goes on from, what it says about that, and what it refuses to go on from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from holdfast.saving.environment import environment_fingerprint
from holdfast.storage.generations import GenerationFolder

from perdqn.__main__ import main
from perdqn.fingerprint import differing, fingerprint
from perdqn.run.report import count_rows

from .saved_runs import add_generation, copy_run, damage, keeping, make_run, written_by_another


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder nobody may change."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of it elsewhere."""
    return copy_run(original, tmp_path)


def states_of(original: Path) -> Path:
    """Checkpoints of the uninterrupted run."""
    return original.parents[1] / "states"


def checkpoint_of(run: Path, updates: int) -> Path:
    return run / "checkpoints" / f"update-{updates}.ckpt"


def resume(capsys: pytest.CaptureFixture[str], *argv: Any, code: int = 0) -> str:
    """What is said on standard output, or on standard error where it is refused."""
    capsys.readouterr()
    assert main(["resume", *map(str, argv)]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def status_of(run: Path, status: str, **figures: Any) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": status, **figures}))


# -- what is gone on from


@pytest.mark.parametrize("updates", [16, 32])
def test_resumed_run_ends_where_the_uninterrupted_one_did(
    original: Path, run: Path, tmp_path: Path, updates: int, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(capsys, checkpoint_of(run, updates), keeping(tmp_path))
    ends = [torch.load(folder / "end.ckpt", weights_only=True) for folder in (states_of(original), tmp_path)]
    assert differing(*map(fingerprint, ends)) == []


def test_the_newest_generation_is_the_one_written_last_whatever_its_age_on_disk(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    os.utime(checkpoint_of(run, 32), (1, 1))
    shutil.copy(states_of(original) / "16.ckpt", run / "checkpoints" / "last.ckpt")
    assert f"resuming {checkpoint_of(run, 32)}\n" in resume(capsys, run)


def test_a_generation_that_is_not_resumable_is_left_alone(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_generation(run, "post-mortem", states_of(original) / "end.ckpt", is_resumable=False)
    assert f"resuming {checkpoint_of(run, 32)}\n" in resume(capsys, run)


def test_damaged_generation_is_set_aside_and_the_one_before_it_taken(
    run: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint_of(run, 32))
    said = resume(capsys, run, keeping(tmp_path))
    assert f"resuming {checkpoint_of(run, 16)}\n" in said
    assert "passed over update-32 is damaged (update-32.ckpt: has the checksum" in said
    aside = run / "checkpoints" / "set-aside"
    assert f"set aside    {aside / 'update-32.ckpt'}" in said
    assert {"update-32.ckpt", "update-32.json"} <= {path.name for path in aside.iterdir()}
    ends = [torch.load(folder / "end.ckpt", weights_only=True) for folder in (states_of(original), tmp_path)]
    assert differing(*map(fingerprint, ends)) == []


def test_last_checkpoint_goes_aside_with_the_generation_whose_other_name_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "last.ckpt").hardlink_to(checkpoint_of(run, 32))
    damage(checkpoint_of(run, 32))
    resume(capsys, run)
    assert (run / "checkpoints" / "set-aside" / "last.ckpt").is_file()


def test_unreadable_manifest_is_named_and_set_aside(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run / "checkpoints" / "update-32.json")
    said = resume(capsys, run)
    assert "passed over update-32 is damaged (update-32.json: " in said
    assert f"resuming {checkpoint_of(run, 16)}\n" in said
    assert (run / "checkpoints" / "set-aside" / "update-32.json").is_file()


def test_run_of_an_earlier_version_goes_on_from_its_last_checkpoint(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    last = Path(shutil.copy(states_of(original) / "32.ckpt", run / "checkpoints" / "last.ckpt"))
    said = resume(capsys, run)
    assert f"resuming {last}\n" in said
    assert "written      by an earlier version, without a manifest" in said
    assert "environment  not recorded" in said


def test_what_a_dead_process_was_about_to_finish_is_finished_first(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    manifest = run / "checkpoints" / "update-32.json"
    manifest.rename(manifest.with_name(f".update-32.json.{dead.pid}.part"))
    assert f"resuming {checkpoint_of(run, 32)}\n" in resume(capsys, run)


# -- what is said


def test_report_says_what_was_restored_and_that_nothing_changed(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = resume(capsys, run)
    saved = torch.load(states_of(original) / "32.ckpt", weights_only=True)
    state, generation = saved["perdqn"], GenerationFolder(run / "checkpoints").find(checkpoint_of(run, 32))
    assert generation is not None
    host = generation.manifest["host"]
    assert f"on {host}, regular generation {generation.sequence}, checksums verified" in said
    position = f"{state['env_steps']:,} env steps, 32 updates, {state['episodes']} episodes"
    assert f"at           {position}\n" in said
    rows = count_rows(state["replay"])
    assert f"{rows} replay rows, 2 episodes in progress, all random streams" in said
    assert "exactness    bit-exact\n" in said
    assert "environment  as it was" in said
    assert "changed" not in said


def test_report_counts_rows_wherever_their_rings_are_described() -> None:
    rings = {"heads": torch.tensor([5, 130]), "length": 60}
    assert count_rows({"rows": rings}) == count_rows([None, {"module": {"rows": rings}}]) == 65
    assert count_rows({}) == 0


def test_another_environment_is_named_thing_by_thing(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = {**environment_fingerprint(), "cpu_capability": "AVX9", "numpy": "0.1"}
    add_generation(run, "elsewhere", states_of(original) / "32.ckpt", environment=elsewhere)
    said = resume(capsys, run)
    (line,) = (line for line in said.splitlines() if line.strip().startswith("environment"))
    assert "the state is restored exactly; arithmetic may differ because: " in line
    assert "AVX9 then" in line
    assert "numpy version: 0.1 then" in line
    assert "torch version" not in line


def test_threads_are_compared_as_training_will_have_them(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # of this process, before training begins
    try:
        assert "environment  as it was" in resume(capsys, run)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    add_generation(run, "again", states_of(original) / "32.ckpt")
    status_of(run, "running")
    said = resume(capsys, run, f"--model.learner.num_threads={threads + 1}")
    assert f"threads of torch: {threads} then, {threads + 1} now" in said


def test_changed_settings_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = resume(capsys, run, "--model.learner.learning_rate=0.001")
    assert "changed      model.learner.learning_rate: 0.0001 -> 0.001" in said


# -- what is refused


def test_run_without_a_valid_generation_is_refused_with_each_fault(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint_of(run, 32))
    checkpoint_of(run, 16).unlink()
    before = sorted(run.rglob("*.ckpt"))
    said = resume(capsys, run, code=2)
    assert len(said.splitlines()) == 1
    assert "update-32 is damaged (update-32.ckpt: has the checksum" in said
    assert "update-16 is damaged (update-16.ckpt: is missing)" in said
    assert sorted(run.rglob("*.ckpt")) == before


def test_damaged_generation_asked_for_by_name_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint_of(run, 32))
    said = resume(capsys, checkpoint_of(run, 32), code=2)
    assert "cannot be used: update-32 is damaged" in said
    assert f"perdqn resume {run} falls back" in said
    assert checkpoint_of(run, 32).exists()


def test_checkpoint_whose_own_manifest_is_damaged_is_refused_by_name(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints" / "update-32.json")
    said = resume(capsys, checkpoint_of(run, 32), code=2)
    assert "cannot be used: update-32.json " in said


def test_generation_of_a_newer_format_is_neither_passed_over_nor_set_aside(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run / "checkpoints" / "update-32.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 1000}))
    said = resume(capsys, run, code=2)
    assert "format_version 1000 is newer" in said
    capsys.readouterr()
    assert main(["verify", str(run), "--repair"]) == 1
    assert "format_version 1000 is newer" in capsys.readouterr().out
    assert manifest.exists()


def test_single_flipped_bit_of_a_file_without_manifest_is_refused(
    run: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = run / "lone.ckpt"
    shutil.copy(states_of(original) / "32.ckpt", lone)
    damage(lone)
    assert "does not match its CRC" in resume(capsys, lone, code=2)
    capsys.readouterr()
    assert main(["fit", "--config", str(run / "config.yaml"), f"--ckpt_path={lone}"]) == 2
    assert "does not match its CRC" in capsys.readouterr().err


def test_damaged_generation_is_no_start_for_a_new_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(checkpoint_of(run, 32))
    asked = ["--config", run / "config.yaml", f"--ckpt_path={checkpoint_of(run, 32)}"]
    assert main(["fit", *map(str, asked)]) == 2
    assert "update-32 is damaged" in capsys.readouterr().err


def test_run_that_another_process_writes_is_refused_with_its_name(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with written_by_another(run) as process:
        said = resume(capsys, run, code=2)
    assert f"is being written by process {process}" in said


def test_finished_run_may_go_on_from_before_its_end(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status_of(run, "completed", env_steps=300)
    resume(capsys, checkpoint_of(run, 16))
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 300


def test_moved_run_goes_on_where_it_lies_now(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = run.rename(tmp_path / "kept for later")
    resume(capsys, moved)
    assert json.loads((moved / "summary.json").read_text())["status"] == "completed"
    assert yaml.safe_load((moved / "config.yaml").read_text())["model"]["total_env_steps"] == 300
    assert not list((tmp_path / "lightning_logs").iterdir())
