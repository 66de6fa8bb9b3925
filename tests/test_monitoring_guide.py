"""The examples of docs/monitoring.md work as they are written.

Knows nothing about what is behind them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "monitoring.md"


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What its Python blocks leave, all of them run one after the other."""
    monkeypatch.chdir(tmp_path)
    left: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        exec(block, left)
    return left


def test_examples_of_the_guide_show_what_they_say(guide: dict[str, Any], tmp_path: Path) -> None:
    timed = guide["report"]["timings"]["operations"]["batch_processing"]
    assert timed["count"] == 3
    assert timed["total_s"] >= 3 * 0.001
    assert json.loads((tmp_path / "performance_report.json").read_text())["recommendations"] == []
    assert 0 <= guide["stats"]["cache_hit_rate"] <= 1


def test_recommendations_have_a_priority_and_a_message(
    guide: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = guide["get_tuning_recommendations"](guide["metrics"], {"learning_rate": 0.03})
    assert given
    for rec in [*given, *guide["report"]["recommendations"]]:
        assert rec["priority"] in ("critical", "high", "medium", "low")
        assert rec["message"]
