"""From a command line to a module and a trainer, by way of LightningCLI.

Knows nothing about what is done with them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import gymnasium
import yaml
from holdfast.advising.general import general_rules
from holdfast.resources.memory import MemoryFigures
from holdfast.saving.environment import environment_fingerprint
from holdfast.triggers.disk import free_space
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers import wandb as wandb_logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from perdqn import faults
from perdqn.acting.environment import MissingExtra, describe
from perdqn.advice import RULES
from perdqn.advice.settings import ADAPTABLE
from perdqn.arguments import ArgumentParser
from perdqn.calibration import Calibration, calibrate
from perdqn.config import (
    Config,
    ConfigError,
    Report,
    check,
    format_config_summary,
    get_config_summary,
    read,
)
from perdqn.fitting import DECIDED_ONCE, SCALABLE, fit_to_machine
from perdqn.module import PERDQN
from perdqn.preflight import Keeping, Preflight, Room, is_long, predict
from perdqn.run.dashboard import Dashboard
from perdqn.run.folder import RunFolder, claim_run
from perdqn.run.keeping import KEEPERS, WATCHERS, BestCheckpoint, add_sections, find_faults
from perdqn.run.progress import RunProgress
from perdqn.run.record import RunRecord
from perdqn.run.summary import format_rows
from perdqn.transition import EnvSpec

TRAINER_DEFAULTS = {
    "max_epochs": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 200,
    "enable_model_summary": False,
    "default_root_dir": ".",
}
SIZES = tuple(
    f"model.{name}"
    for name in (
        "replay.capacity",
        "replay.storage",
        "replay.memory_alert_fraction",
        "learner",
        "evaluation",
        "network",
        "head",
        "total_env_steps",
    )
)  # faulty, what a run needs is not known
PARSER_SETTINGS = {
    "allow_abbrev": False,
    "default_env": True,
    "env_prefix": "PERDQN",
    "exit_on_error": False,
}
ONE_COMMAND = (
    "ckpt_path",
    "fork",
    "best",
    "out",
    "video",
    "preflight",
    "calibrate",
)  # options that belong to a command, not to a run


class RunCLI(LightningCLI):
    """Settings parsed and checked; for all commands but ``check``, module and trainer built.

    Args:
        command: who asks, for the help.
        argv: options of that command.
        origin: the run that goes on; its settings are ``argv``'s first ``--config``.
        lineage: what a fork of ``origin`` starts from, kept by it for life; None goes on in its folder.
        told: the command line as typed, kept in the run's summary.
        approve: called with the checked settings, before anything is built or written; raises where the
            command cannot be carried out with them.

    Raises:
        ConfigError: all that is wrong with the settings.
    """

    def __init__(
        self,
        command: str,
        argv: list[str],
        origin: RunFolder | None = None,
        lineage: Mapping[str, Any] | None = None,
        told: str = "",
        approve: Callable[[RunCLI], None] = lambda cli: None,
    ) -> None:
        self.command, self.origin, self.told, self.approve = command, origin, told, approve
        self.resumed = origin if lineage is None else None
        self.lineage = self.resumed.read_summary().get("forked_from") if self.resumed else lineage
        self.folder: RunFolder | None = None
        self.record: RunRecord | None = None
        self.keepers: list[Any] = []
        self.changes: list[str] = []
        self.exactness = "not tested"
        self.preflight: Preflight | None = None
        super().__init__(
            PERDQN,
            args=argv,
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=ArgumentParser,
            parser_kwargs={"prog": f"perdqn {command}", "description": None, **PARSER_SETTINGS},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # -- parsing and checking

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(PERDQN, "model")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_sections(parser)
        parser.add_class_arguments(Dashboard, "dashboard", skip={"texts"})
        if self.command == "fit":
            text = "start a new run from this checkpoint; `perdqn resume` continues the old one"
            parser.add_argument("--ckpt_path", type=str | None, default=None, help=text)
        if self.command in ("fit", "resume", "check"):
            text = "measure for some seconds what a new run will cost; auto: where it is long by its budget"
            choices = Literal["auto", "always", "never"]
            parser.add_argument("--preflight", type=choices, default="auto", help=text)
        if self.command == "check":
            text = "the same as --preflight always"
            parser.add_argument("--calibrate", action="store_true", help=text)
        if self.command == "resume":
            text = "go on in a new run folder, and leave the old run as it is"
            parser.add_argument("--fork", action="store_true", help=text)
        if self.command in ("validate", "test"):
            parser.add_argument("--best", action="store_true", help="the run's best checkpoint, not its last")
            parser.add_argument("--out", type=str | None, default=None, help="write the statistics as JSON")
            text = "record one episode as .gif or .mp4"
            parser.add_argument("--video", type=str | None, default=None, help=text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ConfigError(faults.collect(parser, args) or [" ".join(str(error).split())]) from None

    def before_instantiate_classes(self) -> None:
        self._dump_config()
        self.settings, misread = read(self.config_dump["model"])
        keeping = get_keeping(self.config_dump)
        root = Path(self.config_dump["trainer"]["default_root_dir"] or ".")
        room = get_room(root)
        self.report, self.spec = inspect_settings(self.settings, self.config_dump["trainer"], room, keeping)
        faults_of_callbacks = find_faults(self.config_dump, dashboard=Dashboard)
        faults_of_callbacks += find_unknown_names(self.config_dump)
        if found := misread + self.report.faults + faults_of_callbacks:
            raise ConfigError(found)
        if self.origin is not None:
            self.changes = self._get_changes(self.origin)
        self.approve(self)
        if self.command == "fit":
            self._fit_to_machine()
        if self.command in ("fit", "check"):
            self._look_ahead(room, keeping)

    def _fit_to_machine(self) -> None:
        """Decide what the scaler has bounds for and only a run that is not built yet can change."""
        scaler = self.config.scaler
        bounds = {name: pair for name, pair in (scaler.bounds or {}).items() if name in DECIDED_ONCE}
        if not bounds or not self.config.watch.scaler or self.config.trainer.fast_dev_run:
            return
        if self.config.ckpt_path is not None and "env.num_envs" in bounds:
            why = "cannot be decided for a run that starts from a checkpoint, whose replay it must fit"
            raise ConfigError([f"scaler.bounds['env.num_envs'] {why}; leave it out"])
        decided = fit_to_machine(self.settings, bounds, scaler.min_gain, trainer=self._where_computed)
        for name, value in decided.items():
            self.config[f"model.{name}"] = value
        self._dump_config()
        self.settings, _ = read(self.config_dump["model"])
        values = ", ".join(f"{name} {value}" for name, value in decided.items())
        print(f"scaler     {values}: the fastest here, kept for the whole run")

    def _look_ahead(self, room: Room, keeping: Keeping) -> None:
        """Predict what the run will take, measured where that is wanted."""
        if self.spec is None:
            return
        calibration = self._calibrate(Path(room.folder)) if self._wants_calibration else None
        self.preflight = predict(self.settings, self.spec, room, keeping, calibration)
        if self.preflight.faults:
            raise ConfigError(self.preflight.faults)
        if calibration is not None:  # it knows better
            known = self.preflight.warnings
            others = [text for text in self.report.warnings if not text.startswith("model.replay.capacity")]
            self.report.warnings = others + known

    @property
    def _wants_calibration(self) -> bool:
        wanted = "always" if self.config.get("calibrate") else self.config.preflight
        is_delayed_little = wanted == "auto" and self.command == "fit" and is_long(self.settings)
        return (wanted == "always" or is_delayed_little) and not self.config.trainer.fast_dev_run

    def _calibrate(self, folder: Path) -> Calibration | None:
        try:
            return calibrate(self.settings, folder, trainer=self._where_computed)
        except Exception as error:  # what is wrong with the run is said where it begins
            self.report.warnings.append(f"nothing could be measured before the run: {error}")
            return None

    @property
    def _where_computed(self) -> dict[str, Any]:
        given = {name: self.config_dump["trainer"][name] for name in ("accelerator", "devices", "precision")}
        return {name: value for name, value in given.items() if value is not None}

    def _get_changes(self, run: RunFolder) -> list[str]:
        """Each setting that differs from the run's own, as ``name: old -> new``."""
        before = _to_dict(self.parser, self.parser.parse_args(["--config", str(run.config)]))
        left_out = {*ONE_COMMAND, "config"}
        if self.resumed is None:  # a fork lies elsewhere, which is told anyway
            left_out.add("trainer.default_root_dir")
        changes = list_changes(before, self.config_dump)
        return [change for change in changes if change.partition(":")[0] not in left_out]

    @property
    def config_text(self) -> str:
        """The resolved settings, usable as ``--config``; a fork's begin with where it comes from."""
        kept = self.config.clone()
        for name in ("config", *ONE_COMMAND):
            kept.pop(name, None)
        lineage = f"# forked_from: {json.dumps(self.lineage)}\n" if self.lineage else ""
        return lineage + str(self.parser.dump(kept, skip_none=False, skip_validation=True))

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run's summary says of how this sitting came about."""
        forked = {"forked_from": dict(self.lineage)} if self.lineage else {}
        return {"exactness": self.exactness, "command": self.told, "changes": self.changes, **forked}

    # -- building

    def instantiate_classes(self) -> None:
        if self.command in ("validate", "test"):
            self.config.trainer.logger, self.config.trainer.callbacks = False, None
            self.config.trainer.enable_checkpointing = False
        if self.command in ("fit", "resume") and not self.config.trainer.fast_dev_run:
            self.folder = self.resumed or self._claim_folder()
            _keep_loggers_in(self.folder, self.config.trainer.logger)
        if self.command in ("fit", "resume"):  # for what of others draws from the global streams
            seed_everything(self.settings.seed, verbose=False)
        if self.command != "check":
            with self.discarding_empty_folder():
                super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self.config_init.trainer
        own: list[Callback] = _as_list(given.callbacks)
        if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in own):
            own.append(RunProgress())
        if self.command in ("fit", "resume"):
            kwargs["logger"] = self._get_loggers(given.logger)
            own += self._get_run_callbacks(given.enable_checkpointing is not False)
        try:
            return super().instantiate_trainer(callbacks=own, **kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise ConfigError([f"trainer: {' '.join(str(error).split())}"]) from error

    @property
    def has_begun(self) -> bool:
        """Whether training began, and left its settings in the run's folder."""
        return self.record is not None and self.record.has_begun

    @property
    def seconds(self) -> float:
        """Time spent training, over all sittings."""
        return self.record.seconds if self.record is not None else 0.0

    def stop_clock(self) -> None:
        if self.record is not None:
            self.record.stop_clock()

    @contextlib.contextmanager
    def discarding_empty_folder(self) -> Iterator[None]:
        """Leave no trace of a new run that fails before it wrote anything."""
        try:
            yield
        except BaseException:
            if self.folder is not None and self.resumed is None:
                self.folder.discard_if_empty()
            raise

    def _claim_folder(self) -> RunFolder:
        root = Path(self.config.trainer.default_root_dir or ".")
        try:
            return claim_run(root)
        except OSError as error:
            reason = f"trainer.default_root_dir {root} cannot hold a run: {error.strerror or error}"
            raise ConfigError([f"{reason}; name a folder that can be written to"]) from None

    def _get_loggers(self, given: Any) -> Any:
        """The trainer's loggers: the user's, or TensorBoard in the run's folder."""
        if self.folder is None or (given is not None and given is not True):
            return given
        path = self.folder.path
        return TensorBoardLogger(
            path.parent.parent,
            name=path.parent.name,
            version=path.name,
            default_hp_metric=False,
            max_queue=1_000,  # of 10, as it comes, training waits for the writer at every row
        )

    def _get_run_callbacks(self, with_checkpoints: bool) -> list[Callback]:
        if self.folder is None:
            return []
        summary = format_config_summary(get_config_summary(self.settings))
        texts = {self.folder.config.name: self.config_text, self.folder.config_summary.name: summary}
        if self.preflight is not None:
            figures = json.dumps(self.preflight.as_dict(), indent=2) + "\n"
            texts[str(self.folder.preflight.relative_to(self.folder.path))] = figures
        self.record = RunRecord(self.folder, texts, lambda: self.provenance)
        if with_checkpoints:
            self.keepers = [self.config_init[section] for section in KEEPERS]
            self.config_init.checkpoint.dirpath = str(self.folder.checkpoints)
            self.keepers.insert(1, BestCheckpoint(self.folder.best))
        dashboard = self.config_init.dashboard
        dashboard.texts = lambda: {"run/settings": summary, **self._get_texts()}
        watchers = [self.config_init[name] for name in WATCHERS if self.config.watch[name]]
        return [self.record, dashboard, *watchers, *self.keepers]

    def _get_texts(self) -> dict[str, str]:
        """How this sitting came about and where it runs, for people."""
        origin, environment = self.provenance, environment_fingerprint()
        origin["changes"] = ", ".join(self.changes) or "none"
        return {"run/origin": format_rows(origin), "run/environment": format_rows(environment)}

    @property
    def events(self) -> list[dict[str, Any]]:
        """What threatened the run and what was done about it, oldest first."""
        events = [dict(event) for keeper in self.keepers for event in getattr(keeper, "history", [])]
        return sorted(events, key=lambda event: int(event["global_step"]))


def parser_of(command: str) -> LightningArgumentParser:
    """The parser of one command, nothing parsed with it."""
    return ParserOnly(command, []).parser


class ParserOnly(RunCLI):
    """Ends where `RunCLI` begins to parse."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(seed_everything=False)

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def inspect_settings(
    config: Config, trainer: dict[str, Any], room: Room, keeping: Keeping
) -> tuple[Report, EnvSpec | None]:
    """All that is wrong, the environment and what the run needs included; the spec where there is one."""
    report = check(config, trainer=trainer)
    if any(fault.startswith("model.env") for fault in report.faults):
        return report, None
    try:
        spec = describe(config.env)
    except (ValueError, gymnasium.error.Error) as error:
        report.faults.append(_located(error, f"model.env.id {config.env.id}"))
        return report, None
    if any(fault.startswith(SIZES) for fault in report.faults):
        return report, spec
    try:
        found = predict(config, spec, room, keeping)
    except ValueError as error:  # the network cannot be built
        report.faults.append(_located(error, "model.network"))
    else:
        report.faults += found.faults
        report.warnings += found.warnings
    return report, spec


def find_unknown_names(settings: Mapping[str, Any]) -> list[str]:
    """What the advisor and the scaler are told of that no run has."""
    known = {("scaler", "bounds"): set(SCALABLE), ("advisor", "bounds"): set(ADAPTABLE)}
    if not settings["advisor"]["rules"]:  # those of the user are named as they are built
        known["advisor", "without"] = {rule.name for rule in (*general_rules(), *RULES)}
    found = []
    for (section, setting), names in known.items():
        for name in set(settings[section][setting] or ()) - names:
            near = " or ".join(get_close_matches(name, names, n=1) or sorted(names)[:4])
            found.append(f"{section}.{setting} must name what there is, got {name}; use {near}")
    return found


def get_keeping(settings: Mapping[str, Any]) -> Keeping:
    """What a run with these settings keeps."""
    checkpoint, emergency, trainer = (settings[name] for name in ("checkpoint", "emergency", "trainer"))
    log_every = trainer["log_every_n_steps"] or 0
    if trainer["enable_checkpointing"] is False:
        return Keeping(0, 0, float("inf"), log_every, has_reserve=False)
    seconds = 60.0 * (checkpoint["every"] or {}).get("minutes", float("inf"))
    return Keeping(checkpoint["keep"], emergency["keep"], seconds, log_every, emergency["reserve"])


def get_room(root: Path) -> Room:
    """What is free in memory, and on the disk that will hold ``root``."""
    root = root.absolute()
    folder = next(path for path in (root, *root.parents) if path.is_dir())
    return Room(get_available_bytes(), free_space(folder).num_bytes, str(folder))


def _located(error: Exception, key: str) -> str:
    """The error's text, behind the setting it is about."""
    return str(error) if "model." in str(error) or isinstance(error, MissingExtra) else f"{key}: {error}"


def get_available_bytes() -> int:
    """Memory this process may still take, without swap: a replay is read all over."""
    usage = MemoryFigures().tightest()
    return usage.limit_bytes - usage.used_bytes


def list_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each setting that differs between two trees of settings, as ``name: old -> new``."""
    old, new = flatten(before), flatten(now)
    return [
        f"{name}: {_spell(old.get(name))} -> {_spell(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; an empty dict is a leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict) and value
        leaves |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves


def warn(texts: Iterable[str]) -> None:
    for text in texts:
        print(f"warning: {text}", file=sys.stderr)


def _to_dict(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    return dict(yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True)))


def _spell(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _keep_loggers_in(run: RunFolder, loggers: Any) -> None:
    """Let loggers that choose a folder per run choose this one."""
    for logger in _as_list(loggers):
        settings: Any = logger.get("init_args") or {}
        if {"save_dir", "name", "version"} <= set(settings.keys()) and "project" not in settings:
            settings.save_dir, settings.name = str(run.path.parent.parent), run.path.parent.name
            settings.version = run.path.name


for _name in ("Run", "RunDisabled", "Artifact"):  # only type checkers see them, and the parser reads hints
    if not hasattr(wandb_logger, _name):
        setattr(wandb_logger, _name, Any)
