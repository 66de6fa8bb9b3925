"""Whether the settings of a run can work: every fault at once, and a warning for what is legal but unwise.

Knows nothing about torch, Lightning or Gymnasium; an environment is known by its observation columns only.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from perdqn.config.coercion import ConfigError
from perdqn.config.settings import HEAD_NAMES, TORSO_NAMES, ClassSpec, Config
from perdqn.config.trainer import trainer_faults
from perdqn.config.wording import nearest, sentence

# action 8, reward 4, terminated and truncated 1, leaf and its share of the tree and of the counters 24
ROW_OVERHEAD_BYTES = 37


@dataclass
class Report:
    """What `check` found, one sentence each."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_faults(self) -> None:
        """Do nothing where there are none.

        Raises:
            ConfigError: with all of them.
        """
        if self.faults:
            raise ConfigError(self.faults)


def check(
    config: Config,
    *,
    spec: Any = None,
    available_bytes: int | None = None,
    trainer: Mapping[str, Any] | None = None,
    known_faulty: Collection[str] = (),
) -> Report:
    """All that is wrong or unwise in ``config``.

    Args:
        spec: the environment's `EnvSpec`; without it the replay's memory is not judged.
        available_bytes: memory the process may still take.
        trainer: arguments of the Trainer, those the user gave or all.
        known_faulty: settings reported elsewhere, such as ``replay.alpha``; nothing is judged by their value.
    """
    if misplaced := _misplaced_sections(config):
        return Report(misplaced)
    values = {key: value for key, value in _flatten(config).items() if key not in known_faulty}
    faults = {key: text for key, value in values.items() if (text := own_fault(key, value))}
    report = Report(list(faults.values()))
    sound = values.keys() - faults.keys()
    for rule in RULES:
        if sound.issuperset(rule.keys):
            for finding in rule.judge(*(values[key] for key in rule.keys)):
                (report.faults if isinstance(finding, Fault) else report.warnings).append(str(finding))
    if spec and available_bytes is not None and {"replay.capacity", "replay.memory_alert_fraction"} <= sound:
        _judge_memory(config, spec, available_bytes, report)
    report.faults += trainer_faults(trainer or {})
    return report


def row_bytes(spec: Any) -> int:
    """Bytes one replay row takes: a single frame of every column, and what is kept beside it."""
    frame = sum(math.prod(column.shape) * column.dtype.itemsize for column in spec.columns)
    return int(frame) + ROW_OVERHEAD_BYTES


def _judge_memory(config: Config, spec: Any, available_bytes: int, report: Report) -> None:
    replay, each = config.replay, row_bytes(spec)
    needed, usable = replay.capacity * each, int(available_bytes * replay.memory_alert_fraction)
    size = f"{replay.capacity:,} rows of {each:,} bytes need {_gib(needed)}, {_gib(available_bytes)} are available"
    if needed > available_bytes:
        must = f"fit into memory ({size})"
        fitting = f"at most {usable // each} rows fit, or use more memory"
        report.faults.append(sentence("model.replay.capacity", must, replay.capacity, fitting))
    elif needed > usable:
        report.warnings.append(f"model.replay.capacity leaves little memory: {size}")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


# --- the settings, one by one


@dataclass(frozen=True)
class Range:
    """Numbers a setting may take, and what to do about others."""

    low: float = -math.inf
    high: float = math.inf
    remedy: str = ""
    above: bool = False  # low itself is out

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"lie in {'(' if self.above else '['}{self.low:g}, {self.high:.10g}]"
        return f"be {'above' if self.above else 'at least'} {self.low:g}"


def _positive(remedy: str) -> Range:
    return Range(low=0, remedy=remedy, above=True)


RANGES = {
    "env.num_envs": Range(1, remedy="use 1 for a single environment"),
    "env.frame_stack": Range(1, remedy="use 1 to leave observations alone, 4 for Atari"),
    "env.max_restarts": Range(0, remedy="use 0 to end the run at the first failure"),
    "replay.capacity": Range(2, remedy="use 100000 for small observations"),
    "replay.alpha": Range(0, 1, "use 0.6 for the paper's setting"),
    "replay.beta_start": Range(0, 1, "use 0.4 for the paper's setting"),
    "replay.beta_end": Range(0, 1, "use 1.0 for the paper's setting"),
    "replay.beta_env_steps": Range(0, remedy="use model.total_env_steps for the paper's setting"),
    "replay.priority_eps": _positive("use 1e-6, so that no priority is ever zero"),
    "replay.priority_clip": _positive("use 1.0, or null to leave priorities free"),
    "replay.memory_alert_fraction": Range(0, 1, "use 0.9", above=True),
    "replay.cleanup_env_steps": Range(1, remedy="use null to turn clean-ups off"),
    "learner.learning_rate": Range(0, 1, "use 1e-4", above=True),
    "learner.adam_eps": _positive("use 1e-8"),
    "learner.batch_size": Range(1, remedy="use 32"),
    "learner.gamma": Range(0, 1, "use 0.99"),
    "learner.n_step": Range(1, remedy="use 1 for plain one-step targets, 3 for Rainbow's"),
    "learner.train_every": _positive("use 4 for one update every 4 env steps, 0.5 for two updates a step"),
    "learner.warmup_env_steps": Range(1, remedy="use 1000"),
    "learner.updates_per_step": Range(1, remedy="use 16; it changes the cost, never the result"),
    "learner.huber_delta": _positive("use 1.0"),
    "learner.reward_clip": _positive("use 1.0, or null to leave rewards alone"),
    "learner.target_update_period": Range(1, remedy="use 1000"),
    "learner.target_tau": Range(0, 1, "use 1.0 to copy the online network", above=True),
    "learner.max_grad_norm": _positive("use 10.0, or null to leave gradients alone"),
    "exploration.epsilon_start": Range(0, 1, "use 1.0"),
    "exploration.epsilon_end": Range(0, 1, "use 0.05"),
    "exploration.epsilon_env_steps": Range(0, remedy="use a tenth of model.total_env_steps"),
    "evaluation.every_env_steps": Range(1, remedy="use null to turn evaluations off"),
    "evaluation.episodes": Range(1, remedy="use 10"),
    "evaluation.test_episodes": Range(1, remedy="use 100"),
    "evaluation.num_envs": Range(1, remedy="use 10"),
    "evaluation.epsilon": Range(0, 1, "use 0.0 for greedy evaluation"),
    "evaluation.max_episode_steps": Range(1, remedy="use 30000"),
    "total_env_steps": Range(1, remedy="use 100000"),
    "total_episodes": Range(1, remedy="use 500, or null where model.total_env_steps is the budget"),
    "seed": Range(0, 2**32 - 1, "use 0"),
}

SHORT_NAMES = {"network": TORSO_NAMES, "head": HEAD_NAMES}


def _hints(cls: type, prefix: str = "") -> dict[str, Any]:
    """The type of each setting below ``cls``, by its dotted name; a `ClassSpec` is one setting."""
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        nested = is_dataclass(hint) and hint is not ClassSpec
        hints |= _hints(hint, f"{prefix}{name}.") if nested else {f"{prefix}{name}": hint}
    return hints


HINTS = _hints(Config)


def _flatten(config: Config) -> dict[str, Any]:
    """The value of each setting, by its dotted name."""
    values = {}
    for key in HINTS:
        section, _, name = key.rpartition(".")
        values[key] = getattr(getattr(config, section) if section else config, name)
    return values


DEFAULTS = _flatten(Config())


def _misplaced_sections(config: Config) -> list[str]:
    """A fault for each section that is not of its dataclass, as when built from Python with a dict."""
    sections = {
        n: hint for n, hint in get_type_hints(Config).items() if is_dataclass(hint) and hint is not ClassSpec
    }
    wrong = {
        name: getattr(config, name)
        for name, hint in sections.items()
        if not isinstance(getattr(config, name), hint)
    }
    return [
        sentence(f"model.{n}", f"be a {sections[n].__name__}", v, "use from_dict for dicts")
        for n, v in wrong.items()
    ]


def own_fault(key: str, value: Any) -> str | None:
    """What is wrong with a value whatever the others are."""
    if must := _type_must(HINTS[key], value):
        return sentence(f"model.{key}", must, value, _type_remedy(HINTS[key], value))
    if key in RANGES and value is not None and value not in RANGES[key]:
        return sentence(f"model.{key}", str(RANGES[key]), value, RANGES[key].remedy)
    if key in SHORT_NAMES:
        return _path_fault(f"model.{key}.class_path", value.class_path, SHORT_NAMES[key])
    if key == "env.wrappers":
        named = [_path_fault(f"model.{key}[{i}].class_path", w.class_path, ()) for i, w in enumerate(value)]
        return next(filter(None, named), None)
    if key == "env.id" and not value.strip():
        return sentence("model.env.id", "name an environment", value, "use CartPole-v1")
    return None


def _type_must(hint: Any, value: Any) -> str | None:
    """What the value must be, where it is of another type."""
    if get_origin(hint) in (Union, types.UnionType):
        option = next(option for option in get_args(hint) if option is not types.NoneType)
        must = None if value is None else _type_must(option, value)
        return f"{must}, or null" if must else None
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"be one of {', '.join(get_args(hint))}"
    if get_origin(hint) is list:
        return (
            None
            if isinstance(value, list) and all(map(_is_class_spec, value))
            else "be a list of class paths"
        )
    if get_origin(hint) is dict:
        is_fine = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        return None if is_fine else "be a dict of keyword arguments"
    if hint is ClassSpec:
        return None if _is_class_spec(value) else "be a class path with its init_args"
    if hint is float:
        is_fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return None if is_fine else "be a finite number"
    is_fine = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    return None if is_fine else {int: "be an integer", bool: "be true or false", str: "be a string"}[hint]


def _is_class_spec(value: Any) -> bool:
    return (
        isinstance(value, ClassSpec)
        and isinstance(value.class_path, str)
        and _type_must(dict[str, Any], value.init_args) is None
    )


def _type_remedy(hint: Any, value: Any) -> str:
    if get_origin(hint) is Literal and (meant := nearest(str(value), get_args(hint))):
        return f"did you mean {meant}?"
    if (hint is int or int in get_args(hint)) and (whole := _whole_number(value)) is not None:
        return f"write {whole}"
    return ""


def _whole_number(value: Any) -> int | None:
    """The integer that ``2.0`` or ``1e5`` was probably meant to be."""
    try:
        number = float(value) if isinstance(value, float | str) else math.nan
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _path_fault(key: str, path: str, short_names: tuple[str, ...]) -> str | None:
    parts = path.split(".")
    if path in short_names or (len(parts) > 1 and all(part.isidentifier() for part in parts)):
        return None
    must = f"be one of {', '.join(short_names)} or an import path" if short_names else "be an import path"
    meant = nearest(path, short_names)
    return sentence(key, must, path, f"did you mean {meant}?" if meant else "write package.module.Name")


# --- the settings beside each other


class Fault(str):
    """It cannot work."""


class Unwise(str):
    """It works, and is hardly what was meant."""


Finding = Fault | Unwise


@dataclass(frozen=True)
class Rule:
    """A judgement over several settings, made only where each of them is fine alone."""

    keys: tuple[str, ...]
    judge: Callable[..., Iterator[Finding]]


RULES: list[Rule] = []
Judge = Callable[..., Iterator[Finding]]


def rule(*keys: str) -> Callable[[Judge], Judge]:
    """The function judges the values of these settings, in this order."""

    def register(judge: Judge) -> Judge:
        RULES.append(Rule(keys, judge))
        return judge

    return register


def _fault(key: str, must: str, value: Any, remedy: str) -> Fault:
    return Fault(sentence(f"model.{key}", must, value, remedy))


def _beyond(key: str, must: str, value: Any, remedy: str) -> Finding:
    """A period longer than the budget: a fault where it was chosen, a warning where a default was left alone."""
    return (Unwise if value == DEFAULTS[key] else Fault)(sentence(f"model.{key}", must, value, remedy))


@rule("total_env_steps", "total_episodes")
def _one_budget(env_steps: int | None, episodes: int | None) -> Iterator[Finding]:
    if env_steps is None and episodes is None:
        yield Fault(
            "model.total_env_steps and model.total_episodes are both null; set exactly one, such as 100000 env steps"
        )
    elif env_steps is not None and episodes is not None:
        yield Fault(
            f"model.total_env_steps ({env_steps}) and model.total_episodes ({episodes}) are both set; "
            "set exactly one and the other to null"
        )


@rule("learner.warmup_env_steps", "replay.capacity")
def _warmup_below_capacity(warmup: int, capacity: int) -> Iterator[Finding]:
    if warmup >= capacity:
        must = f"be below model.replay.capacity ({capacity})"
        yield _fault(
            "learner.warmup_env_steps", must, warmup, f"use at most {capacity - 1} or a larger replay"
        )


@rule("learner.warmup_env_steps", "learner.train_every", "total_env_steps")
def _budget_trains(warmup: int, train_every: float, budget: int | None) -> Iterator[Finding]:
    if budget is None:
        return
    if warmup >= budget:
        must = f"be below model.total_env_steps ({budget})"
        yield _fault(
            "learner.warmup_env_steps", must, warmup, f"use about {max(1, budget // 10)} or a larger budget"
        )
    elif not updates_in_budget(warmup, train_every, budget):
        must = f"leave room for an update in the {budget - warmup} env steps after the warm-up"
        yield _fault("learner.train_every", must, train_every, "use 4, or raise model.total_env_steps")
    elif warmup > budget / 2:
        yield Unwise(
            f"model.learner.warmup_env_steps takes {warmup} of the {budget} env steps without learning"
        )


@rule("learner.batch_size", "learner.warmup_env_steps")
def _batch_within_warmup(batch_size: int, warmup: int) -> Iterator[Finding]:
    if batch_size > warmup:
        must = f"be at most model.learner.warmup_env_steps ({warmup}), for no batch can be drawn before"
        yield _fault("learner.batch_size", must, batch_size, f"raise the warm-up to {batch_size} or more")


@rule("learner.warmup_env_steps", "env.num_envs", "learner.n_step")
def _warmup_completes_a_transition(warmup: int, num_envs: int, n_step: int) -> Iterator[Finding]:
    needed = num_envs * (n_step + 1)
    if warmup < needed:
        must = f"give each of {num_envs} environments model.learner.n_step + 1 = {n_step + 1} steps"
        yield _fault("learner.warmup_env_steps", must, warmup, f"use at least {needed}")


@rule("replay.capacity", "env.num_envs", "learner.n_step", "env.frame_stack")
def _ring_holds_a_transition(
    capacity: int, num_envs: int, n_step: int, frame_stack: int
) -> Iterator[Finding]:
    needed = n_step + frame_stack + 2
    if capacity // num_envs < needed:
        must = f"hold n_step + frame_stack + 2 = {needed} rows for each of {num_envs} environments"
        yield _fault("replay.capacity", must, capacity, f"use at least {needed * num_envs}")


@rule("learner.target_update_period", "learner.warmup_env_steps", "learner.train_every", "total_env_steps")
def _target_moves(period: int, warmup: int, train_every: float, budget: int | None) -> Iterator[Finding]:
    updates = updates_in_budget(warmup, train_every, budget) if budget else None
    if not updates:
        return
    if period > updates:
        must = f"be at most {updates}, the updates in the budget, or the target network never moves"
        yield _beyond("learner.target_update_period", must, period, f"use about {max(1, updates // 20)}")
    elif period * 3 > updates:
        yield Unwise(
            f"model.learner.target_update_period of {period} moves the target network only {updates // period} times in {updates} updates"
        )


@rule(
    "replay.prioritized", "replay.beta_env_steps", "replay.beta_start", "replay.beta_end", "total_env_steps"
)
def _beta_arrives(
    prioritized: bool, steps: int, start: float, end: float, budget: int | None
) -> Iterator[Finding]:
    if prioritized and start > end:
        must = f"be at most model.replay.beta_end ({end})"
        yield _fault("replay.beta_start", must, start, "use 0.4 and 1.0 for the paper's setting")
    elif prioritized and start < end and budget is not None and steps > budget:
        must = f"be at most model.total_env_steps ({budget}), or model.replay.beta_end is never reached"
        yield _beyond("replay.beta_env_steps", must, steps, f"use {budget}")


@rule(
    "exploration.epsilon_start", "exploration.epsilon_end", "exploration.epsilon_env_steps", "total_env_steps"
)
def _epsilon_arrives(start: float, end: float, steps: int, budget: int | None) -> Iterator[Finding]:
    if start < end:
        yield Unwise(
            f"model.exploration.epsilon_end ({end}) is above epsilon_start ({start}): exploration grows with time"
        )
    if start != end and budget is not None and steps > budget:
        must = (
            f"be at most model.total_env_steps ({budget}), or model.exploration.epsilon_end is never reached"
        )
        yield _beyond("exploration.epsilon_env_steps", must, steps, f"use about {max(1, budget // 10)}")


@rule("evaluation.every_env_steps", "evaluation.stop_at_return", "total_env_steps")
def _evaluation_happens(every: int | None, stop_at: float | None, budget: int | None) -> Iterator[Finding]:
    if every is None:
        if stop_at is not None:
            remedy = "set model.evaluation.every_env_steps, or this one to null"
            yield _fault("evaluation.stop_at_return", "be null where evaluations are off", stop_at, remedy)
    elif budget is not None and every > budget:
        must = f"be at most model.total_env_steps ({budget}), or no evaluation ever happens"
        yield _beyond("evaluation.every_env_steps", must, every, f"use about {max(1, budget // 10)}, or null")
    elif budget is not None and budget // every > 1_000:
        yield Unwise(f"model.evaluation.every_env_steps of {every} evaluates {budget // every} times")


@rule("env.num_envs", "total_env_steps")
def _each_env_acts(num_envs: int, budget: int | None) -> Iterator[Finding]:
    if budget is not None and num_envs > budget:
        must = f"be at most model.total_env_steps ({budget})"
        yield _fault("env.num_envs", must, num_envs, "use fewer environments or a larger budget")


@rule("replay.priority_clip", "replay.priority_eps")
def _priorities_differ(clip: float | None, eps: float) -> Iterator[Finding]:
    if clip is not None and clip <= eps:
        must = f"be above model.replay.priority_eps ({eps}), or all priorities are equal"
        yield _fault("replay.priority_clip", must, clip, "use 1.0, or null to leave priorities free")


@rule("replay.prioritized", "replay.alpha", "replay.beta_start", "replay.beta_end", "replay.beta_env_steps")
def _uniform_ignores(prioritized: bool, *given: float) -> Iterator[Finding]:
    names = ("alpha", "beta_start", "beta_end", "beta_env_steps")
    ignored = [f"model.replay.{n}" for n, v in zip(names, given, strict=True) if v != DEFAULTS[f"replay.{n}"]]
    if not prioritized and ignored:
        yield Unwise(f"model.replay.prioritized is false, so {', '.join(ignored)} have no effect")
    if prioritized and given[0] == 0:
        yield Unwise(
            "model.replay.alpha of 0 draws uniformly; model.replay.prioritized false does the same faster"
        )


@rule("learner.target_update_period", "learner.target_tau")
def _target_lags(period: int, tau: float) -> Iterator[Finding]:
    if period == 1 and tau == 1:
        yield Unwise(
            "model.learner.target_update_period of 1 with target_tau 1 leaves no target network; use 1000, or a tau of 0.005"
        )
    elif period > 100 and tau < 0.1:
        yield Unwise(
            f"model.learner.target_tau of {tau} every {period} updates hardly moves the target network; use a period of 1, or tau 1.0"
        )


@rule("learner.batch_size", "learner.train_every", "learner.learning_rate", "learner.gamma", "learner.n_step")
def _learner_is_usual(
    batch_size: int, train_every: float, learning_rate: float, gamma: float, n_step: int
) -> Iterator[Finding]:
    if learning_rate > 1e-2:
        yield Unwise(
            f"model.learner.learning_rate of {learning_rate} is large for Adam; 1e-4 to 1e-3 is usual"
        )
    if gamma == 1:
        yield Unwise(
            "model.learner.gamma of 1.0 lets values grow without bound where episodes are long; 0.99 is usual"
        )
    if train_every < 0.25:
        yield Unwise(
            f"model.learner.train_every of {train_every} makes {1 / train_every:g} updates per env step; above 4 the network overfits the replay"
        )
    if n_step > 20:
        yield Unwise(
            f"model.learner.n_step of {n_step} makes targets very noisy and off-policy; 1 to 5 is usual"
        )
    if batch_size > 4096:
        yield Unwise(f"model.learner.batch_size of {batch_size} is large; 32 to 512 is usual")


@rule("replay.priority_eps")
def _eps_is_small(eps: float) -> Iterator[Finding]:
    if eps > 0.1:
        yield Unwise(
            f"model.replay.priority_eps of {eps} drowns the TD errors, so that draws are nearly uniform; use 1e-6"
        )


@rule("evaluation.episodes", "evaluation.test_episodes", "evaluation.num_envs", "evaluation.epsilon")
def _evaluation_tells(episodes: int, test_episodes: int, num_envs: int, epsilon: float) -> Iterator[Finding]:
    if episodes == 1:
        yield Unwise(
            "model.evaluation.episodes of 1 says little: there is no interval around one return; use 10"
        )
    if test_episodes == 1:
        yield Unwise(
            "model.evaluation.test_episodes of 1 says little: there is no interval around one return; use 100"
        )
    if num_envs > max(episodes, test_episodes):
        yield Unwise(f"model.evaluation.num_envs of {num_envs} is more than there are episodes to play")
    if epsilon > 0.2:
        yield Unwise(
            f"model.evaluation.epsilon of {epsilon} measures random actions more than the policy; use 0.0"
        )


def updates_in_budget(warmup_env_steps: int, train_every: float, total_env_steps: int) -> int:
    """Updates that ``total_env_steps`` leave time for."""
    return max(0, int((total_env_steps - warmup_env_steps) / train_every))
