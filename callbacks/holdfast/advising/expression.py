"""Arithmetic over statistics of signals, written as text: ``p99(train/grad_norm) / median(train/grad_norm)``.

Knows nothing about rules. Text is never executed: only what the grammar below knows is.

    median(NAME)  median(NAME, 20)          a statistic of a signal; of its newest 20 samples
    share_above(NAME, 0.5)                  share of samples above a bound; share_below likewise
    setting(NAME)                           a setting as it is typed, or by its role: learning_rate
    + - * / ** abs() log()  numbers  value  the rest
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from .names import find_setting
from .signals import Signals
from .statistics import SHARES, STATISTICS

_CALL = re.compile(r"([A-Za-z_]\w*)\(([^()]+)\)")
_FUNCTIONS: dict[str, Callable[[float], float]] = {"abs": abs, "log": math.log}
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Call, ast.Load),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub),
)


class Expression:
    """What the text says, of any signals.

    Raises:
        ValueError: the text says nothing that can be computed; the message names what is not known.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._calls: list[tuple[str, str, list[float]]] = []
        tree = ast.parse(_CALL.sub(self._note, text).strip(), mode="eval")
        for node in ast.walk(tree):
            self._refuse_unknown(node)
        self._code = compile(tree, "<expression>", "eval")

    @property
    def signals(self) -> set[str]:
        """Names of those it looks at."""
        return {name for function, name, _ in self._calls if function != "setting"}

    def __call__(
        self, signals: Signals, least: int = 1, window: int | None = None, **values: float
    ) -> float | None:
        """None where a signal has fewer than ``least`` samples, or the result is no number.

        Args:
            window: newest samples looked at where the text does not say.
            values: what names stand for.
        """
        found: dict[str, float] = dict(values)
        for index, (function, name, numbers) in enumerate(self._calls):
            value = _value_of(signals, function, name, numbers, least, window)
            if value is None:
                return None
            found[f"_{index}"] = value
        try:
            result = eval(self._code, {"__builtins__": {}, **_FUNCTIONS}, found)
        except (ArithmeticError, NameError, ValueError):  # a name that has no value here is one
            return None
        return None if isinstance(result, complex) or math.isnan(result) else float(result)

    def _note(self, found: re.Match[str]) -> str:
        function, arguments = found[1], found[2].split(",")
        if function in _FUNCTIONS:
            return found[0]
        known = {"setting", *STATISTICS, *SHARES}
        if function not in known:
            raise ValueError(f"{self.text!r}: there is no {function}(); there are {', '.join(sorted(known))}")
        try:
            numbers = [float(argument) for argument in arguments[1:]]
        except ValueError as error:
            raise ValueError(f"{self.text!r}: after the name {function}() takes numbers") from error
        if function in SHARES and not numbers:
            raise ValueError(f"{self.text!r}: {function}() takes a name and a bound")
        self._calls.append((function, arguments[0].strip(), numbers))
        return f"_{len(self._calls) - 1}"

    def _refuse_unknown(self, node: ast.AST) -> None:
        names = {"value", *_FUNCTIONS, *(f"_{index}" for index in range(len(self._calls)))}
        is_number = not isinstance(node, ast.Constant) or isinstance(node.value, int | float)
        is_called = not isinstance(node, ast.Call) or isinstance(node.func, ast.Name)
        if not isinstance(node, _NODES) or not is_number or not is_called:
            raise ValueError(f"{self.text!r}: {ast.unparse(node)!r} has no place in an expression")
        if isinstance(node, ast.Name) and node.id not in names:
            raise ValueError(
                f"{self.text!r}: what of {node.id}? Write newest({node.id}), or setting({node.id})"
            )


def _value_of(
    signals: Signals, function: str, name: str, numbers: list[float], least: int, window: int | None
) -> float | None:
    if function == "setting":
        return _number(find_setting(signals.settings, name)[1])
    bounds, lengths = (numbers[:1], numbers[1:]) if function in SHARES else ([], numbers)
    length = int(lengths[0]) if lengths else window
    x = np.array([sample.value for sample in signals.window(name, length)])
    if len(x) < max(1, least if length is None else min(least, length)):
        return None
    with np.errstate(all="ignore"):
        return SHARES[function](x, *bounds) if bounds else STATISTICS[function](x)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class Condition:
    """Two expressions and which is larger: ``tail(grad_norm) > 10``."""

    def __init__(self, text: str) -> None:
        left, self.sign, right = [part.strip() for part in _split(text)]
        self.left, self.right = Expression(left), Expression(right)

    def __call__(self, signals: Signals, least: int, window: int | None) -> Mapping[str, float] | None:
        """Both sides by name where it holds, the left one first; else None."""
        left, right = self.left(signals, least, window), self.right(signals, 1, window)
        if left is None or right is None or not (left > right if self.sign == ">" else left < right):
            return None
        return {self.left.text: left, f"{self.left.text} {self.sign}": right}


def _split(text: str) -> tuple[str, str, str]:
    parts = re.split(r"([<>])", text)
    if len(parts) != 3:
        raise ValueError(f"{text!r} compares nothing; write as in: median(loss) > 3")
    return parts[0], parts[1], parts[2]
