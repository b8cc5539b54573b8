"""No I/O goes around the contract, and what the shells do, they do in the order that the design gives."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from holdfast.testing import SimulatedDisk
from tests.crash import acts
from tests.crash.hand import Hand
from tests.crash.listening import Heard, Listening
from tests.crash.orders import (
    Trace,
    check_acknowledgements,
    check_listed_first,
    check_orders,
    check_sweeps,
    check_takes,
)
from tests.crash.world import ROOT, World

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
OPS = "holdfast/channel/ops.py"
EVENTS = "holdfast/events.py"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """The channel's root, and every file-system event of a process that published, consumed and swept there."""
    root = tmp_path_factory.mktemp("audited")
    command = [sys.executable, "-m", "tests.crash.audited", str(root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    return f"{root}/channel", [json.loads(line) for line in done.stdout.splitlines()]


def _strangers(root: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events that touch the channel, or may, and come from neither the contract's calls nor the event log's."""
    found = []
    for event in events:
        is_notification = event["file"].endswith("inotify_simple.py") and event["args"][0].isdigit()
        if event["file"].endswith(OPS) or is_notification:  # a handle is no path
            continue
        paths = [text for text in event["args"] if text.startswith("/")]
        is_elsewhere = bool(paths) and not any(path.startswith(root) for path in paths)
        is_event_file = all(path.startswith(f"{root}/events/") for path in paths)
        if not is_elsewhere and not (event["file"].endswith(EVENTS) and paths and is_event_file):
            found.append(event)
    return found


def test_every_call_to_the_file_system_goes_through_the_contract(audited: tuple[str, list[dict[str, Any]]]) -> None:
    root, events = audited
    strangers = _strangers(root, events)
    assert [event["args"][0] for event in strangers] == [f"{root}/planted"], "the one that was planted, no other"


def test_the_audit_saw_what_there_was_to_see(audited: tuple[str, list[dict[str, Any]]]) -> None:
    _, events = audited
    ours = [event["event"] for event in events if event["file"].endswith(OPS)]
    assert set(ours) >= {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.symlink"}
    assert len(ours) > 500
    assert any(event["file"].endswith(EVENTS) for event in events)


@pytest.fixture
def heard(hand: Hand) -> list[Heard]:
    """Every call, reads as well, of four publishes, one consumer and a sweep for each."""
    disk = SimulatedDisk()
    world = World(hand, disk)
    heard: list[Heard] = []
    marks = Listening(disk, "test", heard)
    publisher = world.open_publisher(ops=Listening(disk, "publisher", heard))
    server = world.open_consumer("server", ops=Listening(disk, "server", heard))
    sweeper = world.sweeper(publisher.cycle, ops=Listening(disk, "sweeper", heard))
    for step, label in enumerate(acts.FOUR, 1):
        world.publish(publisher, step, label)
        world.sweep(sweeper)
        marks.mark("take")
        held = world.take(server)
        assert held is not None, server.status
        marks.mark(f"given {held.name}")
        marks.mark("acknowledge")
        world.acknowledge(server, held)
        marks.mark("acknowledged")
        for older in server.held[:-1]:
            world.release(server, older)
        world.sweep(sweeper)
    world.abandon()
    assert len(heard) > 500
    return heard


def test_the_orders_of_publish_claim_hold_and_sweep(heard: list[Heard]) -> None:
    counts = check_orders(Trace(ROOT, heard))
    assert counts["version"] == 4
    assert counts["record"] >= 20
    assert counts["hint"] >= 4
    assert counts["retired"] == 2


def test_a_consumer_holds_then_looks_then_opens(heard: list[Heard]) -> None:
    assert check_takes(Trace(ROOT, heard)) == 4


def test_a_consumer_looks_at_its_lease_before_it_acknowledges(heard: list[Heard]) -> None:
    assert check_acknowledgements(Trace(ROOT, heard)) == 4


def test_a_sweeper_announces_then_looks_afresh_then_removes(heard: list[Heard]) -> None:
    assert check_sweeps(Trace(ROOT, heard)) == 2


def test_nothing_is_asked_for_by_name_before_a_listing_showed_it(heard: list[Heard]) -> None:
    """On NFS a name that was asked for too early stays missing for 30 s and more."""
    assert check_listed_first(ROOT, heard) > 50
