"""Metrics of a publisher: in the trainer's own registry, and on a page of their own."""

from __future__ import annotations

import pathlib
import re
import socket

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from holdfast import FencedError, Retention, Term
from holdfast.errors import UnavailableError, UsageError
from holdfast.metrics import PublisherCollector, serve
from holdfast.net.listening import parse_listen
from tests.support.channels import Place, payload, until
from tests.support.promlint import fetch, lint


def test_a_publisher_counts_what_it_does(directory: Place) -> None:
    publisher = directory.channel().publisher(Retention(keep_recent=1))
    where = f'{{channel="{publisher.channel.name}"}}'
    with serve("127.0.0.1:0", PublisherCollector(publisher)) as page:
        before = lint(fetch(page.url))
        assert before[f"holdfast_publisher_versions_published_total{where}"] == 0
        assert before[f"holdfast_publisher_cycle{where}"] == 0
        with publisher:
            for step in (3, 5, 8):
                publisher.publish_payload(step, payload(f"weights of {step}"))
            swept = f"holdfast_publisher_versions_swept_total{where}"
            until(lambda: lint(fetch(page.url))[swept] == 2)
            now = lint(fetch(page.url))
    assert now[f"holdfast_publisher_versions_published_total{where}"] == 3
    assert now[f"holdfast_publisher_published_bytes_total{where}"] > 0
    assert now[f"holdfast_publisher_publish_seconds_count{where}"] == 3
    assert now[f"holdfast_publisher_cycle{where}"] == 1
    assert now[f"holdfast_publisher_newest_step{where}"] == 8
    assert now[f"holdfast_publisher_tombstones_total{where}"] == 2
    assert now[f"holdfast_publisher_fenced{where}"] == 0
    with pytest.raises(OSError, match="refused"):
        fetch(page.url)


def test_it_stands_in_the_trainers_own_registry(directory: Place) -> None:
    registry = CollectorRegistry(auto_describe=True)
    Counter("holdfast_test_steps", "the trainer's own", registry=registry).inc()
    publisher = directory.channel().publisher(sweep=False)
    collector = PublisherCollector(publisher)
    registry.register(collector)
    with publisher:
        publisher.publish_payload(1, payload("one"))
    with directory.channel().publisher(sweep=False, resume_from=1) as again:
        collector.add(again)  # the same channel: no series is there twice
        again.publish_payload(2, payload("two"))
        now = lint(generate_latest(registry).decode())
    where = f'{{channel="{publisher.channel.name}"}}'
    assert now[f"holdfast_publisher_versions_published_total{where}"] == 2
    assert now[f"holdfast_publisher_cycle{where}"] == 2
    assert f"holdfast_publisher_versions_kept{where}" not in now
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PublisherCollector(publisher))


def test_a_publisher_that_was_replaced_says_so(directory: Place) -> None:
    publisher = directory.channel().publisher(sweep=False)
    collector = PublisherCollector(publisher)
    registry = CollectorRegistry()
    registry.register(collector)
    where = f'{{channel="{publisher.channel.name}"}}'
    with publisher:
        other = Term(job="other", round=0, nonce="1")
        with directory.channel().publisher(sweep=False, term=other, take_over=True), pytest.raises(FencedError):
            publisher.publish_payload(1, payload("zombie"))
        assert lint(generate_latest(registry).decode())[f"holdfast_publisher_fenced{where}"] == 1


def test_waiting_for_room_and_failing_for_it_are_counted(directory: Place) -> None:
    publisher = directory.channel().publisher(Retention(max_bytes=100), room_timeout_s=0.05, sweep=False)
    registry = CollectorRegistry()
    registry.register(PublisherCollector(publisher))
    where = f'channel="{publisher.channel.name}"'
    with publisher:
        publisher.publish_payload(1, payload("x" * 60))
        with pytest.raises(UnavailableError):
            publisher.publish_payload(2, payload("y" * 60))
        now = lint(generate_latest(registry).decode())
    assert now[f'holdfast_publisher_publish_failures_total{{{where},code="no_room"}}'] == 1
    assert now[f"holdfast_publisher_versions_published_total{{{where}}}"] == 1


def test_a_port_in_use_is_one_line(directory: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"metrics cannot be served at 127.0.0.1:{port}: .*in use") as raised:
            serve(f"127.0.0.1:{port}")
    assert raised.value.code == "cannot_listen"
    with pytest.raises(UsageError):
        serve("192.0.2.1:0")  # nobody here has this address


@pytest.mark.parametrize(
    ("said", "meant"),
    [("9400", ("127.0.0.1", 9400)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:65535", ("::1", 65535)), ("h:0", ("h", 0))],
)
def test_where_to_listen(said: str, meant: tuple[str, int]) -> None:
    assert parse_listen(said) == meant


@pytest.mark.parametrize("said", ["", ":", ":80", "h:", "h:x", "h:-1", "h:65536", "h:999999999999", "h:٣"])
def test_where_nobody_can_listen(said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_listen(said)
    assert raised.value.code == "bad_listen"


def test_every_metric_is_in_the_documentation_and_no_other() -> None:
    root = pathlib.Path(__file__).resolve().parents[2]
    code = [root / "src" / "holdfast" / name for name in ("metrics.py", "rendezvous/metrics.py", "sync/metrics.py")]
    made: set[str] = set()
    for path, prefix in zip(code, ("holdfast_publisher_", "", "holdfast_sync_"), strict=True):
        text = path.read_text(encoding="utf-8")
        made |= set(re.findall(r'"(holdfast_[a-z_]+)"', text)) - {"holdfast_agent"}
        if prefix:
            made |= {prefix + name for name in re.findall(r'_(?:gauge|counter)\(\s*"([a-z_]+)"', text)}
    page = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    told: set[str] = set()
    for line in page.splitlines():
        if line.startswith("| `holdfast_"):
            names = re.findall(r"`(holdfast|…)_([a-z_]+)", line.split(" | ")[0])
            prefix = "_".join(["holdfast", names[0][1].split("_")[0]])
            told |= {f"holdfast_{name}" if first == "holdfast" else f"{prefix}_{name}" for first, name in names}
    assert {name.removesuffix("_total") for name in told} - {"holdfast_agent_info"} == made
