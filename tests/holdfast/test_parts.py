"""Parts: written once, kept by name, read only as they were written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from holdfast.storage.generations import File
from holdfast.storage.parts import DamagedPart, PartStore, Stateful, load_parts, save_with_parts, saving_parts


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    return PartStore(tmp_path)


class Rows:
    """Large state that joins by shape."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []

    def save_parts(self, store: PartStore) -> dict[str, Any]:
        return {"file": dataclasses.asdict(store.write("rows.bin", [b"abc"]))}

    def load_parts(self, store: PartStore, entry: dict[str, Any]) -> None:
        self.loaded.append(store.read(File(**entry["file"])))


def test_a_part_is_read_back_as_the_chunks_were_written(store: PartStore) -> None:
    file = store.write("replay/rows-1.zst", [b"abc", memoryview(b"def"), b""])
    assert store.read(file) == b"abcdef"
    assert file.size == 6
    assert store.files == [file]


def test_half_of_the_checksum_stands_in_the_name(store: PartStore) -> None:
    file = store.write("replay/rows-1.zst", [b"abcdef"])
    assert file.path == f"parts/replay/rows-1.{file.sha256[:16]}.zst"


def test_other_content_under_the_same_name_is_another_file(store: PartStore) -> None:
    first, second = store.write("rows", [b"1"]), store.write("rows", [b"2"])
    assert (store.read(first), store.read(second)) == (b"1", b"2")
    assert store.write("rows", [b"1"]) == first


def test_a_part_with_other_content_under_its_own_name_is_never_overwritten(store: PartStore) -> None:
    file = store.write("rows", [b"1"])
    (store.folder / file.path).write_bytes(b"something else")
    with pytest.raises(FileExistsError, match="parts are never overwritten"):
        store.write("rows", [b"1"])
    assert (store.folder / file.path).read_bytes() == b"something else"


def test_a_part_of_an_older_save_is_kept_without_being_read(store: PartStore) -> None:
    file = store.write("rows", [b"1234"])
    os.chmod(store.folder / file.path, 0)
    later = PartStore(store.folder)
    assert later.keep(file) == file
    assert later.files == [file]


def test_a_part_that_is_gone_or_cut_is_not_kept(store: PartStore) -> None:
    file = store.write("rows", [b"1234"])
    (store.folder / file.path).write_bytes(b"12")
    with pytest.raises(DamagedPart, match="has 2 bytes instead of 4"):
        store.keep(file)
    (store.folder / file.path).unlink()
    with pytest.raises(DamagedPart, match=r"rows\..*: No such file"):
        store.keep(file)


def test_a_changed_part_is_refused_with_path_and_reason(store: PartStore) -> None:
    file = store.write("rows", [b"1234"])
    (store.folder / file.path).write_bytes(b"1235")
    with pytest.raises(DamagedPart, match=rf"{file.path} has the checksum .* instead of {file.sha256}"):
        store.read(file)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "other/x", "parts/../x", "parts/a\0"])
def test_no_entry_leads_out_of_the_parts(store: PartStore, path: str) -> None:
    (store.folder / "x").write_bytes(b"secret")
    with pytest.raises(DamagedPart):
        store.read(File(path, 6, "0" * 64))


def test_no_symbolic_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "checkpoints")
    file = store.write("rows", [b"1234"])
    outside = tmp_path / "outside"
    (store.folder / file.path).rename(outside)
    (store.folder / file.path).symlink_to(outside)
    with pytest.raises(DamagedPart, match="leads out of"):
        store.read(file)


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", ""])
def test_a_part_is_not_written_elsewhere(store: PartStore, path: str) -> None:
    with pytest.raises(ValueError, match="must stay inside its folder"):
        store.write(path, [b"1"])


def test_nothing_is_left_of_a_part_whose_chunks_fail(store: PartStore) -> None:
    def chunks() -> Any:
        yield b"half"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.write("rows", chunks())
    assert not any((store.folder / "parts").iterdir())
    assert store.files == []


def test_an_owner_takes_its_entry_once(store: PartStore) -> None:
    rows = Rows()
    assert isinstance(rows, Stateful)
    checkpoint = {"holdfast": {"version": 1, "parts": {"module": rows.save_parts(store)}}}
    assert load_parts("module", rows, checkpoint, store.folder)
    assert not load_parts("module", rows, checkpoint, store.folder)
    assert rows.loaded == [b"abc"]


def test_a_stock_checkpoint_has_no_entry(store: PartStore) -> None:
    assert not load_parts("module", Rows(), {"state_dict": {}}, store.folder)


def test_whether_parts_are_saved_is_known_only_meanwhile() -> None:
    assert not saving_parts()
    with save_with_parts():
        assert saving_parts()
        with save_with_parts(False):
            assert not saving_parts()
        assert saving_parts()
    assert not saving_parts()
