"""Builds TorchRL's compiled part from the sources in its wheel, where the one in there does not load.

Knows nothing about benchmarks; runs in TorchRL's own environment. No wheel of TorchRL up to 0.14.1 loads
beside torch 2.13.0, and without that part there is no prioritized replay. Needs a C++ compiler.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch  # noqa: F401 - the compiled part needs its libraries loaded
from torch.utils import cpp_extension

FLAGS = ["-O3", "-std=c++20", "-shared", "-fPIC", "-DTORCH_EXTENSION_NAME=_torchrl"]
LIBRARIES = ["-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]


def is_loadable() -> bool:
    check = [sys.executable, "-P", "-c", "import torch, torchrl._torchrl"]
    return subprocess.run(check, capture_output=True).returncode == 0


def build() -> None:
    spec = find_spec("torchrl")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    sources = [str(package / "csrc" / name) for name in ("pybind.cpp", "utils.cpp")]
    headers = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_path("include"))]
    libraries = [f for p in cpp_extension.library_paths() for f in (f"-L{p}", f"-Wl,-rpath,{p}")]
    target = str(package / f"_torchrl{sysconfig.get_config_var('EXT_SUFFIX')}")
    command = ["c++", *FLAGS, *headers, *sources, *libraries, *LIBRARIES, "-o", target]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    if not is_loadable():
        build()
    if not is_loadable():
        sys.exit("TorchRL's compiled part does not load")
