"""What a report says of runs that are whole, going on, killed, or hardly there."""

import html.parser
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from perdqn.__main__ import main
from perdqn.reporting.charts import Chart, draw_curves
from perdqn.reporting.gather import gather, list_changed
from perdqn.reporting.headline import get_answers, standing_alerts
from perdqn.reporting.page import list_differing, list_foretold, name_runs, render
from perdqn.run.folder import RunFolder

ADVICE = {
    "rule": "learning_rate_high",
    "priority": "high",
    "message": "TD errors grow; lower the learning rate.",
    "evidence": {"slope": 1.25},
    "source": "chosen here",
    "changes": [{"setting": "model.learner.learning_rate", "value": 0.01, "proposed": 0.001}],
    "expected": "TD errors fall",
    "confidence": 0.8,
}
BOTTLENECK = {"label": "data", "share": 0.25, "speed_up": 4 / 3, "confidence": 0.99}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A folder as a run leaves it that goes on in this process."""
    run = RunFolder(tmp_path / "version_0")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text(
        "model:\n  env: {id: CartPole-v1}\n  total_env_steps: 1000\n  learner: {gamma: 0.9}\n"
    )
    run.write_summary({"status": "running", "command": "perdqn fit --config '<b>x</b>'"})
    (run.checkpoints / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    writer = SummaryWriter(str(run.path))
    for step in range(0, 500, 10):
        writer.add_scalar("time/env_steps_per_second", 50.0, step)
        writer.add_scalar("eval/return_mean", step, step)
        writer.add_scalar("eval/return_low", step - 5, step)
        writer.add_scalar("eval/return_high", step + 5, step)
        writer.add_scalar("train/loss", float("nan") if step == 50 else 1.0, step)
        writer.add_scalar("my/own", step, step)
    writer.close()
    monitor = run.path / "monitor"
    monitor.mkdir()
    lines = [{"time": 1.0, "step": 7, "event": "advised", "advice": ADVICE}]
    (monitor / "advice.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"half')
    alert = {"time": 1.0, "step": 5, "kind": "memory", "state": "raised", "message": "91 % of <memory>"}
    (monitor / "alerts.jsonl").write_text(json.dumps(alert) + "\n")
    figures = [{"time": t, "step": 10 * t, "resource/rss_bytes": 1e6 * t} for t in range(5)]
    (monitor / "resources.jsonl").write_text("\n".join(map(json.dumps, figures)))
    report = {"time": 1.0, "shares": {"data": 0.25, "step": 0.75}, "bottlenecks": [], "recommendations": []}
    (monitor / "performance_report.json").write_text(json.dumps(report))
    return run


class Page(html.parser.HTMLParser):
    """Tags that were left open, headings, and everything a page would ask others for."""

    VOID = ("meta", "link", "br", "img", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.asked: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "xlink:href") and not re.match(r"data:|#", value or ""):
                self.asked.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())


def answers(run: Mapping[str, Any]) -> dict[str, str]:
    return {answer.question: answer.answer for answer in get_answers(run)}


def test_a_run_that_goes_on_says_how_long_it_takes(run: RunFolder) -> None:
    found = gather(run)
    assert found["status"] == "running"
    assert found["progress"]["env_steps"] == 490
    assert found["progress"]["seconds_left"] == [10.2, 10.2, 10.2]  # 510 env steps at 50 a second
    assert answers(found) == {
        "Is it healthy?": "Something runs short",
        "What slows it?": "Nothing that could be left out",
        "What to change?": "model.learner.learning_rate 0.001",
        "What next?": "0:10 left",
    }


def test_a_killed_run_is_told_from_one_that_goes_on(run: RunFolder) -> None:
    (run.checkpoints / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}))
    found = gather(run)
    assert found["status"] == "killed"
    assert found["progress"]["seconds_left"] is None
    assert answers(found)["Is it healthy?"] == "It was killed"


def test_what_holds_the_folder_elsewhere_is_not_known_to_live(run: RunFolder) -> None:
    (run.checkpoints / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": os.getpid()}))
    assert gather(run)["status"] == "running or killed on another machine"


def test_only_settings_that_were_chosen_are_listed_as_changed(run: RunFolder) -> None:
    changed = {one["setting"]: one["value"] for one in gather(run)["changed_settings"]}
    assert changed == {"model.total_env_steps": 1000, "model.learner.gamma": 0.9}
    assert list_changed({"model.learner.gamma": 0.99}) == []


def test_changes_are_told_against_the_shipped_configs_that_a_run_was_started_from(run: RunFolder) -> None:
    run.config.write_text(
        "model:\n  env: {id: CartPole-v1}\n  total_env_steps: 60000\n"
        "  learner: {gamma: 0.9, train_every: 2, learning_rate: 0.001}\n"
        "checkpoint: {keep: 2, every: {minutes: 5.0}}\n"
    )
    run.write_summary({"command": "perdqn fit -c cartpole --config=guarded --model.learner.gamma 0.9"})
    found = gather(run)
    assert found["shipped"] == ["cartpole", "guarded"]
    assert found["changed_settings"] == [
        {"setting": "model.learner.gamma", "default": 0.99, "value": 0.9},
        {"setting": "checkpoint.keep", "default": 3, "value": 2},  # of guarded
    ]
    assert "<th>cartpole, guarded</th>" in render([found])
    run.write_summary({"command": "perdqn fit --config 'my cartpole.yaml"})
    assert gather(run)["shipped"] == []


def test_what_was_foretold_stands_beside_what_it_came_to(run: RunFolder) -> None:
    said = {
        "memory": {"replay": 2_000_000, "process": 1_000_000},
        "disk": {"logs": 5_000_000},
        "room": {"memory": 8_000_000_000, "disk": 9_000_000_000, "folder": "."},
        "checkpoint_bytes": 700_000,
        "save_s": 0.021,
        "training_s": [60.0, 90.0, 120.0],
    }
    run.preflight.write_text(json.dumps(said))
    run.write_summary({**run.read_summary(), "seconds": 100.0})
    assert list_foretold(gather(run)) == [
        ("memory", "at most 3.0 MB", "8.0 GB free", ""),
        ("disk", "at most 5.0 MB", "9.0 GB free", ""),
        ("a checkpoint, the replay full", "700.0 kB", "", ""),
        ("a save", "0.021 s", "", ""),
        ("training", "1:30 (1:00 to 2:00)", "", "1:40"),
    ]
    assert "Foretold before it began" in Page(render([gather(run)])).headings
    run.preflight.write_text(json.dumps({**said, "save_s": None, "training_s": None}))
    assert len(list_foretold(gather(run))) == 3


def strokes(svg: str, colour: int) -> int:
    """Lines in a colour, the legend's left out: those are in ink."""
    return len(re.findall(rf"fill: none; stroke[^\"]*var\(--series-{colour}\)", svg))


def test_every_series_of_every_run_is_drawn_where_there_are_several() -> None:
    chart = Chart("learning", "Two", "", (("a", "first"), ("b", "second")), ("low", "high"))
    curve = {"steps": [0.0, 1.0], "values": [1.0, 2.0]}
    both = {"a": curve, "b": curve, "low": curve, "high": curve}
    one = draw_curves(chart, {"x": both})
    assert [strokes(one, i) for i in range(3)] == [2, 2, 0]  # the line, and in the legend
    three = draw_curves(chart, {"x": both, "y": {"b": curve}, "z": both})
    assert [strokes(three, i) for i in range(4)] == [2, 1, 2, 0]
    assert three.count("stroke-dasharray") == 3 + 1  # second series, and in the legend
    assert three.count("first") == three.count("second")


def test_advice_has_the_command_that_follows_it(run: RunFolder) -> None:
    (advice,) = gather(run)["advice"]
    assert advice["rule"] == "learning_rate_high"
    assert advice["command"] == f"perdqn resume {run.path} --fork --model.learner.learning_rate 0.001"
    assert advice["command"] in render([gather(run)])


def test_a_bottleneck_says_what_it_costs(run: RunFolder) -> None:
    found = {**gather(run), "performance": {"bottlenecks": [BOTTLENECK]}}
    assert answers(found)["What slows it?"] == "data"
    assert "1.33 times as fast without" in get_answers(found)[1].detail
    assert "25 %" in render([found])


def test_an_alert_stands_until_it_is_cleared() -> None:
    raised = {"kind": "memory", "state": "raised"}
    assert standing_alerts([raised]) == [raised]
    assert standing_alerts([raised, {"kind": "memory", "state": "cleared"}]) == []


def test_the_page_is_well_formed_and_asks_nobody(run: RunFolder) -> None:
    text = render([gather(run)])
    page = Page(text)
    assert page.open == []
    assert page.asked == []
    assert "url(http" not in text
    assert page.headings == [
        "Advice",
        "Learning",
        "Speed",
        "Resources",
        "Other figures",
        "Where the time goes",
        "What is replayed",
        "Alerts and rescues",
        "Saved states",
        "Settings",
    ]


def test_what_a_run_says_is_text_and_never_markup(run: RunFolder) -> None:
    text = render([gather(run)])
    assert "<b>x</b>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "91 % of &lt;memory&gt;" in text


def test_drawings_take_the_colours_of_the_page(run: RunFolder) -> None:
    text = render([gather(run)])
    assert "#0300" not in text
    assert "#010101" not in text
    assert "stroke: var(--series-0)" in text


def test_several_runs_share_one_page_and_show_what_differs(run: RunFolder) -> None:
    first = gather(run)
    second = {**first, "name": "version_1", "settings": {**first["settings"], "model.learner.gamma": 0.5}}
    assert list_differing(name_runs([first, second])) == [("model.learner.gamma", [0.9, 0.5])]
    page = Page(render([first, second]))
    assert page.open == []
    assert page.headings[0] == "Settings that differ"
    assert "Saved states: version_1" in page.headings


def test_runs_of_one_name_are_told_apart_by_their_paths(run: RunFolder) -> None:
    first = gather(run)
    assert list(name_runs([first, {**first, "path": "elsewhere/version_0"}])) == [
        first["path"],
        "elsewhere/version_0",
    ]


def test_a_folder_with_hardly_anything_gets_a_page_too(tmp_path: Path) -> None:
    page = Page(render([gather(RunFolder(tmp_path))]))
    assert page.open == []
    assert "Learning" not in page.headings


def test_the_data_is_json_without_what_json_does_not_have(run: RunFolder) -> None:
    found = gather(run)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert None in found["curves"]["train/loss"]["values"]


def test_the_command_writes_both_files(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path)]) == 0
    assert Page((run.path / "report.html").read_text()).open == []
    data = json.loads((run.path / "report.json").read_text())
    assert [one["name"] for one in data["runs"]] == ["version_0"]
    assert "report.html" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--out", str(run.config / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_documented_keys_are_those_there_are(run: RunFolder) -> None:
    table = (Path(__file__).parents[3] / "docs" / "report.md").read_text().partition("## The JSON")[2]
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(.+?)`", row)
    }
    assert documented == gather(run).keys()
