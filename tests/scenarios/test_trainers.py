"""What happens to servers when trainers fail, come back, and don't know that they were replaced."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.support.cast import Cast
from tests.support.channels import until


@pytest.fixture
def cast(room: pathlib.Path) -> Iterator[Cast]:
    with Cast(room / "channel") as cast:
        yield cast


def test_rewind(cast: Cast) -> None:
    """The trainer fails after step 12 and resumes from step 8."""
    trainer, server, every = cast.role(), cast.role(), cast.role()
    assert trainer("train trainer-1 keep=9") == "cycle 1"
    assert server("serve rollout-0") == "serving"
    assert every("serve logger every=yes") == "serving"
    assert trainer("publish 4 8 12") == "published 4 8 12"
    assert server("take") == "given trainer-1:12"
    assert server("acknowledge") == "acknowledged 12"
    for step in (4, 8, 12):
        assert every("take") == f"given trainer-1:{step}"
        assert every("release") == f"released {step}"
    trainer.kill()

    resumed = cast.role()
    assert resumed("train trainer-2 resume=8 take-over=yes keep=9") == "cycle 2"
    # The version that it resumes from is what it has: that is what servers go back to, and they are told so.
    assert server("take") == "given trainer-1:8, rewound from 12"
    assert resumed("publish 9 12") == "published 9 12"
    assert server("take") == "given trainer-2:12"
    assert every("take") == "given trainer-1:8, rewound from 12"
    assert every("take") == "given trainer-2:9"
    assert every("take") == "given trainer-2:12"


def test_starting_anew(cast: Cast) -> None:
    """A trainer that starts from nothing: servers keep what they serve, marked stale, until it has published."""
    trainer, server, fresh = cast.role(), cast.role(), cast.role()
    assert trainer("train trainer-1") == "cycle 1"
    assert trainer("publish 4 8") == "published 4 8"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:8"
    assert trainer("leave") == "left"

    anew = cast.role()
    assert anew("train trainer-2") == "cycle 2"
    assert server("take 0").startswith("stale: c000001-s00000008-")
    assert server("read") == "trainer-1:8"
    assert fresh("serve rollout-1") == "serving"
    assert fresh("take 0") == "waiting: cycle 2 has nothing to give yet"
    assert anew("publish 0") == "published 0"
    assert server("take") == "given trainer-2:0, rewound from 8"
    assert fresh("take") == "given trainer-2:0"


def test_zombie(cast: Cast) -> None:
    """A trainer that was frozen, and replaced meanwhile, wakes up and publishes."""
    zombie, server = cast.role(), cast.role()
    assert zombie("train trainer-1 sweep=no") == "cycle 1"
    assert zombie("publish 4 8") == "published 4 8"
    assert server("serve rollout-0") == "serving"
    assert server("take") == "given trainer-1:8"
    zombie.freeze()

    heir = cast.role()
    assert heir("train trainer-2 resume=4 take-over=yes sweep=no") == "cycle 2"
    assert heir("publish 5") == "published 5"
    assert server("take") == "given trainer-2:5, rewound from 8"

    zombie.thaw()
    assert zombie("publish 16").startswith("error fenced")
    assert zombie("publish 17").startswith("error fenced")
    assert cast.steps() == [4, 8, 5]
    assert server("take 0.2").startswith("up to date")
    assert server("release 8") == "released 8"
    assert heir("sweep keep=1") == "swept 4 8"


def test_take_over(cast: Cast) -> None:
    """A second trainer is refused while the first is alive, and admitted when told to, or when the first is silent."""
    first, second = cast.role(lease=1.5), cast.role(lease=1.5)
    assert first("train trainer-1") == "cycle 1"
    assert first("publish 1") == "published 1"
    assert second("train trainer-2").startswith("error publisher_alive")
    assert second("train trainer-2 take-over=yes") == "cycle 2"
    assert first("publish 2").startswith("error fenced")
    assert first("train trainer-1 take-over=yes").startswith("error superseded"), "a superseded job never claims again"
    assert second("publish 1") == "published 1"
    second.kill()

    third = cast.role(lease=1.5)
    assert third("train trainer-3") == "cycle 3", "after a lease of silence"


def test_rounds_of_a_launcher(cast: Cast) -> None:
    """A launcher restarts its trainer: the next round claims at once, however dead or alive the last one is."""
    one, two, late = cast.role(), cast.role(), cast.role()
    assert one("train node-a job=run42 round=1") == "cycle 1"
    assert one("publish 4") == "published 4"
    one.freeze()
    assert two("train node-b job=run42 round=2 resume=4") == "cycle 2"
    assert two("publish 5") == "published 5"
    one.thaw()
    assert one("publish 5").startswith("error fenced")
    assert late("train node-c job=run42 round=1").startswith("error superseded")
    assert late("train node-c job=run42 round=2").startswith("error publisher_alive")
    assert two("leave") == "left"
    assert late("train node-c job=run42 round=2 resume=5") == "cycle 3"


def test_killed_in_the_middle(cast: Cast) -> None:
    """A trainer is killed again and again; whatever it left behind harms nobody and goes."""
    server = cast.role()
    assert server("serve rollout-0") == "serving"
    for life in range(1, 5):
        trainer = cast.role()
        resume = f" resume={life - 1}" if life > 1 else ""
        assert trainer(f"train trainer-{life} take-over=yes sweep=no{resume}") == f"cycle {life}"
        assert trainer(f"publish {life}") == f"published {life}"
        assert server("take") == f"given trainer-{life}:{life}"
        assert server("release") == f"released {life}"
        trainer.tell("publish " + " ".join(str(step) for step in range(life, 3000)))
        until(lambda life=life: any((cast.place / "staging").iterdir()) or cast.steps()[-1] > life + 3)  # type: ignore[misc]
        trainer.kill()
    trainer = cast.role()
    assert trainer("train trainer-5 take-over=yes sweep=no resume=4") == "cycle 5"
    assert trainer("publish 5") == "published 5"
    trainer("sweep keep=1")
    assert cast.steps() == [5]
    assert list((cast.place / "staging").iterdir()) == []
    answers = [server("take")]
    assert answers == ["given trainer-5:5"] or answers[0].startswith("given trainer-5:5, rewound")
