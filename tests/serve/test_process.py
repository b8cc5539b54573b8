"""`holdfast serve` as a process: its line, its end, and what it says when it can't."""

from __future__ import annotations

import importlib.util
import pathlib
import signal
import socket

import pytest

from holdfast.cli.main import main
from tests.serve.conftest import Tiny
from tests.support.serving import PATIENCE_S, served


def test_a_server_from_start_to_end(tiny: Tiny, tmp_path: pathlib.Path) -> None:
    """SIGTERM: a running answer is ended with what there is, a paused one too, and the exit code is 0."""
    key = tmp_path / "key"
    key.write_text("secret\n")
    options = ("--served-model-name", "tiny", "--api-key-file", str(key), "--max-lora-rank", "8")
    with served(tiny.base, *options) as (client, process):
        assert client.get("/v1/models").status == 401
        client = type(client)(client.url, "secret")
        assert client.models() == ["tiny"]
        assert client.load("a", tiny.adapters[0]).status == 200
        asked = {"model": "a", "prompt": [40], "temperature": 0, "ignore_eos": True, "max_tokens": 500}
        with client.stream("/v1/completions", asked) as events:
            next(events)
            assert client.post("/pause?mode=keep").status == 200
            process.send_signal(signal.SIGTERM)
            *_, last, done = events
        assert done == "[DONE]"
        assert last["choices"][0]["finish_reason"] == "abort"
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", "/nowhere"]) == 2
    told = capsys.readouterr().err
    assert "uvicorn" in told
    assert "pip install 'holdfast[serve]'" in told


def test_what_the_command_refuses(tiny: Tiny, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, told in (
            ((str(tmp_path), "--port", "0"), "is not a model"),
            ((str(tiny.base), "--port", port), "try --port 0"),
            ((str(tiny.base), "--port", "70000"), "--port"),
            ((str(tiny.base), "--max-loras", "0"), "--max-loras"),
            ((str(tiny.base), "--dtype", "int8"), "--dtype"),
            ((str(tiny.base), "--port", "0", "--device", "abacus"), "--device cpu"),
            ((str(tiny.base), "--api-key-file", str(tmp_path / "none")), "none"),
            ((str(tiny.base), "--api-key-file", str(empty)), "holds no key"),
            ((str(tiny.base), "--host", "no.such.host.invalid"), "--host"),
        ):
            assert main(["serve", *words]) == 2, words
            assert told in capsys.readouterr().err, words
