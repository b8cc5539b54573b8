"""What a sync process is told, and how it says that it makes no sense."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest

from holdfast.cli.main import main
from holdfast.errors import UsageError
from holdfast.sync.config import SyncConfig, check_config, convert, load_config

GOOD = """
name = "host-7"
stage = "/local/stage"
listen = "127.0.0.1:8600"

[[channels]]
path = "/mnt/runs/*/weights"
adapter = "run-{match}"

[[servers]]
url = "http://127.0.0.1:8000"
engine = "vllm"
path_map = ["/local=/in/the/container"]
residents = 3
"""


def _written(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "sync.toml"
    path.write_text(text)
    return path


def test_a_file_says_what_flags_say(tmp_path: pathlib.Path) -> None:
    config = load_config(_written(tmp_path, GOOD))
    assert (config.name, config.channels[0].is_pattern, config.servers[0].residents) == ("host-7", True, 3)
    assert config.servers[0].mapped(pathlib.Path("/local/stage/x")) == "/in/the/container/stage/x"
    assert config.servers[0].mapped(pathlib.Path("/locally/x")) == "/locally/x"


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("residents = 3", "resident = 3", "did you mean `residents`?"),
        ('listen = "127', 'lisen = "127', "did you mean `listen`?"),
        ("residents = 3", 'residents = "three"', "docs/sync.md lists what it may say"),
        ("residents = 3", "residents = 1", "give at least 2: one is loaded while the other one serves"),
        ('path_map = ["/local=/in/the/container"]', 'path_map = ["/local"]', "write OURS=THEIRS"),
        ('url = "http://127.0.0.1:8000"', 'url = "ftp://x"', "give http://HOST:PORT"),
        ("[[channels]]", "[[channels", "give a TOML file that can be read"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(tmp_path: pathlib.Path, old: str, new: str, hint: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        load_config(_written(tmp_path, GOOD.replace(old, new)))
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "raw",
    [
        {"channels": [], "servers": [{"url": "http://h:1"}]},
        {"channels": [{"path": "a"}], "servers": []},
        {"channels": [{"path": "a"}, {"path": "b"}], "servers": [{"url": "http://h:1"}]},
        {"channels": [{"path": "a"}], "servers": [{"url": "http://h:1"}, {"url": "http://h:1/"}]},
        {"channels": [{"path": "a", "weights": "full"}, {"path": "b", "weights": "full", "adapter": "b"}],
         "servers": [{"url": "http://h:1"}]},
        {"channels": [{"path": "a", "adapter": "../x"}], "servers": [{"url": "http://h:1"}]},
        {"channels": [{"path": "a"}], "servers": [{"url": "http://h:1"}], "name": "a/b"},
        {"channels": [{"path": "a"}], "servers": [{"url": "http://h:1"}], "stage_only": True},
        {"channels": [{"path": "a"}], "stage_only": True, "stage": "off"},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_done(raw: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_config(convert(raw, SyncConfig, "here"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["/nowhere"],
        ["/nowhere", "--url", "not-a-url"],
        ["/nowhere", "--url", "http://127.0.0.1:1", "--engine", "vlm"],
        ["/nowhere", "--config", "x.toml"],
        ["/nowhere", "--url", "http://127.0.0.1:1", "--listen", "nowhere"],
    ],
)
def test_the_command_line_says_so_with_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", *words]) == 2
    assert capsys.readouterr().err.strip() != ""


def test_sync_needs_no_torch() -> None:
    script = "import sys, holdfast.cli.syncing, holdfast.engines.vllm; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
