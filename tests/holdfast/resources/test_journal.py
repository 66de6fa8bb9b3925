"""Lines of a file that stays bounded, is readable at any moment, and never disturbs who writes it."""

from __future__ import annotations

import json
import math
import tracemalloc

from holdfast.resources.journal import Journal, read_lines


def make(path, **settings) -> tuple[Journal, list[str]]:
    notes: list[str] = []
    return Journal(path, notes.append, **settings), notes


def test_lines_come_back_as_they_were_written(tmp_path):
    journal, notes = make(tmp_path / "new" / "lines.jsonl")
    journal.add({"a": 1, "b": {"c": 1 / 3}})
    journal.add({"a": math.inf})
    assert read_lines(tmp_path / "new" / "lines.jsonl") == [{"a": 1, "b": {"c": 0.333333}}, {"a": None}]
    assert notes == []


def test_the_file_stays_bounded_and_older_lines_are_thinned_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    journal, _ = make(path, most_bytes=4000)
    for number in range(5000):
        journal.add({"n": number})
        assert path.stat().st_size <= 4000
    numbers = [line["n"] for line in read_lines(path)]
    assert numbers == sorted(set(numbers))
    assert numbers[-100:] == [*range(4900, 5000)]
    assert numbers[0] < 4000
    assert not path.with_suffix(".tmp").exists()


def test_thinning_out_takes_no_memory_for_the_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    journal, _ = make(path, most_bytes=2**20)
    path.write_text("".join(json.dumps({"n": number, "more": "." * 500}) + "\n" for number in range(2000)))
    size = path.stat().st_size
    journal.add({"n": -1})  # sees how the file ends
    tracemalloc.start()
    journal.add({"n": 2000, "more": "." * (2**20 - size)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < size
    assert peak < 2**20 / 5


def test_a_line_torn_by_a_kill_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n{"n": 2, "to')
    make(path)[0].add({"n": 3})
    assert [line["n"] for line in read_lines(path)] == [1, 3]


def test_a_disk_that_takes_nothing_is_told_of_and_later_lines_are_written(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.mkdir()  # no file can be written there, not even by root
    journal, notes = make(path)
    journal.add({"n": 1})
    assert len(notes) == 1
    assert str(path) in notes[0]
    path.rmdir()
    journal.add({"n": 2})
    assert read_lines(path) == [{"n": 2}]


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []
