"""`perdqn advise --prove`: what a change of settings does to a run, measured in paired runs.

Knows nothing about how arms are run and compared.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from holdfast.storage.durable import write_whole
from holdfast.storage.lock import FolderLock

from perdqn.cli.checkpoints import read_full_checkpoint
from perdqn.cli.command_line import Refused
from perdqn.cli.quiet import quietly
from perdqn.config import ConfigError
from perdqn.proving.arms import Arm, Plan
from perdqn.proving.figures import read_json
from perdqn.proving.proof import Proof
from perdqn.proving.words import format_comparison
from perdqn.run.advice import OVER, spell
from perdqn.run.folder import RunFolder
from perdqn.run.saves import Save, adopt, find_save
from perdqn.run.shape import fits_fork
from perdqn.run.summary import format_seconds

LEAST_ENV_STEPS = 10_000  # of a fork, unless the user says otherwise
FROM_START = "add --from-start to compare runs from their beginning"


@quietly
def prove(given: Namespace, run: RunFolder, advice: Sequence[Mapping[str, Any]]) -> int:
    """Run the arms and report; exit code 1 where one failed, 130 after an interruption.

    Args:
        advice: of the run, most urgent first, as dicts of `Advice`.
    """
    if not run.config.is_file():
        raise Refused(f"{run.path} has no config.yaml, so there is nothing to compare with")
    changes = _choose_changes(given, advice)
    proofs = run.path / "proofs"
    with FolderLock(proofs):
        proof = _open(proofs / _name(changes, given), changes, given, run)
        arms = proof.plan.arms(given.seeds, given.control)
        return _run(proof, arms, given)


def _choose_changes(given: Namespace, advice: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of the command line, else of the advice with the wanted rank, or of the first that has some."""
    if given.change:
        return dict(map(_read_change, given.change))
    ranks = [rank for rank, each in enumerate(advice, 1) if each["changes"]]
    rank = given.rank or next(iter(ranks), 1)
    if rank not in ranks:
        remedy = f"choose from {', '.join(map(str, ranks))}, or " if ranks else ""
        raise Refused(f"no advice of rank {rank} changes a setting; {remedy}name a --change SETTING=VALUE")
    return {change["setting"]: change["proposed"] for change in advice[rank - 1]["changes"]}


def _read_change(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)  # YAML takes 1e-4 for a word
    except ValueError:
        return name, yaml.safe_load(value)


def _name(changes: dict[str, Any], given: Namespace) -> str:
    """Of the proof's folder: the same command finds it again."""
    terms = [changes, given.from_start, given.budget_env_steps, _get_named_state(given)]
    identity = json.dumps(terms, sort_keys=True)
    setting = next(iter(changes)).rpartition(".")[2]
    return f"{setting}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _get_named_state(given: Namespace) -> str | None:
    """The checkpoint that the user means; None for the run's newest."""
    return given.path if given.path and Path(given.path).is_file() else None


def _open(folder: Path, changes: dict[str, Any], given: Namespace, run: RunFolder) -> Proof:
    """The proof that lies there, or a new one with what its arms begin from."""
    if known := read_json(folder / "plan.json"):
        return Proof(folder, Plan(**known))
    save = None if given.from_start else find_save(_get_named_state(given) or str(run.path), given.root)
    plan = _make_plan(changes, given, run, save)
    if faults := plan.find_faults(changes):
        raise ConfigError(faults)
    proof = Proof(folder, plan)
    shutil.rmtree(proof.start.path, ignore_errors=True)
    proof.start.path.mkdir(parents=True)
    for file in filter(Path.is_file, (run.config, run.summary)):
        shutil.copy(file, proof.start.path)
    if save is not None:
        try:
            adopt(save, proof.start)
        except FileNotFoundError as error:
            raise Refused(f"{error.filename} went away: the run has saved anew; try once more") from None
    return proof


def _make_plan(changes: dict[str, Any], given: Namespace, run: RunFolder, save: Save | None) -> Plan:
    settings = yaml.safe_load(run.config.read_text())["model"]
    done = (save and read_full_checkpoint(save)["perdqn"]) or run.read_summary()
    env_steps = int(done.get("env_steps") or settings["total_env_steps"] or LEAST_ENV_STEPS)
    if save is None:
        return Plan(changes, settings, 0, given.budget_env_steps or env_steps)
    if unfit := [name for name in changes if not fits_fork(name)]:
        raise Refused(f"{', '.join(unfit)} cannot change in a fork; {FROM_START}")
    left = (settings["total_env_steps"] or sys.maxsize) - env_steps
    if left <= 0 or run.read_summary().get("status") in OVER:
        raise Refused(f"{run.path} is finished, so that a change comes too late; {FROM_START}")
    if done["update_steps"] == 0:
        raise Refused(f"{save.checkpoint} is of the warm-up: nothing is learnt yet; {FROM_START}")
    budget = given.budget_env_steps or min(left, max(env_steps // 5, LEAST_ENV_STEPS))
    return Plan(changes, settings, env_steps, budget)


def _run(proof: Proof, arms: list[Arm], given: Namespace) -> int:
    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    left = [arm for arm in arms if proof.get_result(arm) is None]
    if left and proof.plan.begin_env_steps and not proof.start.has_save:
        raise Refused(f"{proof.path} is done and what it began from is gone; remove it to prove this anew")
    tell(_announce(proof, arms, left))
    code = 0
    try:
        proof.run(left, given.jobs, tell)
    except KeyboardInterrupt:
        tell("interrupted; the same command runs the arms that are left")
        code = 130
    found = {**proof.compare(arms), "folder": str(proof.path)}
    write_whole(proof.path / "proof.json", json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2) if given.json else format_comparison(found))
    return code or int(bool(proof.failures))


def _announce(proof: Proof, arms: list[Arm], left: list[Arm]) -> str:
    plan, summary = proof.plan, proof.start.read_summary()
    changes = ", ".join(f"{name} {spell(value)}" for name, value in plan.changes.items())
    begin = f"from {plan.begin_env_steps:,} env steps on" if plan.begin_env_steps else "from the beginning"
    lines = [f"proving {changes}: {len(arms)} arms of {plan.budget_env_steps:,} env steps, {begin}"]
    if len(left) < len(arms):
        lines.append(f"{len(arms) - len(left)} arms are done")
    if left and summary.get("seconds") and summary.get("env_steps"):
        each = summary["seconds"] * plan.budget_env_steps / summary["env_steps"]
        lines.append(f"some {format_seconds(each)} each at the run's speed; Ctrl-C keeps what is done")
    return "\n".join([*lines, f"in {proof.path}"])
