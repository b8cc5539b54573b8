"""Bad input is told from good, with 4xx and a body that says what is wrong; the server stays."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.serve.bodies import BODY_BYTES_MAX, NEUTRAL
from holdfast.serve.server import Config, open_server
from tests.serve.conftest import Tiny
from tests.support.channels import until
from tests.support.serving import Client, serving

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def shared(tiny: Tiny) -> Iterator[Client]:
    with serving(tiny.base, served_model_name="tiny", max_model_len=64) as (client, _):
        yield client
        assert client.complete("tiny", [40]).status == 200


# The request, the parameter that is told, and words of the message: as vLLM says them, where it does.
VALUES: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "prompt", "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"),
    ({"prompt": ""}, "prompt", "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"),
    ({"prompt": []}, None, "You must pass at least one prompt"),
    ({"prompt": ["a", ""]}, "prompt", "non-empty"),
    ({"prompt": [[40], []]}, "prompt", "non-empty"),
    ({"prompt": ["a"] * 257}, "prompt", "256"),
    ({"prompt": [512]}, None, "Token id 512 is out of vocabulary"),
    ({"prompt": [40] * 64}, "input_tokens", "This model's maximum context length is 64 tokens."),
    ({"prompt": "x " * 100}, "input_tokens", "Please reduce the length of the input prompt."),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0."),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens", "max_tokens must be at least 1, got -1."),
    ({"prompt": "x", "max_tokens": 65}, "max_tokens", "max_tokens=65 cannot be greater than max_model_len=64."),
    ({"prompt": "x", "temperature": -1}, "temperature", "temperature must be non-negative, got -1.0."),
    ({"prompt": "x", "top_p": 2}, "top_p", "top_p must be in (0, 1], got 2.0."),
    ({"prompt": "x", "top_p": 0}, "top_p", "top_p must be in (0, 1], got 0.0."),
    ({"prompt": "x", "min_p": 2}, "min_p", "min_p must be in [0, 1]"),
    ({"prompt": "x", "seed": 2**63}, "seed", "64 bits"),
    ({"prompt": "x", "logprobs": 21}, "logprobs", "Requested sample logprobs of 21, which is greater than max allowed"),
    ({"prompt": "x", "logprobs": -1}, "logprobs", "non-negative"),
    ({"prompt": "x", "prompt_logprobs": 21}, "prompt_logprobs", "Requested prompt logprobs of 21"),
    ({"prompt": "x", "prompt_logprobs": -1}, "prompt_logprobs", "non-negative"),
    ({"prompt": "x", "prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "not available when `stream=True`"),
    ({"prompt": "x", "n": 0}, None, "n must be at least 1, got 0."),
    ({"prompt": "x", "n": 2, "temperature": 0}, None, "n must be 1 when using greedy sampling, got 2."),
    ({"prompt": "x", "n": 257, "temperature": 1}, "n", "256"),
    ({"prompt": "x", "stop": ["a", ""]}, "stop", "none of them empty"),
    ({"prompt": "x", "stop": ["a"] * 65}, "stop", "64"),
]


@pytest.mark.parametrize(("body", "param", "words"), VALUES)
def test_values_that_cannot_be_used(shared: Client, body: dict[str, Any], param: str | None, words: str) -> None:
    reply = shared.post(COMPLETIONS, body)
    assert (reply.error["code"], reply.error["type"], reply.error["param"]) == (400, "BadRequestError", param)
    assert words in reply.error["message"]


FORMS: list[tuple[str, Any, str]] = [
    (COMPLETIONS, {"prompt": "x", "temperature": "hot"}, "body.temperature"),
    (COMPLETIONS, {"prompt": "x", "stream": "yes"}, "body.stream"),
    (COMPLETIONS, {"prompt": "x", "stop": 3}, "body.stop"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 1.5}, "body.max_tokens"),
    (COMPLETIONS, {"prompt": 3}, "body.prompt"),
    (COMPLETIONS, {"prompt": ["a", 3]}, "body.prompt"),
    (COMPLETIONS, {"prompt": [True]}, "body.prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "body.prompt"),
    (COMPLETIONS, {"prompt": [[[1]]]}, "body.prompt"),
    (COMPLETIONS, [1], "body"),
    (COMPLETIONS, b"{bad", "body"),
    (COMPLETIONS, b"", "body"),
    (COMPLETIONS, b'{"prompt": "\xff"}', "body"),
    (COMPLETIONS, b"[" * 100_000, "body"),
    (CHAT, {}, "body.messages"),
    (CHAT, {"messages": ["hello"]}, "body.messages"),
    (CHAT, {"messages": [{"content": "hello"}]}, "body.messages"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, "body.messages"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "body.messages"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "body.messages"),
]


@pytest.mark.parametrize(("path", "body", "param"), FORMS)
def test_forms_that_are_none(shared: Client, path: str, body: Any, param: str) -> None:
    error = shared.post(path, body).error
    assert (error["code"], error["type"]) == (400, "Bad Request")
    assert error["param"].startswith(param)


def test_chat_that_cannot_be(shared: Client) -> None:
    message = {"role": "user", "content": "hello"}
    assert "empty conversation" in shared.post(CHAT, {"messages": []}).error["message"]
    error = shared.post(CHAT, {"messages": [message], "top_logprobs": 2}).error
    assert error["message"] == "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)"
    assert shared.post(CHAT, {"messages": [message | {"content": "x " * 100}]}).error["param"] == "input_tokens"
    assert shared.post(CHAT, {"messages": [message], "model": "nobody"}).error["code"] == 404


def test_a_wish_that_would_go_unheard_is_refused(shared: Client) -> None:
    for name, neutral in NEUTRAL.items():
        error = shared.post(COMPLETIONS, {"prompt": "x", name: "something"}).error
        assert (error["code"], error["param"]) == (400, name)
        for value in neutral:
            assert shared.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1, name: value}).status == 200, name
    assert shared.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1, "user": "me", "unheard_of": 1}).status == 200


def test_bodies_are_limited(shared: Client) -> None:
    reply = shared.post(COMPLETIONS, json.dumps({"prompt": "x" * BODY_BYTES_MAX}).encode())
    assert reply.error["code"] == 413


def test_what_is_no_route(shared: Client) -> None:
    reply = shared.get("/nothing")
    assert (reply.status, reply.json) == (404, {"detail": "Not Found"})
    reply = shared.get(COMPLETIONS)
    assert (reply.status, reply.json) == (405, {"detail": "Method Not Allowed"})


def test_the_rest_of_a_long_prompt_is_the_answers(shared: Client) -> None:
    usage = shared.complete("tiny", [40] * 60, ignore_eos=True, max_tokens=16).json["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (60, 64)


def test_who_goes_away_is_not_worked_for(client: Client) -> None:
    body = {"prompt": [40], "temperature": 0, "ignore_eos": True, "max_tokens": 500}
    for stream in (False, True):
        assert client.post("/pause?mode=keep").status == 200
        with contextlib.closing(client.connect()) as connection:
            connection.request("POST", COMPLETIONS, json.dumps(body | {"stream": stream}))
            until(lambda: client.count("vllm:num_requests_waiting") == 1)
        until(lambda: client.count("vllm:num_requests_waiting") == 0)
        assert client.post("/resume").status == 200
    assert client.count("vllm:generation_tokens_total") == 0


def test_who_has_no_key_learns_only_that_the_server_is_there(tiny: Tiny) -> None:
    with serving(tiny.base, served_model_name="tiny", api_key="secret") as (client, _):
        for stranger in (Client(client.url), Client(client.url, "Secret"), Client(client.url, "secret2")):
            for path in ("/health", "/metrics", "/version"):
                assert stranger.get(path).status == 200
            for path in ("/v1/models", "/is_paused", "/weight_info", "/nothing"):
                reply = stranger.get(path)
                assert (reply.status, reply.json) == (401, {"error": "Unauthorized"})
            for path in (COMPLETIONS, "/v1/load_lora_adapter", "/pause", "/collective_rpc"):
                assert stranger.post(path, {}).status == 401
        assert client.models() == ["tiny"]
        assert client.tokens("tiny", [40])
        assert not client.get("/is_paused").json["is_paused"]


def test_model_that_cannot_be_served(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="is not a model") as caught:
        open_server(Config(model=tmp_path))
    assert caught.value.code == "not_a_model"
    (tmp_path / "config.json").write_bytes((tiny.base / "config.json").read_bytes())
    with pytest.raises(UsageError, match=r"model\.safetensors can't be read"):
        open_server(Config(model=tmp_path))
    (tmp_path / "model.safetensors").write_bytes((tiny.base / "model.safetensors").read_bytes())
    with pytest.raises(UsageError) as caught:
        open_server(Config(model=tmp_path))
    assert caught.value.code == "no_tokenizer"
    with pytest.raises(UsageError, match="512 positions"):
        open_server(Config(model=tiny.base, max_model_len=513))
