"""Hands a trained agent over: one file to go on from, or a program to act with.

Knows nothing about runs or checkpoints; it reads and fills a `PERDQN` through its public attributes.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from holdfast.storage.durable import write_whole
from torch import Tensor, nn

from perdqn.acting.environment import MissingExtra
from perdqn.archive import find_fault
from perdqn.transition import Column, EnvSpec

if TYPE_CHECKING:
    from perdqn.module import PERDQN

FORMAT = "perdqn-model"
VERSION = 1
MAX_DIFFERENCE = 1e-4  # of float32 values up to 1, added up in another order; larger ones in proportion
Program = Callable[..., Tensor]  # inputs by name to q_values
_PLAIN = (type(None), bool, int, float, str)


# -- one file ------------------------------------------------------------------------------------


def save_model(
    module: PERDQN,
    path: str | Path,
    save_optimizer: bool = True,
    include_memory: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the agent to one file of plain types, readable with ``torch.load(path, weights_only=True)``.

    The file appears whole or not at all: it is written beside ``path``, flushed, read back and renamed.

    Args:
        save_optimizer: with the optimiser's state, where training has made one.
        include_memory: with the replay, which takes about as many bytes as it does in memory.
        metadata: the caller's own entries, kept under ``user``; None, bool, int, float, str, and
            lists and dicts of them.

    Raises:
        ValueError: an entry is not of these types.
    """
    user = dict(metadata or {})
    _check_plain(user, "metadata")
    config = asdict(module.config)
    _check_plain(config, "config")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": config,
        "num_actions": module.spec.num_actions,
        "online": _on_cpu(dict(module.online.state_dict())),
        "target": _on_cpu(dict(module.target.state_dict())),
        "optimizer": _on_cpu(_get_optimizer_state(module)) if save_optimizer else None,
        "memory": module.memory.state_dict() if include_memory else None,
        "metadata": _describe(module) | {"user": user},
    }
    write_whole(Path(path), lambda file: torch.save(content, file))


def load_model(
    module: PERDQN,
    path: str | Path,
    strict: bool = True,
    device_override: str | torch.device | None = None,
) -> dict[str, Any]:
    """Fill the module with a saved agent: its weights, and the optimiser and replay where the file has them.

    Counters stay as they are, so that schedules follow the module's own run; the saved ones are in the
    metadata. Nothing is changed where the file is refused.

    Args:
        strict: refuse another architecture; False loads the parameters that fit, and only these.
        device_override: move the module there. Without it the module stays where it is, wherever the
            file was written.

    Returns:
        The file's metadata, and under ``not_loaded`` a sentence for each parameter that did not fit.

    Raises:
        ValueError: the file is none of ours, is damaged, or does not fit; names path and reason.
    """
    path = Path(path)
    content = _read(path)
    faults = {name: _compare(content[name], getattr(module, name)) for name in ("online", "target")}
    if strict:
        _check_fit(content, module, faults, path)
    is_whole = not any(faults.values())
    if content["memory"] is not None and is_whole:
        _load_memory(module, content["memory"], path)
    for name in faults:
        _fill(getattr(module, name), content[name])
    if content["optimizer"] is not None and is_whole:
        _set_optimizer_state(module, content["optimizer"])
    if device_override is not None:
        module.to(device_override)
    not_loaded = [f"{name}.{fault}" for name, each in faults.items() for fault in each]
    return content["metadata"] | {"not_loaded": not_loaded}


def _describe(module: PERDQN) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(module.device),
        "versions": {name: _get_version(name) for name in ("perdqn", "torch", "lightning")},
        "training_state": {
            "env_steps": int(module.env_steps),
            "update_steps": int(module.update_steps),
            "episodes": int(module.episodes),
        },
    }


def _get_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def _check_plain(value: Any, key: str) -> None:
    # by type, not isinstance: numpy's float64 is a float, and weights_only refuses it
    if type(value) is dict:
        for name, item in value.items():
            if type(name) is not str:
                raise ValueError(f"{key} must have str keys, got {name!r}")
            _check_plain(item, f"{key}.{name}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{key}[{index}]")
    elif type(value) not in _PLAIN:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(f"{key} must be None, bool, int, float, str, or lists and dicts of them, got {kind}")


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # a view would drag its whole storage into the file
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is {'not a file' if path.exists() else 'missing'}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a file written by torch.save, or not all of one")
    if fault := find_fault(path):
        raise ValueError(f"{path} is damaged: {fault}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds objects that need code to be run; a model holds none") from error
    except Exception as error:  # torch raises what its reader meets: RuntimeError, KeyError, OSError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file written by torch.save, or damaged: {reason}") from error
    _check_format(content, path)
    return content


def _check_format(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        is_checkpoint = isinstance(content, dict) and "pytorch-lightning_version" in content
        hint = "; it is a Lightning checkpoint: use PERDQN.load_from_checkpoint" if is_checkpoint else ""
        raise ValueError(f"{path} is not a model written by PERDQN.save_model{hint}")
    found = content.get("version")
    if type(found) is not int or found < 1:
        raise ValueError(f"{path} is damaged: its format version is {found!r}")
    if found > VERSION:
        raise ValueError(
            f"{path} has format version {found}, newer than {VERSION}: upgrade perdqn to read it"
        )
    kinds = {"online": dict, "target": dict, "metadata": dict, "num_actions": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    wrong += [name for name in ("optimizer", "memory") if not isinstance(content.get(name, 0), dict | None)]
    if wrong:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(wrong)}")


def _check_fit(content: dict[str, Any], module: PERDQN, faults: dict[str, list[str]], path: Path) -> None:
    saved, own = content["num_actions"], module.spec.num_actions
    if saved != own:
        raise ValueError(f"{path} is an agent of {saved} actions, but {module.config.env.id} has {own}")
    if faults["online"]:
        raise ValueError(f"{path} has another architecture: {'; '.join(faults['online'])}")
    if faults["target"]:
        raise ValueError(f"{path} has another target network: {'; '.join(faults['target'])}")


def _compare(saved: Mapping[str, Any], network: nn.Module) -> list[str]:
    """A sentence for every parameter or buffer that is not in both, in one shape."""
    own = network.state_dict()
    missing = [f"{name} is missing" for name in own if name not in saved]
    unexpected = [f"{name} is unexpected" for name in saved if name not in own]
    reshaped = [
        f"{name} has shape {_shape(saved[name])}, not {_shape(own[name])}"
        for name in own
        if name in saved and _shape(saved[name]) != _shape(own[name])
    ]
    return missing + unexpected + reshaped


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _fill(network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    fits = {name: saved[name] for name in own if name in saved and _shape(saved[name]) == _shape(own[name])}
    network.load_state_dict(fits, strict=False)


def _load_memory(module: PERDQN, state: dict[str, Any], path: Path) -> None:
    try:
        module.memory.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} holds a replay that does not fit model.replay: {error}") from error


def _get_optimizer_state(module: PERDQN) -> dict[str, Any] | None:
    attached = module._trainer  # module.trainer raises where there is none
    if attached is not None and attached.optimizers:
        return attached.optimizers[0].state_dict()
    return module.initial_optimizer_state


def _set_optimizer_state(module: PERDQN, state: dict[str, Any]) -> None:
    """For the optimiser of the running fit, if any, and for the one the next fit makes."""
    module.initial_optimizer_state = state  # type: ignore[assignment]
    for optimizer in module._trainer.optimizers if module._trainer is not None else []:
        fill_optimizer(optimizer, state)


def fill_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the saved moments; learning rate and the like stay as the optimiser was made."""
    optimizer.load_state_dict(
        {**copy.deepcopy(state), "param_groups": optimizer.state_dict()["param_groups"]}
    )


# -- a program -----------------------------------------------------------------------------------


def export(module: PERDQN, path: str | Path) -> float:
    """Write the policy as a program from observations to ``q_values`` [batch, actions], and check it.

    Its inputs are named as the observation's columns, of the environment's dtypes, with any batch size;
    the network computes in float32. The action is the largest value's index plus the environment's
    smallest action.

    Args:
        path: ends in ``.onnx`` or in ``.pt2`` (`torch.export`).

    Returns:
        Largest absolute difference between program and network on random observations.

    Raises:
        ValueError: another suffix, a package is missing, or the program computes something else.
    """
    path = Path(path)
    _check_can_export(path)
    plain = copy.deepcopy(module.online).cpu().float().to(memory_format=torch.contiguous_format).eval()
    network = _QValues(plain, module.spec)
    program = _trace(network, module.spec)
    content = _to_onnx(program) if path.suffix == ".onnx" else _to_pt2(program)
    run = _open_onnx(content) if path.suffix == ".onnx" else _open_pt2(content)
    difference = _get_difference(network, run, module.spec, path)
    write_whole(path, lambda file: file.write(content))
    return difference


class _QValues(nn.Module):
    """The network with its columns as named inputs."""

    def __init__(self, network: nn.Module, spec: EnvSpec) -> None:
        super().__init__()
        self.network = network
        column_of = {_input_name(column): column.name for column in spec.columns}

        def forward(**inputs: Tensor) -> Tensor:
            obs = {column_of[name]: value for name, value in inputs.items()}
            return network.q_values(obs)  # type: ignore[operator]

        # torch.export takes the names of inputs from the signature
        named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in column_of]
        forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        self.forward = forward


def _input_name(column: Column) -> str:
    """The column's name, as an identifier."""
    name = re.sub(r"\W|^(?=\d)", "_", column.name)
    return f"{name}_" if iskeyword(name) else name


def _check_can_export(path: Path) -> None:
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path} must end in .onnx or .pt2")
    needed = ("onnx", "onnxscript", "onnxruntime") if path.suffix == ".onnx" else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise MissingExtra(f"{path.name} needs {' and '.join(missing)}: pip install 'perdqn[export]'")


def _trace(network: nn.Module, spec: EnvSpec) -> torch.export.ExportedProgram:
    example = _draw_obs(spec, 3, np.random.default_rng(0))
    batch = torch.export.Dim("batch")
    dynamic_shapes = {name: {0: batch} for name in example}
    return torch.export.export(network, (), example, dynamic_shapes=dynamic_shapes, strict=False)


def _draw_obs(spec: EnvSpec, batch_size: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Random observations by input name, [batch_size, (stack,) *shape]."""
    return {
        _input_name(column): torch.from_numpy(
            _draw_column(column, (batch_size, *spec.obs_shape(column)), rng)
        )
        for column in spec.columns
    }


def _draw_column(column: Column, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if column.num_values is not None:
        return rng.integers(column.start, column.start + column.num_values, shape).astype(column.dtype)
    if column.dtype.kind == "f":
        return rng.standard_normal(shape).astype(column.dtype)
    return rng.integers(0, 2 if column.dtype.kind == "b" else 128, shape).astype(column.dtype)


def _to_pt2(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _open_pt2(content: bytes) -> Program:
    return torch.export.load(io.BytesIO(content)).module()


def _to_onnx(program: torch.export.ExportedProgram) -> bytes:
    names = list(program.graph_signature.user_inputs)
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it regrets at length that there is no torchvision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's exporter about torch
            written = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=["q_values"], verbose=False
            )
    finally:
        registration.setLevel(level)
    assert written is not None  # only its older exporter returns nothing
    return written.model_proto.SerializeToString()


def _open_onnx(content: bytes) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(**inputs: Tensor) -> Tensor:
        (q_values,) = session.run(["q_values"], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(q_values)

    return run


@torch.no_grad()
def _get_difference(network: nn.Module, run: Program, spec: EnvSpec, path: Path) -> float:
    rng = np.random.default_rng(1)
    largest = 0.0
    for batch_size in (1, 5, 64):
        obs = _draw_obs(spec, batch_size, rng)
        expected = network(**obs)
        difference = (run(**obs) - expected).abs().max().item()
        if not difference <= MAX_DIFFERENCE * max(1.0, expected.abs().max().item()):
            raise ValueError(
                f"{path.name} would differ from the network by {difference:.2g}; nothing is written"
            )
        largest = max(largest, difference)
    return largest
