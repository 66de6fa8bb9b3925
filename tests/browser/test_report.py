"""The page of `perdqn report`, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perdqn.__main__ import main

if TYPE_CHECKING:
    from screens.chromium import Page


def test_the_report_is_shown_without_complaints_and_asks_nobody_for_anything(
    page: Page, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(path)]) == 0
    page.open(path.as_uri())
    page.wait_for(lambda: page.texts("h1"), "its heading")
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
    assert page.find("svg, img")
    assert run.name in page.texts("body")[0]
