"""What the documents say is so: metrics, links, names, commands and code.

Knows nothing about how a document is written beyond Markdown's tables, links and fenced blocks.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from holdfast import PerformanceMonitor
from holdfast.resources.alerts import THRESHOLDS
from holdfast.resources.cpu import CpuFigures
from holdfast.resources.disk import DiskFigures
from holdfast.resources.memory import MemoryFigures
from holdfast.resources.process import ProcessFigures, WorkerFigures
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger
from packaging.requirements import Requirement

from perdqn import shipped
from perdqn.__main__ import COMMANDS, main
from perdqn.module import PERDQN
from perdqn.run.dashboard import LAYOUT

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "docs" / "metrics.md"
DOCUMENTS = [
    path
    for path in (
        *[ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")],
        *[ROOT / folder / "README.md" for folder in ("callbacks", "lightning_logs")],
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if path.is_file()
]
TINY: dict[str, Any] = {
    "env": {"id": "CartPole-v1"},
    "replay": {"capacity": 300, "beta_env_steps": 200},
    "learner": {"batch_size": 8, "warmup_env_steps": 40, "target_update_period": 10},
    "exploration": {"epsilon_env_steps": 100},
    "evaluation": {"every_env_steps": 100, "episodes": 2, "test_episodes": 2, "num_envs": 2},
    "total_env_steps": 200,
}
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}

names_of = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())


class Recording(Logger):
    """Keeps the keys of all metrics."""

    name, version = "recording", 0

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.keys |= metrics.keys()

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Run(NamedTuple):
    """A run that has ended, and the keys it logged."""

    model: PERDQN
    logged: set[str]


@pytest.fixture(scope="module")
def run() -> Run:
    logger, model = Recording(), PERDQN(**TINY)
    trainer = Trainer(
        logger=logger,
        log_every_n_steps=5,
        enable_checkpointing=False,
        max_epochs=1,
        num_sanity_val_steps=0,
        **QUIET,
    )
    trainer.fit(model)
    trainer.test(model, verbose=False)
    return Run(model, logger.keys)


def documented(heading: str) -> set[str]:
    """The keys in the first column of the table under ``heading`` of docs/metrics.md."""
    section = METRICS.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    keys = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(keys) == len(set(keys)), f"a key stands twice under {heading}"
    return set(keys)


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    nested = {name: isinstance(value, dict) for name, value in tree.items()}
    below = [leaves(tree[name], f"{prefix}{name}.") for name, is_dict in nested.items() if is_dict]
    return {f"{prefix}{name}" for name, is_dict in nested.items() if not is_dict}.union(*below)


def test_every_logged_metric_is_documented_and_no_other(run: Run) -> None:
    assert run.logged == documented("Logged")
    assert run.model.latest.keys() == run.logged


def test_every_share_of_the_time_is_documented_and_no_other(tmp_path: Path) -> None:
    logger, monitor = Recording(), PerformanceMonitor(window_steps=1, every_s=1e-6, max_cost=0.99)
    model = PERDQN(**TINY)
    Trainer(
        logger=logger,
        callbacks=[monitor],
        enable_checkpointing=False,
        max_epochs=1,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **QUIET,
    ).fit(model)
    assert {key for key in logger.keys if key.startswith("time/phase_")} == documented(
        "With PerformanceMonitor"
    )


def test_the_dashboard_shows_metrics_that_exist() -> None:
    tags = {tag for panel in LAYOUT.values() for _, tags in panel.values() for tag in tags}
    keys = documented("Logged")
    of_callbacks = {tag for tag in tags if tag.startswith(("resource/", "time/phase_"))}  # see tests/browser
    assert {tag for tag in tags - of_callbacks if not any(re.match(tag, key) for key in keys)} == set()


def test_every_figure_of_the_replay_is_documented_and_no_other(run: Run) -> None:
    assert run.model.memory.get_performance_stats().keys() == documented("get_performance_stats")
    assert leaves(run.model.memory.get_memory_usage()) == documented("get_memory_usage")


def test_every_diagnostic_is_documented_and_no_other(run: Run) -> None:
    assert leaves(run.model.get_training_diagnostics()) == documented("get_training_diagnostics")


def test_every_figure_of_the_summary_is_documented_and_no_other(tmp_path: Path) -> None:
    settings = tmp_path / "tiny.yaml"
    settings.write_text(json.dumps({"model": TINY}))  # JSON is YAML
    assert main(["fit", "--config", str(settings), "--trainer.default_root_dir", str(tmp_path)]) == 0
    (summary,) = tmp_path.glob("lightning_logs/*/summary.json")
    assert json.loads(summary.read_text()).keys() == documented("summary.json")


def test_every_figure_of_the_machine_is_documented() -> None:
    readers = [MemoryFigures(), CpuFigures(), ProcessFigures(), WorkerFigures(), DiskFigures(ROOT)]
    found = {name for now in (0.0, 1.0) for reader in readers for name in reader.read(now)}
    assert found <= documented("Resources")
    foretold = {f"{name}_in_s" for name in ("memory_full", "disk_full", "end")}
    assert {"memory_share", "rss_bytes", *foretold} <= documented("Resources")
    shown = {threshold.figure.replace("_at_latest_", "_in_") for threshold in THRESHOLDS}
    pressures = {name for name in shown if name.startswith("pressure_")}
    assert shown - pressures <= documented("Resources")


def test_every_dependency_is_listed_with_its_reason() -> None:
    wanted: set[str] = set()
    for file in (ROOT / "pyproject.toml", ROOT / "callbacks" / "pyproject.toml"):
        content = tomllib.loads(file.read_text())
        project = content["project"]
        groups = [content["build-system"]["requires"], project["dependencies"]]
        groups += project.get("optional-dependencies", {}).values()
        wanted |= {Requirement(line).name for group in groups for line in group}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)) == wanted - {"perdqn"}


class Block(NamedTuple):
    """One fenced block: its language, its text, and the line it begins at."""

    language: str
    text: str
    line: int


def blocks_of(document: Path) -> Iterator[Block]:
    """All but those behind ``<!-- not run -->``."""
    text = document.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not text[: found.start()].rstrip().endswith("<!-- not run -->"):
            yield Block(found[1], found[2], text[: found.start()].count("\n") + 2)


@names_of
# Lightning would have a number of epochs, and the checkpoints made before updates; a run is one epoch
@pytest.mark.filterwarnings("ignore:`max_epochs` was not set", "ignore:Using ModelCheckpoint with manual")
def test_code_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks share one namespace; one that begins with ``# name.py`` is that module instead."""
    blocks = [block for block in blocks_of(document) if block.language == "python"]
    if not blocks:
        pytest.skip("no python in it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    before = set(sys.modules)
    try:
        for block in blocks:
            if named := re.match(r"# (\w+\.py)\n", block.text):
                Path(named[1]).write_text(block.text)
                continue
            source = "\n" * (block.line - 1) + block.text  # so that a traceback names the document's line
            exec(compile(source, document, "exec"), namespace)
    finally:
        for name in set(sys.modules) - before:
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@names_of
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)
    )
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if link and not (document.parent / link).exists()] == []


@names_of
def test_commands_and_configs_exist(document: Path) -> None:
    text = document.read_text()
    code = "\n".join(map("".join, re.findall(r"^```\w*\n(.*?)^```|`([^`\n]+)`", text, re.M | re.S)))
    commands = set(re.findall(r"(?:^|&& )perdqn ([a-z]\w*)", code, re.M))
    assert commands <= COMMANDS.keys()
    configs = {
        name for name in re.findall(r"--config[ =]([a-z][\w./-]*)", code) if not name.endswith(".yaml")
    }
    assert configs <= set(shipped.get_names())
    files = set(re.findall(r"\bconfigs/([a-z][\w-]*)\.yaml", text))
    assert files <= set(shipped.get_names())


@names_of
def test_no_path_of_somebodys_machine(document: Path) -> None:
    assert (
        re.findall(
            r"(?<![\w.:/])/(?:home|root|Users|tmp|work|mnt|private|var/folders)/\S*", document.read_text()
        )
        == []
    )
