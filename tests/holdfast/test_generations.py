"""The format on disk: what is written stays readable, and what is damaged is told, whatever happens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from disks import Crash, Disk
from holdfast.storage import durable, manifest
from holdfast.storage.generations import Damage, Generation, GenerationFolder
from holdfast.storage.parts import PartStore

FIXTURES = Path(__file__).parent / "fixtures"


def write(
    folder: GenerationFolder, name: str, number: int, kind: str = "regular", **facts: Any
) -> Generation:
    def save(file: BinaryIO) -> None:
        torch.save({"number": number, "weights": torch.full((300,), float(number))}, file)

    return folder.write(name, kind, save, facts=facts)


def number_of(generation: Generation) -> int:
    return int(torch.load(generation.checkpoint, weights_only=True)["number"])


def newest_number(path: Path) -> int:
    newest = GenerationFolder(path).newest_valid()
    assert newest is not None
    return number_of(newest)


def files_of(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())


def edit(path: Path, sign: bool = True, **changes: Any) -> None:
    """Rewrite a manifest, with a right checksum unless told otherwise."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(manifest.text_of(manifest.signed(content) if sign else content))


@pytest.fixture
def folder(tmp_path: Path) -> GenerationFolder:
    return GenerationFolder(tmp_path / "checkpoints")


# What is written


def test_written_generation_loads_with_torch_alone(folder: GenerationFolder) -> None:
    assert number_of(write(folder, "step=1", 1)) == 1
    assert files_of(folder.path) == ["step=1.ckpt", "step=1.json"]


def test_manifest_gives_what_sha256sum_gives(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    content = generation.checkpoint.read_bytes()
    assert generation.files[0].sha256 == hashlib.sha256(content).hexdigest()
    assert generation.files[0].size == len(content)


def test_manifest_s_own_checksum_is_over_the_rest_as_sorted_json_without_spaces(
    folder: GenerationFolder,
) -> None:
    content = json.loads(write(folder, "a", 1, user={"note": "grüße"}).path.read_text())
    digest = content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest == hashlib.sha256(text.encode()).hexdigest()


def test_newest_is_the_last_written_whatever_the_clock_says(folder: GenerationFolder) -> None:
    for number, name in enumerate(("b", "a", "c", "9")):
        generation = write(folder, name, number)
        os.utime(generation.checkpoint, (0, 1e9 - number))
        os.utime(generation.path, (0, 1e9 - number))
    assert [generation.name for generation in folder.generations()] == ["9", "c", "a", "b"]
    assert newest_number(folder.path) == 3


def test_nothing_larger_than_a_block_is_copied_before_it_is_written(folder: GenerationFolder) -> None:
    largest = 0

    def save(file: BinaryIO) -> None:
        nonlocal largest
        torch.save({"weights": torch.zeros(3_000_000)}, file)
        largest = len(file._waiting)  # type: ignore[attr-defined]

    folder.write("large", "regular", save)
    assert largest < 1 << 20
    assert not hasattr(durable.Sink, "seek")


def test_facts_that_json_does_not_know_become_text(folder: GenerationFolder) -> None:
    write(folder, "a", 1, user={"loss": float("nan"), "path": Path("x"), 3: (1, 2)})
    assert folder.generations()[0].manifest["user"] == {"loss": "nan", "path": "x", "3": [1, 2]}


def test_a_folder_that_was_moved_is_as_good_as_before(folder: GenerationFolder, tmp_path: Path) -> None:
    write(folder, "a", 1)
    folder.path.rename(tmp_path / "elsewhere")
    moved = GenerationFolder(tmp_path / "elsewhere")
    assert moved.audit().damaged == []
    assert newest_number(moved.path) == 1


def test_names_may_hold_slashes(folder: GenerationFolder) -> None:
    generation = write(folder, "val/loss=0.1/a", 1)
    assert generation.checkpoint == folder.path / "val/loss=0.1/a.ckpt"
    assert folder.find(generation.checkpoint) == generation
    assert GenerationFolder.around(generation.checkpoint).path == folder.path.absolute()


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\\b", "a//b", "./a"])
def test_a_name_that_leads_out_is_refused(folder: GenerationFolder, name: str) -> None:
    with pytest.raises(ValueError, match="must stay inside its folder"):
        write(folder, name, 1)


def test_a_link_or_copy_is_known_by_its_content(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    durable.link(generation.checkpoint, folder.path / "last.ckpt")
    shutil.copy(generation.checkpoint, folder.path / "copy.ckpt")
    assert folder.find(folder.path / "last.ckpt") == folder.find(folder.path / "copy.ckpt") == generation
    assert folder.audit().orphaned == []


def test_a_link_is_replaced_at_once_and_nothing_is_left_beside_it(folder: GenerationFolder) -> None:
    first, second = write(folder, "a", 1), write(folder, "b", 2)
    for target in (first, second, second):
        durable.link(target.checkpoint, folder.path / "last.ckpt")
        assert os.path.samefile(folder.path / "last.ckpt", target.checkpoint)
    assert files_of(folder.path) == ["a.ckpt", "a.json", "b.ckpt", "b.json", "last.ckpt"]


def test_where_links_are_refused_a_copy_takes_their_place(
    folder: GenerationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "no links here")

    generation = write(folder, "a", 1)
    monkeypatch.setattr(os, "link", refuse)
    durable.link(generation.checkpoint, folder.path / "last.ckpt")
    assert folder.find(folder.path / "last.ckpt") == generation
    assert not os.path.samefile(folder.path / "last.ckpt", generation.checkpoint)


def test_a_file_system_without_folder_flush_is_told_once(
    folder: GenerationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(durable, "_has_said_no_folder_sync", False)
    with pytest.warns(UserWarning, match="folders cannot be flushed here"):
        write(folder, "a", 1)
    write(folder, "b", 2)
    assert newest_number(folder.path) == 2


# What is damaged


def test_truncation_at_every_4_kib_falls_back(folder: GenerationFolder) -> None:
    write(folder, "old", 1)
    newest = folder.write("new", "regular", lambda file: torch.save({"w": torch.rand(20_000)}, file))
    content = newest.checkpoint.read_bytes()
    for size in range(0, len(content), 4096):
        newest.checkpoint.write_bytes(content[:size])
        assert newest_number(folder.path) == 1
    newest.checkpoint.write_bytes(content)
    text = newest.path.read_bytes()
    for size in range(0, len(text) - 1, 7):
        newest.path.write_bytes(text[:size])
        assert newest_number(folder.path) == 1
    newest.path.write_bytes(text)
    assert folder.newest_valid() == newest


def test_no_flipped_bit_in_any_file_loads_silently(folder: GenerationFolder) -> None:
    write(folder, "old", 1)
    store = PartStore(folder.path)
    part = store.write("rows.bin", [os.urandom(3000)])
    save = {"number": 2, "w": torch.rand(500)}
    newest = folder.write("new", "regular", lambda file: torch.save(save, file), store.files)
    files = [newest.checkpoint, newest.path, folder.path / part.path]
    contents = [path.read_bytes() for path in files]
    draw = random.Random(0)
    for trial in range(300):
        path, content = files[trial % 3], bytearray(contents[trial % 3])
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        told: list[Damage] = []
        found = folder.newest_valid(lambda generation, faults: told.extend(faults))  # noqa: B023
        assert found is not None
        assert found.name == "old", f"trial {trial}"
        assert [fault.path for fault in told] == [path]
        path.write_bytes(contents[trial % 3])
    assert folder.newest_valid() == newest


def test_damage_is_told_with_path_and_reason(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    generation.checkpoint.write_bytes(b"short")
    (fault,) = folder.verify(generation)
    assert fault.path == generation.checkpoint
    assert fault.reason == f"has 5 bytes instead of {generation.files[0].size}"
    generation.checkpoint.unlink()
    assert folder.verify(generation)[0].reason == "is missing"


def test_audit_tells_good_damaged_and_orphaned(folder: GenerationFolder) -> None:
    good, bad = write(folder, "good", 1), write(folder, "bad", 2)
    bad.checkpoint.write_bytes(b"")
    unreadable = write(folder, "unreadable", 3)
    unreadable.path.write_text("{")
    (folder.path / "stock.ckpt").write_bytes(b"of someone else")
    (folder.path / "notes.json").write_text("[1, 2]")
    audit = folder.audit()
    assert audit.good == [good]
    assert {fault.path for fault in audit.damaged} == {bad.checkpoint, unreadable.path}
    assert audit.orphaned == [folder.path / "stock.ckpt"]


def test_set_aside_moves_with_the_reason_and_deletes_nothing(folder: GenerationFolder) -> None:
    for number in range(2):
        generation = write(folder, "a", number)
        content = generation.checkpoint.read_bytes()
        target = folder.set_aside(generation.checkpoint, "for the test")
        assert target.read_bytes() == content
        assert target.with_name(f"{target.name}.reason.txt").read_text() == "for the test\n"
        folder.set_aside(generation.path, "for the test")
    assert len(files_of(folder.path / "set-aside")) == 8
    assert folder.generations() == []


def test_what_stands_in_the_way_of_a_new_name_is_set_aside(folder: GenerationFolder) -> None:
    folder.path.mkdir()
    (folder.path / "best.ckpt").write_bytes(b"of someone else")
    write(folder, "best", 1)
    assert (folder.path / "set-aside/best.ckpt").read_bytes() == b"of someone else"
    assert newest_number(folder.path) == 1


# Other formats and hostile files


def test_a_folder_of_format_version_1_is_read(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "generations-v1", tmp_path / "v1")
    folder = GenerationFolder(tmp_path / "v1")
    assert [generation.name for generation in folder.generations()] == ["step=20", "step=10"]
    assert folder.audit().damaged == folder.audit().orphaned == []
    newest = folder.newest_valid()
    assert newest is not None
    assert newest.counters == {"global_step": 20, "epoch": 1}
    assert torch.load(newest.checkpoint, weights_only=True)["state_dict"]["w"].tolist() == [2.0, 2.0]
    assert PartStore(folder.path).read(newest.files[1]) == b"rows 10 to 19"


def test_a_newer_format_version_is_refused_by_name(folder: GenerationFolder) -> None:
    write(folder, "old", 1)
    shutil.copy(FIXTURES / "newer.json", folder.path / "newer.json")
    (fault,) = folder.unreadable()
    assert "format_version 2 is newer than 1" in fault.reason
    assert "update lightning-holdfast" in fault.reason
    assert newest_number(folder.path) == 1
    assert write(folder, "next", 2).sequence == 42  # after those it cannot read, too


HOSTILE_FILES: dict[str, Any] = {
    "upwards": "../secret.ckpt",
    "absolute": "/etc/passwd",
    "outside parts": "other.ckpt",
    "backslash": "parts\\..\\x",
    "nul": "parts/\0",
}


@pytest.mark.parametrize("path", HOSTILE_FILES.values(), ids=HOSTILE_FILES)
def test_a_manifest_that_names_files_elsewhere_is_refused(folder: GenerationFolder, path: str) -> None:
    generation = write(folder, "a", 1)
    secret = folder.path.parent / "secret.ckpt"
    secret.write_bytes(b"secret")
    file = {"path": path, "size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    edit(generation.path, files=[generation.manifest["files"][0], file])
    assert folder.generations() == []
    assert len(folder.unreadable()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 10**30},
        {"sequence": -1},
        {"sequence": True},
        {"format_version": "1"},
        {"format_version": 0},
        {"files": []},
        {"files": [{"path": "a.ckpt", "size": -5, "sha256": "0" * 64}]},
        {"files": [{"path": "a.ckpt", "size": 5, "sha256": "no"}]},
        {"files": [[]]},
        {"counters": {"global_step": "many"}},
        {"is_resumable": "yes"},
        {"kind": None},
        {"name": "b"},
    ],
    ids=str,
)
def test_a_manifest_with_impossible_values_is_refused(folder: GenerationFolder, changes: Any) -> None:
    edit(write(folder, "a", 1).path, **changes)
    assert folder.generations() == []
    assert len(folder.unreadable()) == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"format": ' * 200_000, "1" * 100_000, '{"a": 1, "a": 1}', '"\\ud800"', "NaN", ""],
)
def test_a_manifest_made_to_break_the_reader_is_refused(folder: GenerationFolder, text: str) -> None:
    generation = write(folder, "a", 1)
    generation.path.write_text(text)
    assert folder.newest_valid() is None
    assert len(folder.unreadable()) == 1


def test_a_giant_manifest_is_not_read(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    with generation.path.open("r+b") as file:
        file.truncate(1 << 40)
    assert "bytes are more than any manifest has" in folder.unreadable()[0].reason


def test_a_giant_size_is_compared_before_anything_is_read(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    (file,) = generation.manifest["files"]
    edit(generation.path, files=[{**file, "size": 1 << 50}])
    assert "instead of 1125899906842624" in folder.verify(folder.generations()[0])[0].reason


def test_a_changed_manifest_is_refused_unless_signed_anew(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    edit(generation.path, sign=False, kind="best")
    assert folder.unreadable()[0].reason == "does not match its own checksum"


def test_a_symbolic_link_out_of_the_folder_is_refused(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    outside = folder.path.parent / "outside.ckpt"
    generation.checkpoint.rename(outside)
    generation.checkpoint.symlink_to(outside)
    assert "leads out of" in folder.verify(generation)[0].reason


def test_a_pipe_in_place_of_a_checkpoint_is_refused_without_waiting(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    generation.checkpoint.unlink()
    os.mkfifo(generation.checkpoint)
    assert "is not a regular file" in folder.verify(generation)[0].reason


# What goes, and what stays


def test_removing_a_generation_leaves_the_parts_that_others_need(folder: GenerationFolder) -> None:
    store = PartStore(folder.path)
    shared, own = store.write("shared", [b"1"]), store.write("own", [b"2"])
    first = folder.write("a", "regular", lambda file: torch.save(1, file), [shared, own])
    folder.write("b", "regular", lambda file: torch.save(2, file), [shared])
    folder.remove(first)
    assert files_of(folder.path) == ["b.ckpt", "b.json", shared.path]


def test_no_part_is_deleted_while_a_manifest_cannot_be_read(folder: GenerationFolder) -> None:
    store = PartStore(folder.path)
    needed, lost = store.write("needed", [b"1"]), store.write("lost", [b"2"])
    first = folder.write("a", "regular", lambda file: torch.save(1, file), [needed])
    second = write(folder, "b", 2)
    text = first.path.read_text()
    first.path.write_text(text.replace("holdfast", "holdfasT"))
    folder.collect()
    folder.remove(second)
    assert {needed.path, lost.path} <= set(files_of(folder.path))
    first.path.write_text(text)
    folder.collect()
    assert files_of(folder.path) == ["a.ckpt", "a.json", needed.path]


def test_collecting_touches_nothing_that_is_not_named_as_ours(folder: GenerationFolder) -> None:
    write(folder, "a", 1)
    dead = 2**22 + 1  # above the largest process number of Linux
    others = [
        "notes.txt",
        "stock.ckpt",
        "parts/readme",
        "parts/x.part",
        f".notes.txt.{dead}.part",
        "run/last.ckpt",
    ]
    ours = [f".b.ckpt.{dead}.part", f".b.json.{os.getpid()}.part", f"parts/.rows.{dead}.part"]
    live = f".c.ckpt.{os.getppid()}.part"
    for name in (*others, *ours, live):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("x")
    folder.collect()
    assert files_of(folder.path) == sorted(["a.ckpt", "a.json", *others, live])


def test_removing_never_follows_a_signed_manifest_to_another_s_file(folder: GenerationFolder) -> None:
    generation = write(folder, "a", 1)
    (folder.path / "parts").mkdir()
    (folder.path / "parts/thesis.tex").write_text("years of work")
    file = {"path": "parts/thesis.tex", "size": 13, "sha256": hashlib.sha256(b"years of work").hexdigest()}
    edit(generation.path, files=[generation.manifest["files"][0], file])
    folder.remove(folder.generations()[0])
    assert files_of(folder.path) == ["parts/thesis.tex"]


# Full disks and sudden deaths, at every call


def scene(path: Path) -> GenerationFolder:
    """One generation with a part."""
    folder, store = GenerationFolder(path), PartStore(path)
    store.write("rows-0", [b"old rows"])
    folder.write("old", "regular", lambda file: torch.save({"number": 1}, file), store.files)
    return folder


def save_next(folder: GenerationFolder, name: str) -> None:
    store = PartStore(folder.path)
    store.keep(folder.generations()[0].files[1])
    store.write("rows-1", [b"new rows"])
    folder.write(name, "regular", lambda file: torch.save({"number": 2}, file), store.files)


def num_calls_of(tmp_path: Path, disk: Disk, name: str) -> int:
    folder = scene(tmp_path / "count")
    disk.reset()
    save_next(folder, name)
    return disk.num_calls


@pytest.mark.parametrize("name", ["new", "old"], ids=["new name", "same name"])
def test_a_full_disk_at_any_call_harms_nothing_and_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disk = Disk(monkeypatch)
    num_calls = num_calls_of(tmp_path, disk, name)
    assert num_calls > 10
    for call in range(1, num_calls + 1):
        disk.reset()
        folder = scene(tmp_path / f"{name}-{call}")
        before = files_of(folder.path)
        disk.reset(full_from=call)
        # the error as it came, not what torch makes of it; or none, where only clearing up needed space
        with contextlib.suppress(OSError):
            save_next(folder, name)
        left = [file for file in files_of(folder.path) if "rows-1" not in file]
        assert set(before) <= set(left)
        if name == "new" and newest_number(folder.path) == 1:
            assert left == before, disk.calls
        disk.reset()
        save_next(folder, name)
        assert newest_number(folder.path) == 2
        folder.collect()
        assert folder.audit()[1:] == ([], [])


@pytest.mark.parametrize("name", ["new", "old"], ids=["new name", "same name"])
def test_death_at_any_call_leaves_a_valid_generation_and_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disk = Disk(monkeypatch)
    for call in range(1, num_calls_of(tmp_path, disk, name) + 1):
        disk.reset()
        folder = scene(tmp_path / f"{name}-{call}")
        disk.reset(dead_from=call)
        with pytest.raises(Crash):
            save_next(folder, name)
        disk.reset()
        found = newest_number(folder.path)
        assert found in (1, 2)
        folder.collect()
        assert newest_number(folder.path) >= found
        assert folder.audit()[1:] == ([], []), disk.calls
        assert not any("~" in generation.name for generation in folder.generations())
        assert len(folder.generations()) == (newest_number(folder.path) if name == "new" else 1)
        save_next(folder, name)
        assert newest_number(folder.path) == 2


def test_death_at_any_call_of_a_removal_leaves_the_other_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    for call in range(1, 6):
        disk.reset()
        folder = scene(tmp_path / str(call))
        save_next(folder, "new")
        disk.reset(dead_from=call)
        with pytest.raises(Crash) if call < 5 else contextlib.nullcontext():
            folder.remove(folder.generations()[1])
        disk.reset()
        assert newest_number(folder.path) == 2
        folder.collect()
        assert folder.audit()[1:] == ([], []), disk.calls


def test_death_while_clearing_up_after_a_death_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    num_calls = num_calls_of(tmp_path, disk, "old")
    for first in range(num_calls - 14, num_calls + 1):  # from where the old one gets its other name
        for second in range(1, 11):
            disk.reset()
            folder = scene(tmp_path / f"{first}-{second}")
            disk.reset(dead_from=first)
            with pytest.raises(Crash):
                save_next(folder, "old")
            disk.reset(dead_from=second)
            with contextlib.suppress(Crash):
                folder.collect()
            disk.reset()
            assert newest_number(folder.path) in (1, 2), (first, second)
            folder.collect()
            assert folder.audit()[1:] == ([], []), (first, second)


@pytest.mark.parametrize("name", ["new", "old"], ids=["new name", "same name"])
def test_everything_is_flushed_before_anything_relies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, events = scene(tmp_path / "c"), list[tuple[str, str]]()
    flush, replace, unlink = os.fsync, os.replace, os.unlink

    def fsync(descriptor: int) -> None:
        events.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        flush(descriptor)

    def rename(source: Path, target: Path) -> None:
        events.append(("name", Path(target).name))
        is_new = source.name.endswith(".part") and "~1.ckpt" not in source.name  # which is a link
        assert not is_new or ("flush", source.name) in events
        replace(source, target)

    def remove(path: Path) -> None:
        events.append(("remove", Path(path).name))
        unlink(path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "unlink", remove)
    save_next(folder, name)
    part = next(Path(file.path).name for file in folder.generations()[0].files if "rows-1" in file.path)
    wanted = [("name", part), ("flush", "parts")]
    if name == "old":
        wanted += [("name", "old~1.ckpt"), ("name", "old~1.json"), ("flush", "c")]
    wanted += [("name", f"{name}.ckpt"), ("flush", "c"), ("name", f"{name}.json"), ("flush", "c")]
    if name == "old":
        wanted += [("remove", "old~1.ckpt")]
    rest = iter(events)
    assert all(event in rest for event in wanted), events


def test_a_disk_that_does_not_hold_what_was_written_is_found_out(
    folder: GenerationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "a", 1)
    put = os.write

    def lossy(descriptor: int, data: Any) -> int:
        put(descriptor, bytes(len(data)))
        return len(data)

    monkeypatch.setattr(os, "write", lossy)
    with pytest.raises(OSError, match="reads back as"):
        write(folder, "b", 2)
    monkeypatch.undo()
    assert files_of(folder.path) == ["a.ckpt", "a.json"]


def test_interrupt_within_a_write_is_not_turned_into_another_error(folder: GenerationFolder) -> None:
    def save(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write("a", "regular", save)
    assert files_of(folder.path) == []
