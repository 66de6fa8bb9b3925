"""Four answers on top of a report: is it healthy, what slows it, what to change, what next.

Knows nothing about how they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from perdqn.run.summary import format_seconds

GOOD, WATCH, BAD = "good", "watch", "bad"


class Answer(NamedTuple):
    """A question, the answer in a few words, the figures behind it, and how good it is."""

    question: str
    answer: str
    detail: str
    mood: str = ""


def get_answers(run: Mapping[str, Any]) -> list[Answer]:
    """Of one run, as `gather` has it."""
    return [_is_healthy(run), _what_slows(run), _what_to_change(run), _what_next(run)]


def standing_alerts(alerts: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Raised and not cleared since, newest of each kind."""
    standing: dict[str, Mapping[str, Any]] = {}
    for alert in alerts:
        if alert.get("state") == "raised":
            standing[str(alert.get("kind"))] = alert
        elif alert.get("state") == "cleared":
            standing.pop(str(alert.get("kind")), None)
    return list(standing.values())


def _is_healthy(run: Mapping[str, Any]) -> Answer:
    question = "Is it healthy?"
    alerts = standing_alerts(run["alerts"])
    critical = [one for one in run["advice"] if one.get("priority") == "critical"]
    if run["status"] in ("failed", "killed"):
        reason = run["summary"].get("stop_reason") or "it can be resumed from its newest save"
        return Answer(question, f"It {'was killed' if run['status'] == 'killed' else 'failed'}", reason, BAD)
    if critical:
        return Answer(question, "It is not learning as it should", str(critical[0].get("message")), BAD)
    if alerts:
        return Answer(question, "Something runs short", str(alerts[0].get("message")), WATCH)
    saves = [save for save in run["saves"] if save["is_resumable"]]
    detail = f"{len(saves)} saved states to go on from" if saves else "no saved state"
    if not run["alerts"] and not run["advice_log"]:
        detail += "; alerts and advice were not recorded or there were none"
    return Answer(question, "Nothing speaks against it", detail, GOOD)


def _what_slows(run: Mapping[str, Any]) -> Answer:
    question = "What slows it?"
    bottlenecks = (run["performance"] or {}).get("bottlenecks") or []
    rate = run["progress"]["env_steps_per_second"]
    speed = f"{rate:,.0f} env steps/s" if rate else "speed not recorded"
    if bottlenecks:
        first = bottlenecks[0]
        detail = f"{first['share']:.0%} of the time; {first['speed_up']:.2f} times as fast without; {speed}"
        return Answer(question, str(first["label"]).replace("_", " "), detail, WATCH)
    if run["phases"]:
        name, share = max(run["phases"].items(), key=lambda phase: phase[1])
        return Answer(
            question,
            "Nothing that could be left out",
            f"most time: {name.replace('_', ' ')}, {share:.0%}; {speed}",
            GOOD,
        )
    return Answer(question, "Not recorded", speed)


def _what_to_change(run: Mapping[str, Any]) -> Answer:
    question = "What to change?"
    if not run["advice"]:
        return Answer(question, "Nothing", "no advice stands", GOOD)
    first = run["advice"][0]
    changes = ", ".join(f"{c['setting']} {c['proposed']}" for c in first.get("changes") or ())
    mood = BAD if first.get("priority") == "critical" else WATCH
    return Answer(question, changes or str(first.get("rule")), str(first.get("message")), mood)


def _what_next(run: Mapping[str, Any]) -> Answer:
    question, progress = "What next?", run["progress"]
    steps = f"{progress['env_steps']:,} env steps"
    if progress["seconds_left"]:
        low, middle, high = (format_seconds(seconds) for seconds in progress["seconds_left"])
        share = f"{progress['fraction']:.0%}"
        return Answer(
            question, f"{middle} left", f"{share} done, {steps}; between {low} and {high} at recent speeds"
        )
    best, final = (run["summary"].get(f"{kind}_evaluation_mean") for kind in ("best", "final"))
    if final is not None:
        low, high = (run["summary"].get(f"final_evaluation_{end}") for end in ("low", "high"))
        band = f", 95 % interval {low:,.1f} to {high:,.1f}" if low is not None and high is not None else ""
        return Answer(question, f"Final return {final:,.1f}", f"{steps}{band}")
    if run["status"] in ("killed", "interrupted", "stopped", "failed"):
        return Answer(question, f"perdqn resume {run['path']}", f"{steps} done")
    return Answer(question, steps, "best evaluation " + (f"{best:,.1f}" if best is not None else "none yet"))
