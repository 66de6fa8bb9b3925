"""What `perdqn verify` finds in a run folder, says, and sets aside."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from holdfast.storage.generations import GenerationFolder
from holdfast.storage.parts import PartStore

from perdqn.__main__ import main

from .saved_runs import damage, written_by_another


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two generations, the newer with a part of its own and one they share."""
    run = tmp_path / "lightning_logs" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    folder, store = GenerationFolder(run / "checkpoints"), PartStore(run / "checkpoints")
    shared, own = store.write("rows-1.bin", [b"shared"]), store.write("rows-2.bin", [b"own"])
    facts = {"counters": {"env_steps": 1200}}
    folder.write("older", "regular", lambda file: file.write(b"older" * 100), [shared], facts)
    folder.write("newer", "best", lambda file: file.write(b"newer" * 100), [shared, own], facts)
    return run


def verify(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["verify", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out + said.err


def part_of(run: Path, name: str) -> Path:
    (path,) = (run / "checkpoints" / "parts").glob(f"{name}.*.bin")
    return path


def files_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_sound_run_is_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(run)
    code, said = verify(capsys, run)
    assert code == 0
    newer, older, total = said.splitlines()
    assert "newer.ckpt: generation 2, best, 3 files" in newer
    assert "env_steps 1,200" in newer
    assert "older.ckpt: generation 1, regular, 2 files" in older
    assert total == "2 good, 0 damaged, 0 orphaned"
    assert files_of(run) == before


def test_the_newest_run_is_taken_and_a_file_stands_for_its_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = verify(capsys, run)
    assert verify(capsys, "--trainer.default_root_dir", run.parents[1]) == told
    assert verify(capsys, run / "checkpoints" / "newer.ckpt") == told
    assert verify(capsys, run / "checkpoints") == told


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run: damage(run / "checkpoints" / "newer.ckpt"), "newer.ckpt has the checksum"),
        (lambda run: (run / "checkpoints" / "newer.ckpt").write_bytes(b""), "newer.ckpt has 0 bytes instead"),
        (lambda run: (run / "checkpoints" / "newer.ckpt").unlink(), "newer.ckpt is missing"),
        (lambda run: damage(part_of(run, "rows-2")), "has the checksum"),
        (lambda run: part_of(run, "rows-2").unlink(), "is missing"),
        (lambda run: (run / "checkpoints" / "newer.json").write_text("{"), "newer.json cannot be read"),
    ],
)
def test_damage_is_named_with_its_reason_and_changes_nothing(
    run: Path, spoil: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run)
    before = files_of(run)
    code, said = verify(capsys, run)
    assert code == 1
    assert f"damaged    {run}" in said
    assert reason in said
    assert "1 good, 1 damaged" in said
    assert files_of(run) == before


def test_what_no_manifest_knows_is_orphaned_and_no_damage(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = PartStore(run / "checkpoints").write("rows-3.bin", [b"lost"])
    (run / "checkpoints" / "stray.ckpt").write_bytes(b"no manifest")
    (run / "checkpoints" / "notes.txt").write_text("the user's own")
    code, said = verify(capsys, run)
    assert code == 0
    assert f"orphaned   {run / 'checkpoints' / lost.path}" in said
    assert "stray.ckpt" in said
    assert "notes.txt" not in said


def test_repair_sets_a_damaged_generation_aside_and_spares_what_others_need(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints" / "newer.ckpt")
    before, shared, own = files_of(run), part_of(run, "rows-1"), part_of(run, "rows-2")
    code, said = verify(capsys, run, "--repair")
    assert code == 1
    aside = run / "checkpoints" / "set-aside"
    assert sorted(path.name for path in aside.rglob("*") if path.is_file() and path.suffix != ".txt") == [
        "newer.ckpt",
        "newer.json",
        own.name,
    ]
    assert f"set aside  {aside / 'newer.ckpt'}" in said
    assert "checksum" in (aside / "newer.ckpt.reason.txt").read_text()
    assert "newer is damaged" in (aside / "newer.json.reason.txt").read_text()
    assert shared.exists()
    kept = [content for path, content in files_of(run).items() if path.suffix != ".txt"]
    assert sorted(kept) == sorted(before.values()), "nothing is deleted"
    code, said = verify(capsys, run)
    assert code == 0
    assert "1 good, 0 damaged, 0 orphaned" in said


def test_repair_sets_aside_a_checkpoint_whose_manifest_cannot_be_read(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints" / "newer.json")
    assert verify(capsys, run, "--repair")[0] == 1
    assert (run / "checkpoints" / "set-aside" / "newer.ckpt").is_file()
    assert not (run / "checkpoints" / "newer.ckpt").exists()
    assert verify(capsys, run)[0] == 0


def test_repair_where_a_shared_part_is_gone_leaves_no_generation_that_names_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part_of(run, "rows-1").unlink()
    assert verify(capsys, run, "--repair")[0] == 1
    assert GenerationFolder(run / "checkpoints").generations() == []
    assert (run / "checkpoints" / "set-aside" / "older.ckpt").is_file()


def test_repair_clears_away_what_a_process_that_died_has_left(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    torn = run / "checkpoints" / f".next.ckpt.{dead.pid}.part"
    torn.write_bytes(b"torn")
    code, said = verify(capsys, run)
    assert code == 0
    assert f"orphaned   {torn}" in said
    assert verify(capsys, run, "--repair")[0] == 0
    assert not torn.exists()


def test_repair_leaves_a_run_alone_that_another_process_writes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints" / "newer.ckpt")
    with written_by_another(run) as process:
        code, said = verify(capsys, run, "--repair")
    assert code == 2
    assert f"process {process}" in said
    assert (run / "checkpoints" / "newer.ckpt").exists()


def test_json_holds_what_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run / "checkpoints" / "newer.ckpt")
    code, said = verify(capsys, run, "--json", "--repair")
    found = json.loads(said)
    assert code == 1
    older = {"name": "older", "sequence": 1, "kind": "regular", "counters": {"env_steps": 1200}}
    assert found["good"] == [older]
    assert [Path(damaged["path"]).name for damaged in found["damaged"]] == ["newer.ckpt"]
    assert found["orphaned"] == found["without_manifest"] == []
    assert len(found["set_aside"]) == 3


def test_a_run_without_manifests_is_judged_by_the_checksums_inside_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    run = tmp_path / "old"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("last.ckpt", "best.ckpt"):
        torch.save({"weights": torch.arange(1000)}, run / "checkpoints" / name)
    code, said = verify(capsys, run)
    assert code == 0
    assert "last.ckpt, without a manifest" in said
    damage(run / "checkpoints" / "last.ckpt")
    code, said = verify(capsys, run)
    assert code == 1
    assert "does not match its CRC" in said
    assert "1 good, 1 damaged" in said


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_nothing_to_check_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    code, said = verify(capsys, tmp_path / name)
    assert code == 2
    assert str(tmp_path / name) in said


def test_verify_answers_within_a_second(run: Path) -> None:
    command = [sys.executable, "-m", "perdqn", "verify", run]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time, so that whatever else the machine does makes no difference
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
