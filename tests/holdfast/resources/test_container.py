"""In a memory control group of 600 MiB, what is reported is what the kernel counts, until it kills."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "observability" / "container.py"


@pytest.fixture(scope="module")
def container() -> ModuleType:
    spec = importlib.util.spec_from_file_location("container", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["container"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reported_share_is_within_three_points_of_the_kernels(container: ModuleType) -> None:
    if (group := container.make_group()) is None:
        pytest.skip("no memory control group can be made here: it takes root and a writable hierarchy")
    try:
        steps, last = container.compare(group)
    finally:
        group.remove()
    assert len(steps) >= 10
    assert max(step.difference for step in steps) <= 3, container.table(steps)
    assert max(step.kernel_used for step in steps) > 0.5
    assert 0.97 <= last <= 1.03
