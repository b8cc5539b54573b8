"""Pages of runs small, large, hostile and empty, and a browser to open them in."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from holdfast.eventfiles import find_event_files
from holdfast.story.gather import gather
from holdfast.story.page import page
from tests.support.browser import Browser
from tests.support.manyevents import File, Scale, write

HOSTILE = "</script><script>console.log('run')</script><img src=http://127.0.0.1:9/x onerror=console.log('run')>"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(prefix="holdfast-browser-", ignore_cleanup_errors=True) as home:
        made = Browser(pathlib.Path(home))
        yield made
        made.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Name -> the page."""
    runs = {
        "small": write(tmp_path_factory.mktemp("small"), Scale()),
        "large": write(
            tmp_path_factory.mktemp("large"), Scale(nodes=150, spares=8, servers=30, versions=600, failovers=20)
        ),
        "hostile": tmp_path_factory.mktemp("hostile"),
        "empty": tmp_path_factory.mktemp("empty"),
    }
    for place, process in enumerate(("agent-n0", "publisher", "sync-s", HOSTILE)):
        file = File(runs["hostile"], f"p{place}", 1_795_000_000.0)
        told = {
            "server": HOSTILE,
            "state": HOSTILE,
            "target": HOSTILE,
            "step": 1,
            HOSTILE: 1.0,
            "round": 1,
            "plan": HOSTILE,
        }
        names = ("running", "server_state", "fault", "refused", "measured", "round_committed", "outcome", "published")
        for number, name in enumerate((*names, HOSTILE)):
            file.process = process
            file.say(1_795_000_100.0 + number, name, HOSTILE, version=HOSTILE, **told)
        file.process = f"p{place}"
        file.close()
    (runs["empty"] / "nobody.jsonl").write_bytes(b"")
    made = {}
    for name, place_ in runs.items():
        made[name] = tmp_path_factory.mktemp("pages") / f"{name}.html"
        made[name].write_text(page(gather(find_event_files([place_])), HOSTILE if name == "hostile" else name, "1"))
    return made
