"""Notices of preemption, against servers that answer as the clouds do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from holdfast.triggers import Preemption
from holdfast.triggers.preemption import Aws, Azure, Gcp, Url


class Service:
    """A metadata service: (method, path) -> (needed header, status, text)."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[tuple[str, str] | None, int, str]] = {}
        self.num_asked = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                service.num_asked += 1
                header, status, text = service.answers.get((self.command, self.path), (None, 404, ""))
                if header is not None and self.headers.get(header[0]) != header[1]:
                    status, text = 401, "who asks?"
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = answer

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # metadata services are never behind a proxy
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


def start(run, *sources, **settings) -> Preemption:
    trigger = Preemption(sources, **settings)
    trigger.start(run.context)
    return trigger


def test_a_file_that_appears_is_a_notice(run, tmp_path):
    path = tmp_path / "preempted"
    preemption = start(run, path)
    preemption.poll()
    assert preemption.fired() is None
    path.write_text("maintenance at noon\nand more")
    run.wait(2)
    preemption.poll()
    assert preemption.fired().message == f"{path} appeared: maintenance at noon"
    assert preemption.fired().is_stopping
    assert preemption.fired().grace_s == 30


def test_a_mistyped_cloud_is_refused_and_not_taken_for_a_file():
    with pytest.raises(ValueError, match=r"must be gcp, aws, azure, a URL or .*, got 'gpc'; use \./gpc"):
        Preemption(["gpc"])
    for path in ("./gpc", Path("gpc")):
        assert Preemption([path])


def test_any_url_that_answers_with_a_text_is_a_notice(run, service):
    preemption = start(run, f"{service.base}/notice")
    preemption.poll()
    assert preemption.fired() is None
    service.answers["GET", "/notice"] = (None, 200, "leave")
    run.wait(2)
    preemption.poll()
    assert "leave" in preemption.fired().message
    assert run.notes == []


def test_any_callable_is_a_source(run):
    preemption = start(run, lambda: "the queue is drained", grace_s=7)
    preemption.poll()
    assert preemption.fired().message == "the queue is drained"
    assert preemption.fired().grace_s == 7


def test_google_says_true(service):
    source, header = Gcp(service.base), ("Metadata-Flavor", "Google")
    path = "/computeMetadata/v1/instance/preempted"
    service.answers["GET", path] = (header, 200, "FALSE")
    assert source() is None
    service.answers["GET", path] = (header, 200, "TRUE")
    assert "TRUE" in source()


def test_amazon_is_asked_with_a_token_that_is_renewed(service):
    source = Aws(service.base)
    lifetime = ("X-aws-ec2-metadata-token-ttl-seconds", "21600")
    service.answers["PUT", "/latest/api/token"] = (lifetime, 200, "secret")
    action = ("GET", "/latest/meta-data/spot/instance-action")
    assert source() is None
    assert source() is None
    assert service.num_asked == 3  # one token for both
    service.answers["PUT", "/latest/api/token"] = (lifetime, 200, "newer")
    service.answers[action] = (("X-aws-ec2-metadata-token", "newer"), 200, '{"action": "terminate"}')
    with pytest.raises(OSError, match="401"):
        source()
    assert "terminate" in source()


def test_azure_names_the_machine_and_the_kind(service):
    source, header = Azure(service.base), ("Metadata", "true")
    name = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    events = ("GET", "/metadata/scheduledevents?api-version=2020-07-01")
    service.answers["GET", name] = (header, 200, "mine")

    def announce(kind: str, machine: str) -> None:
        event = {"EventType": kind, "Resources": [machine], "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}
        service.answers[events] = (header, 200, json.dumps({"Events": [event]}))

    announce("Preempt", "another")
    assert source() is None
    announce("Freeze", "mine")
    assert source() is None
    announce("Preempt", "mine")
    assert "Preempt not before Mon, 19 Sep" in source()


def test_a_source_that_fails_is_mentioned_once_and_asked_ever_more_rarely(run):
    asked_at: list[float] = []

    def gone():
        asked_at.append(run.now)
        raise OSError("no route to host")

    preemption = start(run, gone, every_s=2)
    run.watch(preemption, 600)
    assert run.notes == ["no preemption notice can be had from gone: no route to host"]
    assert len(asked_at) < 16
    assert max(b - a for a, b in pairwise(asked_at)) == 60


def test_a_failing_source_hides_no_other(run):
    preemption = start(run, lambda: 1 / 0, lambda: "leave")
    preemption.poll()
    assert preemption.fired().message == "leave"


def test_nobody_listening_is_no_notice(run, service):
    service.server.shutdown()
    service.server.server_close()
    preemption = start(run, Url(f"{service.base}/notice"))
    preemption.poll()
    assert preemption.fired() is None
    assert len(run.notes) == 1


@pytest.mark.parametrize(("name", "kind"), [("gcp", Gcp), ("aws", Aws), ("azure", Azure)])
def test_clouds_are_known_by_name(name, kind):
    assert isinstance(Preemption([name])._sources[0], kind)
