"""Notices that the machine is about to be taken away.

Knows nothing about what happens then.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .reason import Context, Trigger

Source = Callable[[], str | None]  # a message once the notice is there; may raise OSError or ValueError

_LINK_LOCAL = "http://169.254.169.254"


class Preemption(Trigger):
    """Fires when any of its sources has a message.

    A source that fails is mentioned once and asked ever more rarely, up to once a minute.

    Args:
        sources: a path (the notice is that the file exists), a URL (answers 200 with a text), one of
            ``gcp``, ``aws``, ``azure``, or any callable that returns None or a message.
        grace_s: seconds from the notice to the end: 30 on GCP and Azure, 120 on AWS.
        every_s: seconds between two looks.
    """

    kind = "preemption"
    may_block = True

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str] | Source] = (),
        grace_s: float = 30.0,
        every_s: float = 2.0,
    ) -> None:
        super().__init__()
        self.grace_s, self.every_s = grace_s, every_s
        self._sources = [as_source(source) for source in sources]
        self._pauses: dict[Source, float] = {}
        self._due: dict[Source, float] = {}

    def start(self, context: Context) -> None:
        super().start(context)
        self.interval_s = self.every_s
        self._pauses = dict.fromkeys(self._sources, self.every_s)
        self._due = dict.fromkeys(self._sources, float("-inf"))

    def poll(self) -> None:
        now = self._context.clock()
        for source in [source for source, at in self._due.items() if at <= now]:
            message = self._ask(source)
            self._due[source] = now + self._pauses[source]
            if message:
                self.fire(message, self.grace_s)

    def _ask(self, source: Source) -> str | None:
        try:
            message = source()
        except Exception as error:
            self._pauses[source] = min(60.0, 2 * self._pauses[source])
            self._context.note(f"no preemption notice can be had from {_name(source)}: {error}")
            return None
        self._pauses[source] = self.every_s
        return message


def as_source(source: str | os.PathLike[str] | Source) -> Source:
    """The callable meant by a name, URL or path.

    Raises:
        ValueError: a single word that is no name: a mistyped one would never fire.
    """
    if callable(source):
        return source
    text = os.fspath(source)
    if text in _CLOUDS:
        return _CLOUDS[text]()
    if text.startswith(("http://", "https://")):
        return Url(text)
    if isinstance(source, str) and Path(text).name == text:
        names = ", ".join(_CLOUDS)
        raise ValueError(
            f"notices must be {names}, a URL or a path with its folder, got {text!r}; "
            f"use ./{text} for a file of that name"
        )
    return NoticeFile(text)


class NoticeFile:
    """The notice is that a file exists; its first line is the message."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __call__(self) -> str | None:
        try:
            text = self.path.read_text(errors="replace").strip()
        except FileNotFoundError:
            return None
        return f"{self.path} appeared" + (f": {text.splitlines()[0][:200]}" if text else "")


class Url:
    """The notice is that a URL answers with a text that ``is_notice``; 404 means none.

    Metadata services are asked directly, whatever proxy is set.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        is_notice: Callable[[str], bool] = bool,
        timeout_s: float = 1.0,
    ) -> None:
        self.url, self.headers, self.is_notice, self.timeout_s = (
            url,
            dict(headers or {}),
            is_notice,
            timeout_s,
        )

    def __call__(self) -> str | None:
        text = fetch(self.url, self.headers, timeout_s=self.timeout_s)
        return f"{self.url} says {text[:200]}" if text is not None and self.is_notice(text) else None


class Gcp(Url):
    """Google Compute Engine: the instance's ``preempted`` turns TRUE."""

    def __init__(self, base: str = "http://metadata.google.internal") -> None:
        url = f"{base}/computeMetadata/v1/instance/preempted"
        super().__init__(url, {"Metadata-Flavor": "Google"}, lambda text: text.upper() == "TRUE")


class Aws:
    """Amazon EC2, IMDSv2: ``spot/instance-action`` appears two minutes before the end."""

    def __init__(self, base: str = _LINK_LOCAL) -> None:
        self.url = f"{base}/latest/meta-data/spot/instance-action"
        self._token_url = f"{base}/latest/api/token"
        self._token: str | None = None

    def __call__(self) -> str | None:
        if self._token is None:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            self._token = fetch(self._token_url, lifetime, method="PUT")
        try:
            text = fetch(self.url, {"X-aws-ec2-metadata-token": self._token or ""})
        except OSError:
            self._token = None  # it may have run out
            raise
        return f"EC2 announces {text}" if text else None


class Azure:
    """Azure: scheduled events of the kinds Preempt and Terminate that name this machine."""

    KINDS = ("Preempt", "Terminate")

    def __init__(self, base: str = _LINK_LOCAL) -> None:
        self.url = f"{base}/metadata/scheduledevents?api-version=2020-07-01"
        self._name_url = f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        self._machine: str | None = None

    def __call__(self) -> str | None:
        headers = {"Metadata": "true"}
        if self._machine is None:
            self._machine = fetch(self._name_url, headers) or ""
        for event in json.loads(fetch(self.url, headers) or "{}").get("Events", []):
            if event["EventType"] in self.KINDS and self._machine in event.get("Resources", [self._machine]):
                return f"Azure announces {event['EventType']} not before {event.get('NotBefore') or 'now'}"
        return None


_CLOUDS: dict[str, Callable[[], Source]] = {"gcp": Gcp, "aws": Aws, "azure": Azure}


def fetch(url: str, headers: Mapping[str, str], method: str = "GET", timeout_s: float = 1.0) -> str | None:
    """The text at ``url``; None for 404.

    Raises:
        OSError: no answer, or another one than the text.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with direct.open(request, timeout=timeout_s) as answer:
            return str(answer.read(65536).decode(errors="replace")).strip()
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
            raise OSError(f"HTTP status {error.code}") from error


def _name(source: Source) -> str:
    where = getattr(source, "url", None) or getattr(source, "path", None)
    return str(where or getattr(source, "__name__", type(source).__name__))
