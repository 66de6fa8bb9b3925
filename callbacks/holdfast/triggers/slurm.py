"""What SLURM is asked: when a job ends, and to queue it again.

Knows nothing about what the job does.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

Ask = Callable[[Sequence[str]], str | None]


def ask_program(command: Sequence[str]) -> str | None:
    """What a program prints; None where it is missing, fails or takes long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def job_of(environment: Mapping[str, str]) -> str | None:
    """How SLURM calls the job this process belongs to, in its own words."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
    job = f"{array}_{task}" if array else environment.get("SLURM_JOB_ID", "")
    return job if job and all(part.isdigit() for part in job.split("_")) else None


def end_of(job: str, environment: Mapping[str, str], ask: Ask) -> float | None:
    """When a job ends, in seconds since 1970.

    Programs are asked first, since a limit may have been changed since the job's variables were set.
    """
    if (end := _local_time((ask(["squeue", "-h", "-j", job, "-o", "%e"]) or "").strip())) is not None:
        return end
    for word in (ask(["scontrol", "show", "job", job]) or "").split():
        if word.startswith("EndTime=") and (end := _local_time(word.removeprefix("EndTime="))) is not None:
            return end
    variable = environment.get("SLURM_JOB_END_TIME", "")
    return float(variable) if variable.isdigit() else None


def requeue(job: str, ask: Ask) -> bool:
    """Whether the job is queued again, to go on where it stopped."""
    return ask(["scontrol", "requeue", job]) is not None


def _local_time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # N/A, Unknown, NONE, nothing
        return None
