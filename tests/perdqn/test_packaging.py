"""What is installed: two distributions, shipped configs, pinned versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from perdqn import shipped

ROOT = Path(__file__).parents[2]
NAMES = ["acrobot", "atari", "cartpole", "guarded", "lunarlander", "minatar"]


def read_project(path: Path) -> dict:
    return tomllib.loads(path.read_text())["project"]


def read_constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {name: version for name, _, version in pins}


def test_configs_are_found_in_this_install() -> None:
    assert shipped.get_names() == NAMES


@pytest.mark.parametrize("folder", [".", "callbacks"])
def test_wheel_holds_its_package_and_no_other(tmp_path: Path, folder: str) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / folder, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    package = "perdqn" if folder == "." else "holdfast"
    assert {name.split("/")[0] for name in files if ".dist-info" not in name} == {package}
    assert f"{package}/py.typed" in files
    if folder == ".":
        assert {f"perdqn/configs/{name}.yaml" for name in NAMES} <= set(files)


def test_configs_are_found_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "perdqn"
    (installed / "configs").mkdir(parents=True)
    (installed / "configs" / "cartpole.yaml").touch()
    monkeypatch.setattr(shipped, "__file__", str(installed / "shipped.py"))
    assert shipped.get_names() == ["cartpole"]


def test_every_direct_requirement_is_pinned_within_its_range() -> None:
    pins = read_constraints()
    projects = [read_project(ROOT / "pyproject.toml"), read_project(ROOT / "callbacks" / "pyproject.toml")]
    wanted = [Requirement(text) for project in projects for text in project["dependencies"]]
    extras = projects[0]["optional-dependencies"].values()
    wanted += [Requirement(text) for extra in extras for text in extra]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name not in ("perdqn", "lightning-holdfast"):
            assert requirement.specifier.contains(pins[name]), (
                f"{requirement} excludes the pinned {pins[name]}"
            )


def test_torch_is_pinned() -> None:
    assert read_constraints()["torch"] == "2.13.0"


def test_holdfast_needs_lightning_what_it_brings_along_and_psutil_alone() -> None:
    needed = read_project(ROOT / "callbacks" / "pyproject.toml")["dependencies"]
    brought_along = {"numpy", "torch", "torchmetrics"}
    assert {Requirement(text).name for text in needed} == {"lightning", "psutil"} | brought_along


def test_holdfast_knows_nothing_of_reinforcement_learning() -> None:
    sources = (ROOT / "callbacks" / "holdfast").glob("*.py")
    found = [
        path.name for path in sources if re.search(r"perdqn|gymnasium|pytorch_lightning", path.read_text())
    ]
    assert not found


def test_perdqn_depends_on_holdfast_and_its_console_script_is_the_dispatcher() -> None:
    installed = distribution("perdqn")
    assert any(Requirement(text).name == "lightning-holdfast" for text in installed.requires or [])
    (script,) = [entry for entry in installed.entry_points if entry.group == "console_scripts"]
    assert (script.name, script.value) == ("perdqn", "perdqn.__main__:main")
