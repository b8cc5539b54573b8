"""The desk: how an agent and its own workers speak."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from holdfast.rendezvous.desk import Desk


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()
    assert list(tmp_path.iterdir()) == []


def test_it_is_made_when_asked_for_and_private(tmp_path: pathlib.Path, desk: Desk) -> None:
    assert list(tmp_path.iterdir()) == []
    assert desk.drain(None)
    assert desk.path.name.startswith("holdfast-desk-")
    assert desk.path == desk.path
    assert stat.S_IMODE(desk.path.stat().st_mode) == 0o700


def test_drain_and_its_end(desk: Desk) -> None:
    assert desk.drain("node-3: \n maintenance", wait_s=60)
    assert json.loads((desk.path / "drain").read_text()) == {"reason": "node-3: maintenance", "wait_s": 60}
    before = (desk.path / "drain").stat().st_ino
    assert desk.drain("node-3: \n maintenance", wait_s=60)
    assert (desk.path / "drain").stat().st_ino == before, "what stands is not written again"
    assert desk.drain("node-4")
    assert json.loads((desk.path / "drain").read_text()) == {"reason": "node-4", "wait_s": None}
    (desk.path / "ready-1-0").touch()
    assert desk.drain(None)
    assert os.listdir(desk.path) == [], "answers go with the question"


def test_answers_count_in_their_round(desk: Desk) -> None:
    assert desk.ready_workers(1) == 0
    for name in ("ready-1-0", "ready-1-7", "ready-11-1", "ready-2-0", "drain"):
        (desk.path / name).touch()
    assert [desk.ready_workers(number) for number in (1, 2, 3, 11)] == [2, 1, 0, 1]


def test_it_is_made_anew_where_temporary_files_are_cleaned(desk: Desk) -> None:
    assert desk.drain("node-3")
    path = desk.path
    shutil.rmtree(path)
    assert desk.ready_workers(1) == 0
    assert desk.drain("node-3")
    assert desk.path == path
    assert (path / "drain").exists()
    shutil.rmtree(path)
    assert desk.drain(None)


def test_what_cannot_be_written_is_said_and_tried_again(desk: Desk) -> None:
    (desk.path / "drain").mkdir()
    assert not desk.drain("node-3")
    (desk.path / "drain").rmdir()
    assert desk.drain("node-3")


def test_closed_it_stays_away(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    assert desk.drain("node-3")
    desk.close()
    desk.close()
    assert desk.drain("node-4")
    assert desk.ready_workers(1) == 0
    assert list(tmp_path.iterdir()) == []


def test_all_are_ready_once_every_worker_of_this_node_says_so(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    desk.drain("node-2")
    assert not desk.all_ready(3)
    (desk.path / "ready-3-4-2").touch()
    assert not desk.all_ready(3)
    (desk.path / "ready-3-5-2").touch()
    assert desk.all_ready(3)
    assert not desk.all_ready(4)


def _left_behind(parent: pathlib.Path, name: str, age_s: float = 3600.0) -> pathlib.Path:
    path = parent / f"holdfast-desk-{name}"
    path.mkdir()
    (path / "drain").touch()
    then_s = time.time() - age_s
    os.utime(path, (then_s, then_s))
    return path


def test_an_agent_removes_what_agents_that_are_gone_left_behind(tmp_path: pathlib.Path) -> None:
    gone, young = _left_behind(tmp_path, "gone"), _left_behind(tmp_path, "young", age_s=0.0)
    (tmp_path / "holdfast-desk-file").touch()
    (tmp_path / "holdfast-desk-link").symlink_to(tmp_path)
    other = _left_behind(tmp_path, "dir")
    (other / "somebody's").mkdir()
    os.utime(other, (0, 0))
    desk = Desk(tmp_path)
    try:
        desk.path.touch()
        assert not gone.exists()
        assert young.exists()
        assert other.exists()
        assert (tmp_path / "holdfast-desk-file").exists()
        assert (tmp_path / "holdfast-desk-link").is_symlink()
    finally:
        desk.close()


def test_the_desk_of_an_agent_that_lives_stays(tmp_path: pathlib.Path) -> None:
    """Looked at by another process, since each looks around once."""
    desk = Desk(tmp_path)
    try:
        os.utime(desk.path, (0, 0))
        looking = (
            "import sys; from holdfast.rendezvous.desk import Desk; d = Desk(sys.argv[1]); print(d.path); d.close()"
        )
        subprocess.run([sys.executable, "-c", looking, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
        assert desk.path.exists()
    finally:
        desk.close()
