"""HTTP to servers that are not trusted: every wrong answer is an EngineError with a reaction, in bounded time."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from holdfast.core.servers import Reaction, Way
from holdfast.engines.contract import Engine, EngineError
from holdfast.engines.dynamo import Dynamo
from holdfast.engines.http import BODY_BYTES_MAX, Http, Limits, check_url
from holdfast.engines.open import open_engine
from holdfast.engines.sglang import SGLang
from holdfast.engines.vllm import VLLM
from holdfast.errors import UsageError
from holdfast.testing.engines import (
    Die,
    Drip,
    Drop,
    FakeDynamo,
    FakeServer,
    FakeSGLang,
    FakeVLLM,
    Flood,
    Half,
    Hang,
    Raw,
    Reply,
    write_adapter,
)

PATIENT = Limits(call_s=30.0, load_s=30.0, drain_s=30.0)
HASTY = Limits(call_s=0.2, load_s=0.2, drain_s=0.2)  # for answers that never end
BINDINGS: dict[str, tuple[Callable[[], FakeServer], Callable[..., Engine]]] = {
    "vllm": (FakeVLLM, VLLM),
    "sglang": (FakeSGLang, SGLang),
    "dynamo": (FakeDynamo, Dynamo),
}
HTML = Reply(200, b"<!doctype html><title>Sign in</title>", "text/html")
ENDLESS = {"hang": Hang(), "drip": Drip(), "headers that never end": Drip(headers=True)}
WRONG = {
    "closed without an answer": (Drop(), "unreachable", Reaction.LOOK_AGAIN),
    "dies": (Die(), "unreachable", Reaction.LOOK_AGAIN),
    "half an answer": (Half(), "unreachable", Reaction.LOOK_AGAIN),
    "not HTTP": (Raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "unreachable", Reaction.LOOK_AGAIN),
    "one huge header": (
        Raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n"),
        "unreachable",
        Reaction.LOOK_AGAIN,
    ),
    "500": (Reply(500, b"Internal Server Error", "text/plain"), "server_error", Reaction.LOOK_AGAIN),
    "503": (Reply(503, b"", ""), "server_error", Reaction.LOOK_AGAIN),
    "429": (Reply.of({"error": {"message": "slower"}}, 429), "server_error", Reaction.LOOK_AGAIN),
    "HTML": (HTML, "not_an_engine", Reaction.FIX_SETUP),
    "nothing": (Reply(200, b""), "not_an_engine", Reaction.FIX_SETUP),
    "not UTF-8": (Reply(200, b'{"data": "\xff\xfe", "workers": "\xff"}'), "not_an_engine", Reaction.FIX_SETUP),
    "JSON of something else": (Reply.of({"data": 7, "workers": 7}), "not_an_engine", Reaction.FIX_SETUP),
    "JSON without a bottom": (
        Reply(200, b'{"x": ' + b"[" * 200_000, "application/json"),
        "not_an_engine",
        Reaction.FIX_SETUP,
    ),
    "a huge body": (Flood(BODY_BYTES_MAX + 2**17), "huge_body", Reaction.FIX_SETUP),
    "a redirect": (Reply(302, b"", "", {"Location": "http://127.0.0.1:9/login"}), "redirected", Reaction.FIX_SETUP),
    "401": (Reply.of({"error": "Unauthorized"}, 401), "unauthorized", Reaction.FIX_SETUP),
    "403": (Reply(403, HTML.body, "text/html"), "unauthorized", Reaction.FIX_SETUP),
}


def _sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    threads, sockets = set(threading.enumerate()), _sockets()
    yield
    assert set(threading.enumerate()) <= threads
    assert _sockets() <= sockets


@contextlib.contextmanager
def speaking(kind: str, limits: Limits = PATIENT) -> Iterator[tuple[FakeServer, Engine]]:
    make, binding = BINDINGS[kind]
    with make() as server, contextlib.closing(binding(server.url, limits=limits)) as engine:
        yield server, engine


def _fails(call: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("kind", sorted(BINDINGS))
@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_a_wrong_answer_to_a_look_has_a_reaction(kind: str, wrong: str) -> None:
    fault, code, reaction = WRONG[wrong]
    with speaking(kind) as (server, engine):
        server.fail("*", fault, times=None)
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == (code, reaction)
        assert server.url in str(error)


@pytest.mark.parametrize("kind", sorted(BINDINGS))
@pytest.mark.parametrize("endless", sorted(ENDLESS))
def test_an_answer_that_never_ends_is_given_up(kind: str, endless: str) -> None:
    with speaking(kind, HASTY) as (server, engine):
        server.fail("*", ENDLESS[endless], times=None)
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("too_slow", Reaction.LOOK_AGAIN)


@pytest.mark.parametrize("kind", sorted(BINDINGS))
def test_after_every_wrong_answer_the_next_call_is_as_good_as_ever(kind: str) -> None:
    with speaking(kind) as (server, engine):
        for name in sorted(WRONG):
            if name != "dies":
                server.fail("*", WRONG[name][0])
                _fails(lambda: engine.look(Way.VERSIONED))
            server.heal()
            assert "base" in engine.look(Way.VERSIONED).bases


@pytest.mark.parametrize("kind", sorted(BINDINGS))
def test_a_load_whose_answer_is_lost_is_found_done_at_the_next_look(kind: str, tmp_path: pathlib.Path) -> None:
    path = str(write_adapter(tmp_path / "adapter", 1))
    with speaking(kind) as (server, engine):
        where, route = server, {"vllm": "POST /v1/load_lora_adapter", "sglang": "POST /load_lora_adapter"}.get(kind)
        if isinstance(server, FakeDynamo):
            where, route = server.workers[-1], "POST /v1/loras"
        where.fail(route or "*", Drop(done=True))
        error = _fails(lambda: engine.load_adapter("policy", path))
        assert (error.code, error.reaction) == ("unreachable", Reaction.LOOK_AGAIN)
        if kind == "dynamo":  # one worker of two has it, or both: either way a second try makes it whole
            with contextlib.suppress(EngineError):
                engine.load_adapter("policy", path)
        assert set(engine.look(Way.VERSIONED).loaded) == {"policy"}


@pytest.mark.parametrize("kind", sorted(BINDINGS))
def test_a_closed_port_is_unreachable(kind: str) -> None:
    with speaking(kind) as (server, engine):
        server.die()
        for call in (lambda: engine.look(Way.VERSIONED), lambda: engine.unload_adapter("policy")):
            error = _fails(call)
            assert (error.code, error.reaction) == ("unreachable", Reaction.LOOK_AGAIN)
        server.restart()
        assert "base" in engine.look(Way.VERSIONED).bases


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_that_is_no_engine_is_told_so(kind: str) -> None:
    with FakeServer() as server, contextlib.closing(open_engine(kind, server.url)) as engine:
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("not_an_engine", Reaction.FIX_SETUP)
        assert "--engine" in error.hint


def test_redirects_are_not_followed() -> None:
    with FakeServer() as other, speaking("vllm") as (server, engine):
        server.fail("*", Reply(307, b"", "", {"Location": f"{other.url}/v1/models"}), times=None)
        _fails(lambda: engine.look(Way.VERSIONED))
        assert other.log == []


def test_the_token_is_read_at_each_call(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "token"

    def token() -> str | None:
        return file.read_text().strip()

    with FakeVLLM(api_key="one") as server, contextlib.closing(VLLM(server.url, token=token)) as engine:
        file.write_text("one\n")
        engine.look(Way.VERSIONED)
        server.api_key = "two"
        assert _fails(lambda: engine.look(Way.VERSIONED)).code == "unauthorized"
        file.write_text("two\n")
        engine.look(Way.VERSIONED)


def test_a_token_that_cannot_be_had_or_sent_is_a_matter_of_the_set_up() -> None:
    def gone() -> str | None:
        raise UsageError("/run/token: no such file", code="no_token", hint="write it")

    for token, code in ((gone, "no_token"), (lambda: "a\r\nX-Admin: yes", "bad_token"), (lambda: "é", "bad_token")):
        with FakeVLLM() as server, contextlib.closing(VLLM(server.url, token=token)) as engine:
            error = _fails(lambda engine=engine: engine.look(Way.VERSIONED))
            assert (error.code, error.reaction) == (code, Reaction.FIX_SETUP)
            assert server.log == []


def test_what_an_error_says_is_short_and_on_one_line() -> None:
    with FakeServer() as server, contextlib.closing(Http(server.url)) as http:
        bodies = {
            b'{"error": {"message": "one\\n\\ntwo"}}': "one two",
            b'{"detail": "Not Found"}': "Not Found",
            b'{"success": false, "message": "no"}': "no",
            b'{"success": false, "error_message": "never"}': "never",
            b'{"error": "Unauthorized"}': '{"error": "Unauthorized"}',
            b"\xff\xfe": "��",
        }
        for body, said in bodies.items():
            server.fail("*", Reply(418, body))
            assert http.get("/").said == said
        server.fail("*", Reply(418, b"x" * 100_000))
        assert len(http.get("/").said) == 300


@pytest.mark.parametrize(
    "url",
    [
        "",
        "server:8000",
        "ftp://server",
        "file:///etc/passwd",
        "http://",
        "http://server:port",
        "http://server:99999",
        "http://[::1",
        "http://user:password@server",
        "http://server/?q=1",
        "http://server/#top",
        "http://ser ver",
        "http://server\r\nX: y",
        "http://sérver",
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    for kind in sorted(BINDINGS):
        with pytest.raises(UsageError) as caught:
            open_engine(kind, url)
        assert caught.value.code == "bad_url"


def test_addresses_are_taken_without_their_last_slash() -> None:
    assert check_url("http://server:8000/") == "http://server:8000"
    assert check_url("https://server/vllm/") == "https://server/vllm"
    assert check_url("http://[::1]:8000") == "http://[::1]:8000"


def test_a_misspelt_engine_is_told_what_was_meant() -> None:
    for name, hint in (("vlm", "vllm"), ("sglan", "sglang"), ("tgi", "vllm, sglang, dynamo")):
        with pytest.raises(UsageError) as caught:
            open_engine(name, "http://127.0.0.1:1")
        assert caught.value.code == "bad_engine"
        assert hint in caught.value.hint
