"""How the command line spells a `ClassSpec`: by ``KEY.class_path`` and ``KEY.init_args.NAME``.

Knows nothing about the settings themselves.

jsonargparse takes a value with the keys ``class_path`` and ``init_args`` for a class it should build. A
`ClassSpec` is built later, with arguments the command line cannot know, so it is only read here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

from perdqn.config import ClassSpec, coerce


class ArgumentParser(LightningArgumentParser):
    """Reads parameters annotated as `ClassSpec`, alone or in a list, without building their class."""

    def add_class_arguments(
        self,
        theclass: type,
        nested_key: str | None = None,
        *args: Any,
        skip: set[str | int] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        specs = {} if theclass is ClassSpec else _class_specs(theclass)
        skip = (skip or set()) | specs.keys()
        added = super().add_class_arguments(theclass, nested_key, *args, skip=skip, **kwargs)
        for name, default in specs.items():
            key = f"{nested_key}.{name}" if nested_key else name
            added += super().add_class_arguments(ClassSpec, key)
            self.set_defaults({f"{key}.{part}": value for part, value in asdict(default).items()})
        self._try_int_before_float()
        return added

    def _try_int_before_float(self) -> None:
        """Keep 1 batch from becoming 1.0, all of them.

        typing caches unions by their members whatever their order, so which type Lightning's
        ``Optional[Union[int, float]]`` tries first depends on what was imported before it.
        """
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            if get_origin(hint) is Union and set(get_args(hint)) == {int, float, type(None)}:
                action._typehint = int | float | None  # type: ignore[attr-defined]


def _class_specs(theclass: type) -> dict[str, ClassSpec]:
    """The defaults of the parameters annotated as `ClassSpec`."""
    hints = get_type_hints(theclass.__init__)  # type: ignore[misc]
    names = [name for name, hint in hints.items() if hint is ClassSpec]
    return {name: inspect.signature(theclass).parameters[name].default for name in names}


def _read_class_spec(value: Any) -> ClassSpec:
    if isinstance(value, Namespace):
        value = value.as_dict()
    if not isinstance(value, str | Mapping | ClassSpec):
        raise ValueError(f"must be a class path, or a class_path with init_args, got {value!r}")
    return coerce(ClassSpec, value)


set_parsing_settings(subclasses_enabled=[ClassSpec])
register_type(ClassSpec, asdict, _read_class_spec, fail_already_registered=False)
