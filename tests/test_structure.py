"""Imports point one way, and what must stay light stays light.

Knows nothing about what the modules do: it reads their import statements.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PERDQN, HOLDFAST = ROOT / "perdqn", ROOT / "callbacks" / "holdfast"

# Each part of a distribution (a package, or a file beside them) and all it imports, which stands above it.
# An import inside a function counts; one for type checkers alone does not.
PERDQN_PARTS = {
    "archive": "",
    "config": "",
    "jit": "",
    "schedules": "",
    "shipped": "",
    "transition": "",
    "arguments": "config",
    "class_path": "config",
    "faults": "config",
    "replay": "jit transition",
    "learning": "class_path config jit transition",
    "acting": "class_path config replay transition",
    "backend": "config",
    "phases": "",
    "experience": "acting config replay schedules transition",
    "evaluation": "acting config transition",
    "recording": "acting config transition",
    "run": "acting recording",
    "reporting": "config replay run shipped",
    "probe": "",
    "diagnostics": "probe",
    "formulas": "",
    "health": "formulas probe replay",
    "advice": "config",
    "fingerprint": "schedules",
    "proving": "config run",
    "handover": "acting archive transition",
    "updates": "backend config learning transition",
    "module": "acting advice config diagnostics evaluation experience handover health learning replay"
    " transition updates",
    "calibration": "backend config evaluation module",
    "preflight": "calibration config learning",
    "fitting": "calibration config learning",
    "perdqn": "module",  # perdqn/__init__.py
    "assembly": "acting advice arguments calibration config faults fitting module preflight run transition",
    "completion": "acting assembly",
    "cli": "acting advice archive assembly completion config fingerprint handover health module proving"
    " recording reporting run shipped",
    "__main__": "cli perdqn",
}
HOLDFAST_PARTS = {
    "around": "",
    "learning_rates": "",
    "advising": "learning_rates",
    "storage": "",
    "resources": "",
    "triggers": "resources",
    "exact": "around storage",
    "boundary": "around exact",
    "scaling": "exact resources storage",
    "auto_scaler": "around boundary scaling",
    "timing": "advising around exact",
    "performance_monitor": "around boundary timing",
    "saving": "around boundary exact storage triggers",
    "checkpoint": "boundary saving storage",
    "ending": "storage triggers",
    "attempts": "resources",
    "flaky_loggers": "exact",
    "emergency": "around boundary checkpoint ending resources saving storage triggers",
    "recovery": "around attempts boundary flaky_loggers learning_rates resources saving storage",
    "tuning_advisor": "advising around boundary",
    "resource_monitor": "boundary exact resources",
    "holdfast": "",  # imported when asked for
}

# The files of each package, in the same order.
PERDQN_FILES = {
    "acting": "__init__ environment guard in_turn vector exactness actor",
    "advice": "rule rules remedies settings metrics __init__",
    "cli": "command_line parsers quiet checkpoints sitting fit resume verify fingerprint examine prove"
    " advise report reading __init__",
    "config": "wording settings values trainer coercion rules summary checks __init__",
    "learning": "__init__ td heads networks target_network greedy objective unlocked inductor compiled",
    "replay": "__init__ memory sum_tree tensor_tree journal memcpy lz4_block buffers frames"
    " compressed_frames rows passes prioritized on_device stored",
    "proving": "__init__ effect arms figures processes until words proof",
    "reporting": "__init__ curves replay_view gather headline charts page",
    "run": "__init__ folder shape advice saves report summary progress record keeping dashboard",
}
HOLDFAST_FILES = {
    "advising": "__init__ advice signals rule statistics names expression threshold general tuner standing"
    " adapting diary vitals run_settings",
    "storage": "__init__ durable manifest generations parts lock",
    "resources": "__init__ kernel_file reader cgroups pressure memory cpu process disk accelerator sampler"
    " history pieces forecast alerts heap release journal watching",
    "triggers": "reason watch pace growth numerics slurm signals deadline preemption memory disk __init__",
    "exact": "__init__ plain rng loaders aside data_position hidden loop_state evaluation exactness logs"
    " resume",
    "scaling": "__init__ knob climb others cache ordinary micro_batch",
    "timing": "__init__ sketch clock clocked kernel actions profiler windows bottlenecks interventions"
    " layers report",
    "saving": "__init__ environment capture save schedule standing save_costs",
}
TABLES = [(PERDQN, PERDQN_PARTS, PERDQN_FILES), (HOLDFAST, HOLDFAST_PARTS, HOLDFAST_FILES)]
each_distribution = pytest.mark.parametrize(("root", "parts", "files"), TABLES, ids=["perdqn", "holdfast"])
PACKAGES = [(root, package, files[package]) for root, _, files in TABLES for package in files]

EXCEPTIONS = {("completion", "__main__"): "the table of commands, which needs no import to be read"}


class Arrow(NamedTuple):
    """One import statement: dotted names of the importing file and of what it imports."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source} (line {self.line}) -> {self.target}"


def arrows_of(package: Path) -> list[Arrow]:
    return [arrow for path in sorted(package.rglob("*.py")) for arrow in arrows_in(path, package.parent)]


def arrows_in(path: Path, root: Path) -> Iterator[Arrow]:
    parts = path.relative_to(root).with_suffix("").parts
    source = ".".join(parts).removesuffix(".__init__")
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Arrow(source, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            for name in (f"{module}.{alias.name}" for alias in node.names):
                yield Arrow(source, name if is_module(root, name) else module, node.lineno)


def is_module(root: Path, name: str) -> bool:
    path = root / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from running(child)


def part_of(name: str) -> str:
    """``perdqn.replay.rows`` is of the part ``replay``, ``perdqn`` itself of ``perdqn``."""
    return name.split(".")[1] if "." in name else name


def file_of(name: str) -> str:
    """``perdqn.replay.rows`` is the file ``rows`` of its package, ``perdqn.replay`` its ``__init__``."""
    return [*name.split("."), "__init__"][2]


def within(package: Path) -> list[Arrow]:
    return [arrow for arrow in arrows_of(package) if arrow.target.split(".")[0] == package.name]


def between_parts(package: Path) -> list[tuple[str, str, Arrow]]:
    pairs = [(part_of(arrow.source), part_of(arrow.target), arrow) for arrow in within(package)]
    return [(source, target, arrow) for source, target, arrow in pairs if source != target]


def named(parts: dict[str, str]) -> set[tuple[str, str]]:
    return {(part, other) for part, imported in parts.items() for other in imported.split()}


def shown(faults: list[Arrow]) -> str:
    return "offending arrows:\n  " + "\n  ".join(map(str, faults))


@each_distribution
def test_every_file_has_its_place_in_the_order(
    root: Path, parts: dict[str, str], files: dict[str, str]
) -> None:
    found = {path.relative_to(root).parts[0].removesuffix(".py") for path in root.rglob("*.py")}
    assert found - {"__init__"} == parts.keys() - {root.name}
    for package, names in files.items():
        assert {path.stem for path in (root / package).glob("*.py")} == set(names.split())


@each_distribution
def test_the_order_has_no_way_back(root: Path, parts: dict[str, str], files: dict[str, str]) -> None:
    above: set[str] = set()
    for part, imported in parts.items():
        assert set(imported.split()) <= above, f"{part} is to import what does not stand above it"
        above.add(part)


@each_distribution
def test_parts_import_only_what_the_order_says(
    root: Path, parts: dict[str, str], files: dict[str, str]
) -> None:
    allowed = {*named(parts), *EXCEPTIONS}
    faults = [a for *pair, a in between_parts(root) if tuple(pair) not in allowed]
    assert not faults, shown(faults)


@each_distribution
def test_the_order_names_no_import_that_is_gone(
    root: Path, parts: dict[str, str], files: dict[str, str]
) -> None:
    found = {(source, target) for source, target, _ in between_parts(root)}
    gone = named(parts) - found
    if root == PERDQN:
        gone |= EXCEPTIONS.keys() - found
    assert not gone, f"remove from the table: {sorted(gone)}"


@pytest.mark.parametrize(("root", "package", "files"), PACKAGES, ids=[package for _, package, _ in PACKAGES])
def test_files_of_a_package_import_only_those_before_them(root: Path, package: str, files: str) -> None:
    order = files.split()
    inside = [a for a in within(root) if part_of(a.source) == part_of(a.target) == package]
    faults = [a for a in inside if order.index(file_of(a.target)) >= order.index(file_of(a.source))]
    assert not faults, shown(faults)


def third_party(package: Path) -> list[Arrow]:
    own = {*sys.stdlib_module_names, package.name}
    return [arrow for arrow in arrows_of(package) if arrow.target.split(".")[0] not in own]


def test_holdfast_imports_nothing_it_does_not_depend_on() -> None:
    project = tomllib.loads((HOLDFAST.parent / "pyproject.toml").read_text())["project"]
    declared = {Requirement(line).name for line in project["dependencies"]}
    faults = [arrow for arrow in third_party(HOLDFAST) if arrow.target.split(".")[0] not in declared]
    assert declared == {"lightning", "numpy", "psutil", "torch", "torchmetrics"}
    assert not faults, shown(faults)


@pytest.mark.parametrize("package", [PERDQN, HOLDFAST], ids=["perdqn", "holdfast"])
def test_there_is_one_lightning(package: Path) -> None:
    # the callbacks and modules of `pytorch_lightning` are other classes than those of `lightning.pytorch`
    names = [arrow for arrow in third_party(package) if "lightning" in arrow.target.split(".")[0]]
    homes = ("lightning.pytorch.", "lightning.fabric.")
    faults = [arrow for arrow in names if not f"{arrow.target}.".startswith(homes)]
    assert names
    assert not faults, shown(faults)


@pytest.mark.parametrize(
    "module",
    ["perdqn", "perdqn.config", "perdqn.__main__", "perdqn.cli.verify", "holdfast.storage.generations"],
)
def test_what_must_answer_at_once_imports_nothing_heavy(module: str) -> None:
    heavy = {"torch", "lightning", "gymnasium", "numpy", "numba", "jsonargparse"}
    script = f"import sys, {module}; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
