"""Classes by name, and faults in the user's words."""

import sys
from pathlib import Path
from typing import Any

import pytest

from perdqn.class_path import accepts, instantiate, resolve
from perdqn.config import ClassSpec


class Wheel:
    class Hub:
        pass

    def __init__(self, axle: str, radius: float, num_spokes: int = 32) -> None:
        self.made = (axle, radius, num_spokes)


def anything(**options: Any) -> dict[str, Any]:
    return options


WHEEL = f"{__name__}.Wheel"
SHORT = {"wheel": Wheel}
NOT_CALLABLE = f"{__name__}.SHORT"


def make(**init_args: Any) -> Any:
    return instantiate(ClassSpec("wheel", init_args), SHORT, "model.wheel", "front")


def fault(path: str) -> str:
    with pytest.raises(ValueError) as caught:  # the callers look at the message
        resolve(ClassSpec(path), SHORT, "model.wheel")
    return str(caught.value)


def test_short_name_import_path_and_nested_class_are_found() -> None:
    assert resolve(ClassSpec("wheel"), SHORT) is Wheel
    assert resolve(ClassSpec(WHEEL), {}) is Wheel
    assert resolve(ClassSpec(f"{WHEEL}.Hub"), {}) is Wheel.Hub


def test_init_args_are_passed_on() -> None:
    assert make(radius=0.3).made == ("front", 0.3, 32)


def test_misspelt_short_name_gets_the_nearest() -> None:
    assert fault("whel") == (
        "model.wheel must be one of wheel, an import path like package.module.Name, "
        "got 'whel'; did you mean wheel?"
    )


def test_misspelt_attribute_gets_the_nearest() -> None:
    assert f"{__name__} has no Weel; did you mean Wheel?" in fault(f"{__name__}.Weel")


def test_missing_module_is_named() -> None:
    assert "there is no module no_such_package" in fault("no_such_package.Wheel")


def test_what_cannot_be_called_is_refused() -> None:
    assert "must name a class or a function" in fault(NOT_CALLABLE)


@pytest.mark.parametrize(
    ("line", "message"),
    [("import no_such_package", "No module named 'no_such_package'"), ("1 / 0", "ZeroDivisionError")],
)
def test_module_that_fails_while_imported_is_told_apart_from_a_missing_one(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_wheels.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    told = fault("broken_wheels.Wheel")
    assert "importing broken_wheels failed" in told
    assert message in told
    sys.modules.pop("broken_wheels", None)


def test_all_faults_of_the_arguments_come_together() -> None:
    with pytest.raises(ValueError, match="num_spoke") as caught:
        make(num_spoke=3, axle="rear")
    assert str(caught.value).split("; ") == [
        "model.wheel.init_args.num_spoke does not exist: Wheel takes radius, num_spokes",
        "did you mean num_spokes?",
        "model.wheel.init_args.axle is filled in by perdqn",
        "remove it",
        "model.wheel.init_args.radius is missing: Wheel cannot be made without it",
    ]


def test_class_that_takes_nothing_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"model\.wheel: Hub.* cannot be called as perdqn does"):
        instantiate(ClassSpec(f"{WHEEL}.Hub"), {}, "model.wheel", "front")


def test_keyword_catch_all_takes_any_name() -> None:
    assert instantiate(ClassSpec(f"{__name__}.anything", {"a": 1}), {}, "model.wheel") == {"a": 1}
    assert accepts(anything, "loss")
    assert accepts(Wheel, "radius")
    assert not accepts(Wheel, "loss")


def test_argument_of_a_class_without_any_is_refused() -> None:
    fault = r"model\.wheel\.init_args\.size does not exist: Hub takes no arguments"
    with pytest.raises(ValueError, match=fault):
        instantiate(ClassSpec(f"{WHEEL}.Hub", {"size": 1}), {}, "model.wheel")


def test_callable_without_a_signature_is_called_unchecked() -> None:
    assert instantiate(ClassSpec("builtins.dict", {"a": 1}), {}, "model.wheel") == {"a": 1}
    assert not accepts(dict, "loss")
