"""A sample of cosmic-ray's mutants over replay, TD mathematics and acting, and which tests kill them.

    pip install cosmic-ray
    python benchmarks/mutants.py --seed 0

Works on a copy of the checkout in a temporary folder. Left out beforehand: mutants of ``|``, nearly all
of which lie in type annotations that nothing evaluates, and removed decorators, which only make
kernels slower. Kernels run uncompiled, so that a mutant costs no compilation.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {  # sources, their tests, mutants drawn
    "replay": (
        ["perdqn/replay/sum_tree.py", "perdqn/replay/rows.py", "perdqn/replay/prioritized.py"],
        ["tests/perdqn/replay", "tests/perdqn/test_peer_mistakes.py"],
        24,
    ),
    "td": (["perdqn/learning/td.py", "perdqn/learning/heads.py"], ["tests/perdqn/learning"], 10),
    "acting": (
        [
            "perdqn/acting/actor.py",
            "perdqn/acting/vector.py",
            "perdqn/acting/guard.py",
            "perdqn/experience.py",
        ],
        ["tests/perdqn/acting", "tests/perdqn/test_experience.py"],
        14,
    ),
}
SKIPPED = ("core/ReplaceBinaryOperator_BitOr", "core/RemoveDecorator")


def run_group(folder: Path, name: str, seed: int) -> None:
    """Draw, run and report the mutants of one group."""
    sources, tests, count = GROUPS[name]
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {' '.join(tests)}"
    config, session = folder / f"{name}.toml", folder / f"{name}.sqlite"
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {sources!r}\ntimeout = 300.0\nexcluded-modules = []\n"
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1"}
    call = {"cwd": folder, "check": True, "env": environment}
    subprocess.run(["cosmic-ray", "init", config.name, session.name], **call)  # type: ignore[call-overload]
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "select job_id, operator_name from mutation_specs "
            "order by module_path, start_pos_row, start_pos_col, operator_name, occurrence"
        ).fetchall()
        eligible = [job for job, operator in rows if not operator.startswith(SKIPPED)]
        kept = set(random.Random(seed).sample(eligible, count))
        for table in ("mutation_specs", "work_items"):
            drop = [(job,) for job, _ in rows if job not in kept]
            database.executemany(f"delete from {table} where job_id = ?", drop)
    subprocess.run(["cosmic-ray", "exec", config.name, session.name], **call)  # type: ignore[call-overload]
    with sqlite3.connect(session) as database:
        found = database.execute(
            "select module_path, start_pos_row, operator_name, test_outcome, diff from mutation_specs "
            "join work_results using (job_id) order by 1, 2"
        ).fetchall()
    survivors = [row for row in found if "SURVIVED" in str(row[3]).upper()]
    print(f"{name}: {len(found) - len(survivors)} of {len(found)} mutants killed ({len(eligible)} eligible)")
    for module, row, operator, _, diff in survivors:
        changed = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        print(f"  survived {module}:{row} {operator}", *(f"    {line}" for line in changed), sep="\n")
    sys.stdout.flush()


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in ("perdqn", "tests", "callbacks", "configs", "pyproject.toml"):
            source, target = ROOT / part, Path(folder, part)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        os.environ["PYTHONPATH"] = folder
        for name in args.groups:
            run_group(Path(folder), name, args.seed)


if __name__ == "__main__":
    main()
