"""TensorBoard as a process that serves a folder.

Knows nothing about what is in the folder.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 30.0  # that reading a small folder may take


@contextmanager
def tensorboard(folder: Path, pages: Iterable[str]) -> Iterator[str]:
    """Its address, once there is something to see on these of its pages; on this machine alone."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = _get_address(process.stderr)
            _wait_for(address, set(pages))
            yield address
        finally:
            process.terminate()


def _get_address(lines: Iterable[str]) -> str:
    said = []
    for line in lines:
        if found := re.search(r"http://\S+", line):
            return found[0]
        said.append(line)
    raise AssertionError(f"TensorBoard did not start: {''.join(said)}")


def _wait_for(address: str, pages: set[str]) -> None:
    """A browser is told once which pages there are, so it comes when they are."""
    until = time.monotonic() + SECONDS
    missing = pages
    while missing:
        assert time.monotonic() < until, f"TensorBoard shows no {', '.join(sorted(missing))}"
        time.sleep(0.1)
        with urllib.request.urlopen(f"{address}data/plugins_listing") as answer:
            listed = json.load(answer)
        missing = {page for page in pages if not listed[page]["enabled"]}
