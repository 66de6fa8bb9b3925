"""Every fault of a command line and its YAML files in one list, in the words the user typed.

Knows nothing about what is run.

The parser stops at its first fault. Here each setting the user gave is put before the parser alone, and
what passes is then judged together by `perdqn.config.check`. This is slow (a parse per setting), so it is
for command lines that are known to be faulty.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, get_loader

from perdqn.config import Config, check, read
from perdqn.config.trainer import trainer_faults
from perdqn.config.values import HINTS, own_fault
from perdqn.config.wording import nearest, sentence, shown, unknown


@dataclass(frozen=True)
class Given:
    """One setting as the user gave it.

    Args:
        key: dotted name as typed.
        args: what says the same to the parser.
        origin: the file or environment variable it stands in; empty for the command line.
    """

    key: str
    value: Any
    args: list[str]
    origin: str = ""


@dataclass
class Names:
    """What a parser knows: ``units`` are read as a whole, ``groups`` hold units."""

    units: set[str]
    groups: set[str]

    @classmethod
    def of(cls, parser: ArgumentParser) -> Names:
        given = {a.dest for a in parser._actions if not a.dest.endswith("help") and a.dest != "print_config"}
        groups = {name.rpartition(".")[0] for name in given}
        parents = {group[:i] for group in groups for i, char in enumerate(group) if char == "."}
        return cls(given - groups - parents, (groups | parents) - {""})

    def unit_of(self, key: str) -> str | None:
        """The unit that ``key`` is, or is a part of."""
        parts = key.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        unit = next((prefix for prefix in prefixes if prefix in self.units), None)
        if unit and unit != key and _is_scalar(unit):
            return None
        return unit

    def unknown(self, key: str) -> str:
        return unknown(key, sorted(self.units | self.groups))


@dataclass
class Gathered:
    """What the user gave, in order, and what could not even be read."""

    given: list[Given] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def collect(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """A sentence for each fault; empty exactly where the parser and `check` accept everything.

    Args:
        parser: of one subcommand, with the settings of `Config` under ``model`` and the Trainer's under
            ``trainer``.
        argv: what follows the subcommand; each ``--config`` names a file.
    """
    names = Names.of(parser)
    gathered = _gather(parser, argv, names)
    faults = gathered.faults
    units: dict[str, list[Given]] = {}
    for given in gathered.given:
        unit = names.unit_of(given.key)
        if unit is None:
            faults.append(_located(names.unknown(given.key), given.origin))
        else:
            units.setdefault(unit, []).append(given)
    with _without_exit(parser):
        faulty = {unit: text for unit, pieces in units.items() if (text := _unit_fault(parser, unit, pieces))}
        faults += [_located(text, units[unit][-1].origin) for unit, text in faulty.items()]
        sound = [given for given in gathered.given if names.unit_of(given.key) not in {None, *faulty}]
        settings, failure = _parse(parser, sound)
    if failure:
        return faults or [_first_line(failure)]
    for text in _judge_together(settings, {unit.removeprefix("model.") for unit in faulty}):
        origins = [given.origin for given in units.get(text.split(" ", 1)[0], [])]
        faults.append(_located(text, origins[-1] if origins else ""))
    return list(dict.fromkeys(faults))


def _judge_together(settings: dict[str, Any], known_faulty: set[str]) -> list[str]:
    own = {f.name for f in fields(Config)}
    config, faults = read({name: v for name, v in settings.get("model", {}).items() if name in own})
    faulty = known_faulty | {key.partition(".")[0] for key in known_faulty if key not in HINTS}
    return faults + check(config, trainer=settings.get("trainer"), known_faulty=faulty).faults


def _located(text: str, origin: str) -> str:
    return f"{text} (in {origin})" if origin else text


def _gather(parser: ArgumentParser, argv: list[str], names: Names) -> Gathered:
    found = Gathered()
    _gather_environment(parser, names, found)
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, has_value, value = token.partition("=")
        if not token.startswith("-") or token == "--":
            found.faults.append(
                f"{token} is not an option; settings are given as --name=value or --name value"
            )
            continue
        action = parser._option_string_actions.get(name)
        if name == "--print_config" or (action is not None and action.nargs == 0):
            continue
        if not has_value:
            if not tokens or tokens[0].startswith("--"):
                missing = f"{name} needs a value" if action else names.unknown(name.lstrip("-"))
                found.faults.append(missing)
                continue
            value = tokens.pop(0)
        _gather_argument(parser, name, value, names, found)
    return found


def _gather_argument(parser: ArgumentParser, name: str, value: str, names: Names, found: Gathered) -> None:
    key = name.lstrip("-").removesuffix("+")
    if name in ("-c", "--config"):
        _gather_file(parser, value, "", names, found)
    elif key.endswith(".help"):
        return
    elif key in names.groups and Path(value).is_file():
        _gather_file(parser, value, key, names, found)
    elif key in names.groups:
        _gather_tree(parser, _load(parser, value), key, "", names, found)
    else:
        found.given.append(Given(key, _load(parser, value), [f"{name}={value}"]))


def _gather_environment(parser: ArgumentParser, names: Names, found: Gathered) -> None:
    for unit in sorted(names.units) if parser.default_env else ():
        variable = f"{parser.env_prefix}_{unit.replace('.', '__')}".upper()
        if (value := os.environ.get(variable)) is None:
            continue
        if unit == "config":
            _gather_file(parser, value, "", names, found)
        else:
            found.given.append(Given(unit, _load(parser, value), [f"--{unit}={value}"], variable))


def _gather_file(parser: ArgumentParser, path: str, key: str, names: Names, found: Gathered) -> None:
    try:
        tree = get_loader(parser.parser_mode)(Path(path).read_text())
    except OSError as error:
        found.faults.append(f"--config {path} cannot be read: {error.strerror or error}")
    except (yaml.YAMLError, ValueError) as error:
        found.faults.append(f"--config {path} is not YAML: {' '.join(str(error).split())}")
    else:
        _gather_tree(parser, {} if tree is None else tree, key, path, names, found)


def _gather_tree(
    parser: ArgumentParser, tree: Any, key: str, origin: str, names: Names, found: Gathered
) -> None:
    """Add the settings below ``key``."""
    if not isinstance(tree, Mapping):
        known = sorted(name for name in names.units if name.startswith(f"{key}."))
        example = next((n for n in known if n.endswith((".id", ".class_path"))), None)
        remedy = f"write {example}: {shown(tree)}" if example and isinstance(tree, str) else ""
        found.faults.append(
            _located(sentence(key or "a config", "hold settings by name", tree, remedy), origin)
        )
        return
    for name, value in tree.items():
        inner = f"{key}.{name}" if key else str(name)
        if inner in names.groups:
            if value is not None:
                _gather_tree(parser, value, inner, origin, names, found)
        else:
            found.given.append(Given(inner, value, ["--config", _nested(inner, value)], origin))


def _nested(key: str, value: Any) -> str:
    for name in reversed(key.split(".")):
        value = {name: value}
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**9)).strip()


def _load(parser: ArgumentParser, text: str) -> Any:
    try:
        return get_loader(parser.parser_mode)(text)
    except (yaml.YAMLError, ValueError):
        return text


@contextmanager
def _without_exit(parser: ArgumentParser) -> Iterator[None]:
    """Let the parser raise where it would end the process, and read no environment variables."""
    exits, reads = parser.exit_on_error, parser.default_env
    parser.exit_on_error, parser.default_env = False, False
    try:
        yield
    finally:
        parser.exit_on_error, parser.default_env = exits, reads


def _parse(parser: ArgumentParser, given: Iterable[Given]) -> tuple[dict[str, Any], str]:
    """The settings and an empty string, or what the parser says against them."""
    try:
        return parser.parse_args([arg for g in given for arg in g.args]).as_dict(), ""
    except Exception as error:  # whatever it raises, it is the user's input that it cannot read
        return {}, str(error) or type(error).__name__


def _unit_fault(parser: ArgumentParser, unit: str, pieces: list[Given]) -> str | None:
    _, failure = _parse(parser, pieces)
    key, value = pieces[-1].key, pieces[-1].value
    section, _, name = unit.partition(".")
    if not failure:
        return None
    if section == "model" and name in HINTS and (text := own_fault(name, value)):
        return text
    if section == "trainer" and (refused := trainer_faults({name: value})):
        return refused[0]
    if match := re.search(r"class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", failure):
        return _argument_fault(unit, match[1], match[2])
    action = next(a for a in parser._actions if a.dest == unit)
    must = f"be {_type_words(getattr(action, '_typehint', None) or action.type or str)}"
    return sentence(key, must, value, _import_problem(failure))


def _argument_fault(unit: str, class_path: str, argument: str) -> str:
    """That the class named for ``unit`` takes no such argument."""
    module, _, name = class_path.rpartition(".")
    meant = None
    # a class that cannot be looked at has no suggestion; that it takes no such argument is said all the same
    with contextlib.suppress(ImportError, AttributeError, TypeError, ValueError):
        taken = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        meant = nearest(argument, taken)
    text = f"{unit}: {class_path} takes no argument {argument}"
    return f"{text}; did you mean {meant}?" if meant else text


def _import_problem(failure: str) -> str:
    match = re.search(r"(No module named '[\w.]+'|Unexpected import path format[^\n]*)", failure)
    return match[1] if match else ""


def _first_line(failure: str) -> str:
    """The parser's own words on one line."""
    return " ".join(failure.split())


def _is_scalar(unit: str) -> bool:
    hint = HINTS.get(unit.removeprefix("model."))
    return unit.startswith("model.") and hint is not None and get_origin(hint) not in (dict, list)


def _type_words(hint: Any) -> str:
    """The type as a phrase: ``an integer or null``."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    origin, inner = get_origin(hint), get_args(hint)
    if hint in words:
        return words[hint]
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(" or ".join(map(_type_words, inner)).split(" or ")))
    if origin in (list, set, tuple, Iterable):
        return f"a list of {_type_words(inner[0])}"
    return "a dict" if origin is dict else getattr(hint, "__name__", str(hint))
