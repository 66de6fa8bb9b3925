"""Settings given from Python as dicts and strings, turned into the dataclasses.

Knows nothing about which values are sensible; a value of a wrong type is left as it is for `check` to name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from perdqn.config.settings import ClassSpec, Config, EnvConfig
from perdqn.config.wording import sentence, unknown

T = TypeVar("T")
SHORT_FORMS = {EnvConfig: "id", ClassSpec: "class_path"}  # what a plain string stands for


class ConfigError(ValueError):
    """Settings that cannot work.

    Args:
        faults: one sentence each; all of them are in the message.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = list(faults)
        heading = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n  - ".join([f"{heading} in the settings", *faults]))


def coerce(cls: type[T], value: Any, key: str | None = None) -> T:
    """``value`` as a new ``cls``.

    Args:
        cls: one of the dataclasses of settings.
        value: a ``cls``, a mapping of its settings, or for `EnvConfig` and `ClassSpec` a string.
        key: how the user names it, such as ``model.env``.

    Raises:
        ConfigError: unknown or missing names, or nothing that ``cls`` could be made of.
    """
    faults: list[str] = []
    made = _make(cls, value, _key_of(cls) if key is None else key, faults)
    if faults:
        raise ConfigError(faults)
    return made


def read(data: Mapping[str, Any] | Config) -> tuple[Config, list[str]]:
    """A `Config` of what can be used of ``data``, and a fault for all that cannot."""
    faults: list[str] = []
    return _make(Config, data, "model", faults), faults


def _key_of(cls: type) -> str:
    sections = {
        hint: f"model.{name}" for name, hint in get_type_hints(Config).items() if hint is not ClassSpec
    }
    return "model" if cls is Config else sections.get(cls, cls.__name__)


def _make(cls: Any, value: Any, key: str, faults: list[str]) -> Any:
    if isinstance(value, cls):
        value = {f.name: getattr(value, f.name) for f in fields(cls)}
    elif isinstance(value, str) and cls in SHORT_FORMS:
        value = {SHORT_FORMS[cls]: value}
    if not isinstance(value, Mapping):
        short = ", a string" if cls in SHORT_FORMS else ""
        must = f"be a dict of its settings{short} or an object of {cls.__name__}"
        faults.append(sentence(key, must, value))
        value = {}
    hints = get_type_hints(cls)
    faults += [unknown(f"{key}.{name}", [f"{key}.{h}" for h in hints]) for name in value if name not in hints]
    if cls is ClassSpec and "class_path" not in value:
        faults.append(f"{key} must name a class_path, got {dict(value)!r}")
        return ClassSpec("auto")
    return cls(**{n: _convert(hints[n], v, f"{key}.{n}", faults) for n, v in value.items() if n in hints})


def _convert(hint: Any, value: Any, key: str, faults: list[str]) -> Any:
    """``value`` in the plain type that ``hint`` asks for, where nothing is lost by it."""
    if is_dataclass(hint):
        return _make(hint, value, key, faults)
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return value if value is None else _convert(options[0], value, key, faults)
    if get_origin(hint) is list and isinstance(value, list | tuple):
        return [_convert(get_args(hint)[0], item, f"{key}[{i}]", faults) for i, item in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    return value
