"""All watchers at once in ordinary programs: nothing of the run changes, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from observability import drop_in


@pytest.mark.parametrize("name", drop_in.PROGRAMS)
def test_all_watchers_leave_a_program_as_it_is(name: str, tmp_path: Path) -> None:
    members = drop_in.SETS["all, beside those that save"]
    bare = drop_in.train(name, tmp_path / "bare", (), 1)
    before = drop_in.left_open()
    watched = drop_in.train(name, tmp_path / "watched", members, 1)
    assert drop_in.faults_of(members, tmp_path / "watched", 0, bare, watched, before) == []


def test_a_cell_tells_what_is_not_as_it_must_be(tmp_path: Path) -> None:
    bare = drop_in.train("gan", tmp_path / "bare", (), 1)
    before: dict[str, Any] = {**drop_in.left_open(), "threads": []}
    adapted = drop_in.train("gan", tmp_path / "adapted", ("adapt",), 1)
    more = adapted[0], adapted[1] | {"UserWarning: new"}
    faults = drop_in.faults_of(("ResourceMonitor",), tmp_path / "adapted", 0, bare, more, before)
    told = " ".join(faults)
    for part in ("UserWarning: new", "weights/", "no resources.jsonl", "logged as resource/", "threads"):
        assert part in told


@pytest.mark.parametrize(
    ("member", "says"), [(name, False) for name in drop_in.WATCHERS] + [("saving", True)]
)
def test_only_those_who_save_say_how_exact_a_resume_is(
    member: str, says: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.exact.resume.state_exactness", lambda _: "not exact: a test")
    _, warned = drop_in.train("boring", tmp_path, (member,), 1)
    assert any("resuming this run is not exact" in each for each in warned) is says
