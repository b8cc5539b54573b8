"""What happens to servers that freeze, die, come back twice, may not write, or know only the older layout."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.support.cast import Cast
from tests.support.channels import until

NOBODY = 65534


@pytest.fixture
def cast(room: pathlib.Path) -> Iterator[Cast]:
    with Cast(room / "channel") as cast:
        yield cast


def test_frozen_past_its_lease(cast: Cast) -> None:
    """A server freezes for longer than a lease; meanwhile its version is swept. It is told, and goes on."""
    trainer, server = cast.role(lease=1.5), cast.role(lease=1.5)
    assert trainer("train trainer-1 keep=1") == "cycle 1"
    assert trainer("publish 1") == "published 1"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:1"
    assert trainer("publish 2") == "published 2"
    server.freeze()
    until(lambda: cast.steps() == [2], "nobody waits for ever for a server that says nothing")
    server.thaw()
    assert server("acknowledge").startswith("error lease_lost")
    assert server("lost") == "lost"
    assert server("take") == "given trainer-1:2"
    assert server("acknowledge") == "acknowledged 2"


def test_frozen_within_its_lease(cast: Cast) -> None:
    """A server freezes for longer than a naive clean-up would wait: what it holds is there when it wakes."""
    trainer, server = cast.role(lease=60), cast.role(lease=60)
    assert trainer("train trainer-1 keep=1") == "cycle 1"
    assert trainer("publish 1") == "published 1"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:1"
    server.freeze()
    for step in range(2, 8):
        assert trainer(f"publish {step}") == f"published {step}"
    until(lambda: cast.steps() == [1, 7])
    server.thaw()
    assert server("read") == "trainer-1:1"
    assert server("acknowledge") == "acknowledged 1"
    assert server("take") == "given trainer-1:7"
    assert server("release 1") == "released 1"


def test_killed_and_restarted_under_the_same_name(cast: Cast) -> None:
    """A killed server's holds stand; its successor takes them over, and then they are its own to release."""
    trainer, server = cast.role(), cast.role()
    assert trainer("train trainer-1 sweep=no") == "cycle 1"
    assert trainer("publish 1") == "published 1"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:1"
    server.kill()
    assert trainer("publish 2") == "published 2"
    assert trainer("sweep keep=1") == "swept"

    again = cast.role()
    assert again("serve rollout-0") == "serving 1"
    assert len(list((cast.place / "consumers").iterdir())) == 1
    assert trainer("sweep keep=1") == "swept"
    assert again("take") == "given trainer-1:2"
    assert again("release 1") == "released 1"
    assert again("held") == "held 2"
    assert trainer("sweep keep=1") == "swept 1"


def test_two_live_processes_of_one_name(cast: Cast) -> None:
    """The younger goes on, the older is told, and what both held is not lost."""
    trainer, older, younger = cast.role(lease=1.5), cast.role(lease=1.5), cast.role(lease=1.5)
    assert trainer("train trainer-1 keep=1 sweep=no") == "cycle 1"
    assert trainer("publish 1") == "published 1"
    assert older("serve rollout-0") == "serving"
    assert older("take") == "given trainer-1:1"
    assert younger("serve rollout-0") == "serving 1"
    assert older("take").startswith("error superseded_consumer")
    assert older("lost") == "lost"
    assert older("acknowledge").startswith("error superseded_consumer")
    assert older("leave") == "left"
    assert trainer("publish 2") == "published 2"
    assert trainer("sweep keep=1") == "swept"
    assert younger("held") == "held 1"
    assert younger("take") == "given trainer-1:2"


def test_staged_servers(cast: Cast, room: pathlib.Path) -> None:
    """Copies on the server's own disk: the channel may sweep at once, and the copy lives until it is released."""
    trainer, server = cast.role(), cast.role()
    stage = room / "stage"
    assert trainer("train trainer-1 sweep=no") == "cycle 1"
    assert trainer("publish 1") == "published 1"
    assert server(f"serve rollout-0 stage={stage}") == "serving"
    assert server("take") == "given trainer-1:1"
    assert server("acknowledge") == "acknowledged 1"
    assert trainer("publish 2 3") == "published 2 3"
    assert server("take") == "given trainer-1:3"
    assert server("acknowledge") == "acknowledged 3"
    assert trainer("sweep keep=1") == "swept 1 2"
    assert server("held") == "held 1 3"
    server.kill()

    again = cast.role()
    assert again(f"serve rollout-0 stage={stage}") == "serving 1 3", "copies outlive their server, and the channel's"
    assert again("release 1") == "released 1"
    assert again("leave") == "left"
    assert [path.name for path in stage.rglob("*") if path.is_file()] == ["lock"]


def test_claims_on_another_mount(cast: Cast, room: pathlib.Path) -> None:
    """Servers that may not write beside the weights hold on another file system."""
    claims = room / "claims"
    trainer, server = cast.role(claims=claims), cast.role(claims=claims)
    assert trainer("train trainer-1 sweep=no") == "cycle 1"
    assert trainer("publish 1") == "published 1"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:1"
    assert not (cast.place / "consumers").exists()
    assert len(list((claims / "consumers").iterdir())) == 1
    assert trainer("publish 2 3") == "published 2 3"
    assert trainer("sweep keep=1") == "swept 2"
    assert server("release") == "released 1"
    assert trainer("sweep keep=1") == "swept 1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_uid(cast: Cast, room: pathlib.Path) -> None:
    """Servers under another uid hold; where they may not write at all, they work on copies."""
    room.chmod(0o755)
    (room / "stage").mkdir()
    (room / "stage").chmod(0o777)
    trainer, server, reader = cast.role(), cast.role(uid=NOBODY), cast.role(uid=NOBODY)
    assert trainer("train trainer-1 sweep=no") == "cycle 1"
    assert trainer("publish 1") == "published 1"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:1"
    assert server("acknowledge") == "acknowledged 1"
    assert trainer("publish 2") == "published 2"
    assert trainer("sweep keep=1") == "swept"
    assert server("leave") == "left"

    (cast.place / "consumers").chmod(0o755)
    assert reader("serve rollout-1").startswith("error cannot_hold")
    assert reader(f"serve rollout-1 stage={room / 'stage'}") == "serving"
    assert reader("take") == "given trainer-1:2"
    assert reader("acknowledge") == "acknowledged 2"
    assert list((cast.place / "consumers").iterdir()) == []


def test_a_full_channel(cast: Cast) -> None:
    """max_bytes: publish waits for the sweeper, then fails, naming who holds what; a release makes room."""
    trainer, server = cast.role(), cast.role()
    assert trainer("train trainer-1 keep=1 max-bytes=35") == "cycle 1"  # a version has 11 bytes
    assert trainer("publish 1") == "published 1"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:1"
    assert trainer("publish 2") == "published 2"
    assert server("take") == "given trainer-1:2"
    assert trainer("publish 3") == "published 3"
    refused = trainer("publish 4")
    assert refused.startswith("error no_room")
    assert "rollout-0 holds c000001-s00000001-" in refused
    assert cast.steps() == [1, 2, 3]
    assert server("release 1") == "released 1"
    until(lambda: cast.steps() == [2, 3])
    assert trainer("publish 4") == "published 4"


def _watch(broadcasts: pathlib.Path, seen: set[int]) -> list[tuple[int, str]]:
    """A reader of the older layout: every step_N with a STABLE that it has not loaded yet."""
    found = []
    for path in sorted(broadcasts.glob("step_*"), key=lambda path: int(path.name[5:])):
        step = int(path.name[5:])
        if step not in seen and (path / "STABLE").exists():
            seen.add(step)
            found.append((step, (path / "w.bin").read_text()))
    return found


def test_readers_of_the_older_layout(cast: Cast) -> None:
    """They poll step_N/STABLE below the newest cycle, and say in LOADED_STEP what they have loaded."""
    trainer = cast.role()
    assert trainer("train trainer-1 sweep=no") == "cycle 1"
    seen: set[int] = set()
    broadcasts = cast.place / "broadcasts" / "c000001"
    assert trainer("publish 1 2") == "published 1 2"
    assert _watch(broadcasts, seen) == [(1, "trainer-1:1"), (2, "trainer-1:2")]
    (broadcasts / "LOADED_STEP").write_text("2")
    assert trainer("publish 3 4") == "published 3 4"
    assert trainer("sweep keep=1") == "swept 1 3", "what it has loaded counts as acknowledged"
    assert _watch(broadcasts, seen) == [(4, "trainer-1:4")]
    (broadcasts / "LOADED_STEP").write_text("4")
    assert trainer("sweep keep=1") == "swept 2"
    trainer.kill()

    heir = cast.role()
    assert heir("train trainer-2 resume=4 take-over=yes sweep=no") == "cycle 2"
    assert heir("publish 5") == "published 5"
    later = cast.place / "broadcasts" / "c000002"
    assert _watch(later, set()) == [(5, "trainer-2:5")]
    assert not (broadcasts / "step_5").exists(), "no link is ever pointed elsewhere"
