"""Kernels where nothing can be cached: a read-only installation without a writable home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import perdqn
from perdqn import jit

USE_KERNELS = """
import numpy as np
from perdqn.replay.sum_tree import SumTree
tree = SumTree(4)
tree.set(np.array([1, 3]), np.array([2.0, 3.0]))
assert tree.find(np.array([0.0, 2.5])).tolist() == [1, 3]
print("found")
"""


@pytest.fixture
def installation(tmp_path):
    """The replay's kernels in a folder of their own; returns a function that runs them there."""
    package = tmp_path / "site" / "perdqn"
    source = Path(perdqn.__file__).parent
    for name in ("__init__.py", "jit.py", "replay/__init__.py", "replay/sum_tree.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, package / name)

    def run():
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "PYTHON", "COV"))}
        environment |= {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
        # nothing can be made below a file, whoever we are: root ignores permissions
        environment |= {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"}
        command = [sys.executable, "-W", "always", "-c", USE_KERNELS]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    run.package = package
    return run


def test_a_read_only_installation_without_a_writable_home_works_and_warns_once(installation):
    for folder in (installation.package, installation.package / "replay"):
        (folder / "__pycache__").write_text("a file, so that no folder can be made here")
    done = installation()
    assert done.stdout == "found\n", done.stderr
    assert done.stderr.count("compiled kernels cannot be cached") == 1
    assert "NUMBA_CACHE_DIR" in done.stderr


def test_a_writable_installation_caches_beside_its_sources_and_warns_of_nothing(installation):
    done = installation()
    assert (done.stdout, done.stderr) == ("found\n", "")
    assert list((installation.package / "replay" / "__pycache__").glob("sum_tree.*.nbi"))


def test_any_other_error_of_the_compiler_is_raised(monkeypatch):
    def fail(**options):
        raise RuntimeError("out of registers")

    monkeypatch.setattr(numba, "njit", fail)
    with pytest.raises(RuntimeError, match="out of registers"):
        jit.kernel(lambda x: x)


def test_a_kernel_computes_what_its_python_source_says():
    def running_maximum(values):
        out = values.copy()
        for i in range(1, out.size):
            out[i] = max(out[i], out[i - 1])
        return out

    values = np.random.default_rng(0).normal(size=20)
    np.testing.assert_array_equal(jit.kernel(running_maximum)(values), running_maximum(values))
