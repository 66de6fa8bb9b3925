"""A function of tensors, compiled ahead of time by torch's inductor and kept on disk.

Knows nothing about learning. What was compiled once is loaded in milliseconds, and without a compiler.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from perdqn.learning.unlocked import Unlocked

CACHE_VARIABLE = "PERDQN_CACHE_DIR"
OPTIONS: dict[str, Any] = {"compile_threads": 1}  # no pool of compiling processes stays behind


class NotCompilable(RuntimeError):
    """No compiled graph can be had here; says why."""


def trace(function: nn.Module, inputs: list[Tensor]) -> Any:
    """The program of ``function(*inputs)``, whose changes to its inputs are kept as such.

    Raises:
        NotCompilable: it cannot be traced, or draws random numbers, which would be others once compiled.
    """
    with tracing():
        graph = make_fx(function.forward, tracing_mode="fake")(*inputs)
        program = torch.export.export(graph, tuple(inputs), strict=False)
    for node in program.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotCompilable(f"the network draws random numbers in its forward pass ({node.target})")
    return program


@contextmanager
def tracing() -> Iterator[None]:
    """What goes wrong in here is `NotCompilable`."""
    try:
        with _quiet():
            yield
    except Exception as error:
        raise NotCompilable(f"the network cannot be traced: {_first_line(error)}") from error


class Program(NamedTuple):
    """Machine code: ``run`` takes and returns lists of tensors, and holds Python's lock all the while."""

    package: Path
    run: Callable[[list[Tensor]], list[Tensor]]

    def unlocked(self, num_inputs: int) -> Callable[[list[Tensor]], list[Tensor]]:
        """`run` without the lock where that can be had, else as it is; the same bits."""
        try:
            return Unlocked(self.package, num_inputs)
        except (OSError, AttributeError) as error:
            warnings.warn(f"{error}: acting waits for each update, as without act_ahead", stacklevel=2)
            return self.run


def load(program: Any, inputs: list[Tensor], on_compile: Callable[[], None] = lambda: None) -> Program:
    """``program`` as machine code, compiled if it is not on disk yet, which ``on_compile`` is told before.

    Raises:
        NotCompilable: it is not on disk, and cannot be compiled.
    """
    path = cache_folder() / f"{_key(program, inputs)}.pt2"
    if not path.exists():
        on_compile()
        _compile(program, path)
    try:
        return _open(path)
    except Exception:  # torn, or of a torch that was built otherwise
        path.unlink(missing_ok=True)
        _compile(program, path)
        return _open(path)


def cache_folder() -> Path:
    """Where machine code is kept: ``PERDQN_CACHE_DIR``, else ``perdqn`` in the user's folder for caches."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perdqn"


def _open(path: Path) -> Program:
    with _quiet():
        return Program(path, torch._inductor.aoti_load_package(str(path)).loader.run)


def _compile(program: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _quiet(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = torch._inductor.aoti_compile_and_package(
                program, package_path=f"{folder}/step.pt2", inductor_configs=dict(OPTIONS)
            )
            os.replace(made, path)
    except Exception as error:
        raise NotCompilable(f"compiling failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).strip().splitlines()[:1]])


def _key(program: Any, inputs: list[Tensor]) -> str:
    """Of all that decides the machine code: operations, shapes, constants, torch, processor, threads."""
    shapes = [(tuple(x.shape), x.stride(), str(x.dtype), str(x.device)) for x in inputs]
    told = (str(program.graph), shapes, torch.__version__, torch.get_num_threads(), _processor(), OPTIONS)
    digest = hashlib.sha256(repr(told).encode())
    for name, constant in sorted(program.constants.items()):
        digest.update(name.encode() + constant.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _processor() -> tuple[str, ...]:
    """Code is made for the instructions of the machine it is compiled on."""
    flags: str = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return platform.machine(), torch.backends.cpu.get_cpu_capability(), flags, gpu


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing and compiling warn of torch's own insides."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
