"""The command `perdqn report`: one page, and the same as JSON, on one run or several.

Knows nothing about what a page shows.
"""

from __future__ import annotations

import json
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from holdfast.storage.durable import write_whole

from perdqn.cli.command_line import Refused
from perdqn.reporting.curves import find_event_files
from perdqn.run.folder import RunFolder, RunNotFound
from perdqn.run.saves import find_run


def report(given: Namespace) -> int:
    """Exit code 0 once both files are written."""
    if missing := [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]:
        raise Refused(f"it needs {' and '.join(missing)}: pip install 'perdqn[report]'")
    from perdqn.reporting.gather import gather
    from perdqn.reporting.page import render

    runs = [_find(reference, given.root) for reference in given.runs or [None]]
    page = given.out or runs[0].path / "report.html"
    data = given.json or page.with_suffix(".json")
    gathered = [gather(run, with_replay=not given.no_replay) for run in runs]
    _write(page, render(gathered))
    _write(data, json.dumps({"version": gathered[0]["version"], "runs": gathered}, allow_nan=False) + "\n")
    print(f"page  {page}\ndata  {data}")
    return 0


def _find(reference: str | None, root: Path) -> RunFolder:
    run = find_run(reference, root)
    if not run.config.is_file() and not find_event_files(run.path):
        raise RunNotFound(
            f"{run.path} holds no run: neither settings nor TensorBoard's logs; name a run folder"
        )
    return run


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror or error}") from None
