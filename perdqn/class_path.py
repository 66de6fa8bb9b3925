"""Classes named in a configuration: imported by path or short name, called with checked arguments.

Knows nothing about what the classes are.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from perdqn.config import ClassSpec


def resolve(
    spec: ClassSpec, short_names: Mapping[str, Callable[..., Any]], setting: str = "class_path"
) -> Callable[..., Any]:
    """The class or function that ``spec.class_path`` names.

    Args:
        spec: the user's choice.
        short_names: what may be named without an import path.
        setting: how the user calls this setting, for errors: ``model.network``.

    Raises:
        ValueError: nothing can be imported by that name, or it cannot be called.
    """
    path = spec.class_path
    if path in short_names:
        return short_names[path]
    if "." not in path:
        choices = ", ".join([*short_names, "an import path like package.module.Name"])
        raise ValueError(f"{setting} must be one of {choices}, got {path!r}{_nearest(path, short_names)}")
    found = _import(path, setting)
    if not callable(found):
        raise ValueError(f"{setting} must name a class or a function, but {path} is a {type(found).__name__}")
    return found


def instantiate(
    spec: ClassSpec, short_names: Mapping[str, Callable[..., Any]], setting: str, *args: Any, **given: Any
) -> Any:
    """Call what ``spec`` names with ``args``, ``given`` and the user's ``init_args``.

    Raises:
        ValueError: as `resolve`; or ``init_args`` do not fit the signature.
    """
    target = resolve(spec, short_names, setting)
    check_init_args(target, spec.init_args, setting, *args, **given)
    return target(*args, **given, **spec.init_args)


def check_init_args(
    target: Callable[..., Any], init_args: Mapping[str, Any], setting: str, *args: Any, **given: Any
) -> None:
    """Raise ValueError with all that keeps ``target(*args, **given, **init_args)`` from being called."""
    signature = _signature(target)
    if signature is None:
        return
    taken = {*list(signature.parameters)[: len(args)], *given}
    faults = [*_misnamed(target, signature, init_args, taken, setting)]
    faults += [
        f"{setting}.init_args.{name} is missing: {_name(target)} cannot be made without it"
        for name in _named(signature)
        if name not in {*taken, *init_args} and signature.parameters[name].default is inspect.Parameter.empty
    ]
    if not faults:
        try:
            signature.bind(*args, **given, **init_args)
        except TypeError as error:
            faults.append(f"{setting}: {_name(target)}{signature} cannot be called as perdqn does: {error}")
    if faults:
        raise ValueError("; ".join(faults))


def accepts(target: Callable[..., Any], name: str) -> bool:
    """Whether ``target`` can be called with the keyword argument ``name``."""
    signature = _signature(target)
    return signature is not None and (name in _named(signature) or _takes_any_name(signature))


def _misnamed(
    target: Callable[..., Any],
    signature: inspect.Signature,
    init_args: Mapping[str, Any],
    taken: Container[str],
    setting: str,
) -> Iterator[str]:
    free = [name for name in _named(signature) if name not in taken]
    for name in init_args:
        if name in taken:
            yield f"{setting}.init_args.{name} is filled in by perdqn; remove it"
        elif name not in free and not _takes_any_name(signature):
            takes = f"{_name(target)} takes {', '.join(free) or 'no arguments'}"
            yield f"{setting}.init_args.{name} does not exist: {takes}{_nearest(name, free)}"


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except ValueError:  # some classes written in C have none
        return None


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", repr(target))


def _import(path: str, setting: str) -> Any:
    """Import the longest prefix that is a module; the rest are attributes, so that Outer.Inner works."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise ValueError(f"{setting}: importing {module_name} failed: {error}") from error
        except Exception as error:  # whatever the user's module raises
            raise ValueError(
                f"{setting}: importing {module_name} failed: {type(error).__name__}: {error}"
            ) from error
        else:
            return _attribute(found, parts[length:], path, setting)
    raise ValueError(f"{setting}: there is no module {parts[0]} to import {path} from; is it installed?")


def _attribute(found: Any, names: Iterable[str], path: str, setting: str) -> Any:
    for name in names:
        if not hasattr(found, name):
            where = getattr(found, "__name__", repr(found))
            public = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise ValueError(
                f"{setting}: {path} names nothing: {where} has no {name}{_nearest(name, public)}"
            )
        found = getattr(found, name)
    return found


def _named(signature: inspect.Signature) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in signature.parameters.values() if p.kind in kinds]


def _takes_any_name(signature: inspect.Signature) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())


def _nearest(name: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""
