"""Pausing, and full weights that are replaced under running requests."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import safetensors.torch
import torch

from holdfast.serve.server import Server
from tests.serve.conftest import Reference, Tiny
from tests.support.channels import until
from tests.support.serving import Client, Reply

PROMPT = [40, 41, 42]
LONG = {"ignore_eos": True, "max_tokens": 250, "return_token_ids": True, "temperature": 0}


@contextlib.contextmanager
def _waiting(client: Client, model: str, count: int = 1) -> Iterator[list[Future[Reply]]]:
    """`count` requests that wait, as generation is paused."""
    with ThreadPoolExecutor(count) as askers:
        asked = [askers.submit(client.complete, model, PROMPT, ignore_eos=True) for _ in range(count)]
        until(lambda: client.count("vllm:num_requests_waiting") == count)
        yield asked


def _tokens(reply: Reply) -> list[int]:
    assert reply.status == 200, reply.raw
    ids: list[int] = reply.json["choices"][0]["token_ids"]
    return ids


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
def test_while_paused_requests_wait_and_none_fails(client: Client, tiny: Tiny, mode: str, reference: Reference) -> None:
    assert client.get("/is_paused").json == {"is_paused": False}
    reply = client.post(f"/pause?mode={mode}")
    assert (reply.status, reply.json) == (200, {"status": "paused"})
    assert client.get("/is_paused").json == {"is_paused": True}
    with _waiting(client, "tiny", 3) as asked:
        assert client.get("/health").status == 200
        assert not any(each.done() for each in asked)
        reply = client.post("/resume")
        assert (reply.status, reply.json) == (200, {"status": "resumed"})
        assert [_tokens(each.result()) for each in asked] == [reference(tiny.base, None, PROMPT)] * 3
    assert client.get("/is_paused").json == {"is_paused": False}


def test_pause_keep_freezes_and_resume_goes_on(client: Client, tiny: Tiny, reference: Reference) -> None:
    with client.stream("/v1/completions", {"prompt": PROMPT, **LONG}) as events:
        made = next(events)["choices"][0]["token_ids"]
        assert client.post("/pause?mode=keep").status == 200
        count = client.count("vllm:generation_tokens_total")
        assert count < 250
        assert client.post("/reset_prefix_cache").json == {"success": True}
        assert client.count("vllm:generation_tokens_total") == count
        assert client.post("/resume").status == 200
        made += [token for event in events if event != "[DONE]" for token in event["choices"][0]["token_ids"]]
    assert made == reference(tiny.base, None, PROMPT, 250)


def test_pause_wait_returns_when_all_have_ended(client: Client, tiny: Tiny, reference: Reference) -> None:
    with client.stream("/v1/completions", {"prompt": PROMPT, **LONG}) as events:
        made = next(events)["choices"][0]["token_ids"]
        assert client.post("/pause?mode=wait").status == 200
        assert client.count("vllm:num_requests_running") == 0
        assert client.count("vllm:generation_tokens_total") == 250
        made += [token for event in events if event != "[DONE]" for token in event["choices"][0]["token_ids"]]
    assert made == reference(tiny.base, None, PROMPT, 250)


def test_pause_wait_is_let_go_by_resume(client: Client) -> None:
    with client.stream("/v1/completions", {"prompt": PROMPT, **LONG}) as events:
        next(events)
        assert client.post("/pause?mode=keep").status == 200
        with ThreadPoolExecutor(1) as other:
            pausing = other.submit(client.post, "/pause?mode=wait")
            until(lambda: client.get("/is_paused").json["is_paused"])
            assert client.post("/resume").status == 200
            assert pausing.result().status == 200
        assert list(events)[-1] == "[DONE]"


def test_pause_abort_ends_what_runs_with_what_it_has(client: Client) -> None:
    with client.stream("/v1/completions", {"prompt": PROMPT, **LONG}) as events:
        next(events)
        assert client.post("/pause").status == 200
        *_, last, done = events
    assert done == "[DONE]"
    assert last["choices"][0]["finish_reason"] == "abort"
    assert client.count("vllm:num_requests_running") == 0
    with _waiting(client, "tiny") as asked:
        assert client.post("/pause?mode=abort").status == 200
        assert asked[0].result().json["choices"][0]["finish_reason"] == "abort"
    assert client.post("/resume").status == 200
    assert client.complete("tiny", PROMPT).status == 200


def test_a_stable_name_changes_its_version_and_no_request_fails(
    client: Client, tiny: Tiny, reference: Reference
) -> None:
    """Pause, unload, load under the same name, resume: who came in between is answered by the new version."""
    old, new = tiny.adapters
    assert client.load("policy", old).status == 200
    replies: list[Reply] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            replies.append(client.complete("policy", PROMPT, ignore_eos=True))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for path in (new, old, new, old, new):
            count = len(replies)
            until(lambda count=count: len(replies) > count + 3)
            assert client.post("/pause?mode=wait").status == 200
            assert client.unload("policy").status == 200
            assert client.load("policy", path).status == 200
            assert client.post("/resume").status == 200
            assert client.tokens("policy", PROMPT, ignore_eos=True) == reference(tiny.base, path, PROMPT)
    finally:
        ended.set()
        for asker in askers:
            asker.join()
    made = {tuple(_tokens(reply)) for reply in replies}
    assert made == {tuple(reference(tiny.base, path, PROMPT)) for path in (old, new)}


def test_who_waits_in_the_gap_is_answered(client: Client, tiny: Tiny, reference: Reference) -> None:
    """Paused, a name may be gone for a while; and one that never comes is told so after the pause."""
    old, new = tiny.adapters
    assert client.load("policy", old).status == 200
    assert client.load("leaving", old).status == 200
    assert client.post("/pause?mode=wait").status == 200
    with _waiting(client, "policy") as before, ThreadPoolExecutor(3) as askers:
        left = askers.submit(client.complete, "leaving", PROMPT, ignore_eos=True)
        until(lambda: client.count("vllm:num_requests_waiting") == 2)
        assert client.unload("policy").status == 200
        assert client.unload("leaving").status == 200
        inside = askers.submit(client.complete, "policy", PROMPT, ignore_eos=True)
        stranger = askers.submit(client.complete, "nobody", PROMPT)
        until(lambda: client.count("vllm:num_requests_waiting") == 4)
        assert client.load("policy", new).status == 200
        assert client.post("/resume").status == 200
        assert _tokens(before[0].result()) == _tokens(inside.result()) == reference(tiny.base, new, PROMPT)
        assert _tokens(left.result()) == reference(tiny.base, old, PROMPT)  # it was there when this one came
        assert stranger.result().error["type"] == "NotFoundError"


def test_full_weights_are_replaced_under_running_requests(
    running: tuple[Client, Server], tiny: Tiny, reference: Reference
) -> None:
    client, _ = running
    adapter = tiny.adapters[0]
    assert client.load("a", adapter).status == 200
    names = {"tiny": None, "a": adapter}
    with contextlib.ExitStack() as streams:
        begun = []
        for name in names:
            events = streams.enter_context(client.stream("/v1/completions", {"model": name, "prompt": PROMPT, **LONG}))
            begun.append((name, next(events)["choices"][0]["token_ids"], events))
        assert client.post("/pause?mode=keep").status == 200
        reply = client.reload(tiny.base2)
        assert (reply.status, reply.json) == (200, {"results": [None]})
        assert client.count("vllm:num_requests_running") == 2
        assert client.post("/resume").status == 200
        for name, path in names.items():
            assert client.tokens(name, PROMPT, ignore_eos=True) == reference(tiny.base2, path, PROMPT)
        for name, first, events in begun:
            rest = [token for event in events if event != "[DONE]" for token in event["choices"][0]["token_ids"]]
            assert first + rest == reference(tiny.base, names[name], PROMPT, 250)
    assert client.load("b", tiny.adapters[1]).status == 200
    assert client.tokens("b", PROMPT, ignore_eos=True) == reference(tiny.base2, tiny.adapters[1], PROMPT)
    again = client.post("/collective_rpc", {"method": "reload_weights"})  # without a path: the model's own
    assert again.status == 200
    assert client.tokens("tiny", PROMPT, ignore_eos=True) == reference(tiny.base, None, PROMPT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_says_so_to_everyone(running: tuple[Client, Server]) -> None:
    client, server = running

    def fail() -> None:
        raise KeyboardInterrupt

    with client.stream("/v1/completions", {"prompt": PROMPT, **LONG}) as events:
        next(events)
        assert client.post("/pause?mode=keep").status == 200
        failing = server.engine.call(fail)
        *_, last, done = events
    assert "KeyboardInterrupt" in str(failing.exception())
    assert last["error"]["type"] == "InternalServerError"
    assert done == "[DONE]"
    assert client.get("/health").status == 503
    assert client.complete("tiny", PROMPT).error["code"] == 503
    assert client.post("/resume").error["code"] == 503


def _shard(path: pathlib.Path) -> pathlib.Path:
    return max(path.glob("model-*.safetensors"))


def _truncated(path: pathlib.Path) -> None:
    _shard(path).write_bytes(_shard(path).read_bytes()[:-10])


def _shard_gone(path: pathlib.Path) -> None:
    _shard(path).unlink()


def _all_gone(path: pathlib.Path) -> None:
    shutil.rmtree(path)


def _index(path: pathlib.Path, text: str) -> None:
    (path / "model.safetensors.index.json").write_text(text)


def _no_json(path: pathlib.Path) -> None:
    _index(path, "{")


def _no_map(path: pathlib.Path) -> None:
    _index(path, "{}")


def _other_directory(path: pathlib.Path) -> None:
    _index(path, json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))


def _rewrite(path: pathlib.Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load(_shard(path).read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, _shard(path))


def _tensor_missing(path: pathlib.Path) -> None:
    _rewrite(path, lambda tensors: tensors.pop(max(tensors)))


def _tensor_too_many(path: pathlib.Path) -> None:
    _rewrite(path, lambda tensors: tensors.update(more=torch.zeros(1)))


def _wrong_shape(path: pathlib.Path) -> None:
    _rewrite(path, lambda tensors: tensors.update({max(tensors): torch.zeros(3)}))


UNUSABLE = [
    *(_truncated, _shard_gone, _all_gone, _no_json, _no_map, _other_directory),
    *(_tensor_missing, _tensor_too_many, _wrong_shape),
]


def test_weights_that_cannot_be_used_change_nothing(
    client: Client, tiny: Tiny, tmp_path: pathlib.Path, reference: Reference
) -> None:
    for spoil in UNUSABLE:
        path = shutil.copytree(tiny.base2, tmp_path / spoil.__name__)
        spoil(path)
        error = client.reload(path).error
        assert (error["code"], error["type"]) == (500, "InternalServerError"), spoil
        assert client.get("/health").status == 200
        assert client.tokens("tiny", PROMPT, ignore_eos=True) == reference(tiny.base, None, PROMPT), spoil
    assert client.reload(tiny.base2).status == 200
    assert client.tokens("tiny", PROMPT, ignore_eos=True) == reference(tiny.base2, None, PROMPT)


BAD_CALLS: list[Any] = [
    {},
    [],
    {"method": "shutdown"},
    {"method": "reload_weights", "args": ["/"]},
    {"method": "reload_weights", "kwargs": []},
    {"method": "reload_weights", "kwargs": {"weights_path": 3}},
    {"method": "reload_weights", "kwargs": {"weights_path": "a\0b"}},
    {"method": "reload_weights", "kwargs": {"weights_path": "/", "more": "x"}},
]


def test_other_calls_are_400(client: Client) -> None:
    for body in BAD_CALLS:
        assert client.post("/collective_rpc", body).error["code"] == 400, body
    error = client.post("/collective_rpc", {}).error
    assert (error["type"], error["message"]) == ("Bad Request", "Missing 'method' in request body")
    assert client.post("/pause?mode=sleep").error["param"] == "query.mode"
    assert client.get("/is_paused").json == {"is_paused": False}


def test_the_label_is_what_it_was_set_to(client: Client) -> None:
    assert client.get("/weight_info").json == {"weight_version": "default"}
    name = "c000001-s00000012-deadbeef"
    reply = client.post("/update_weight_version", {"new_version": name})
    assert (reply.status, reply.json) == (200, {"success": True, "new_version": name})
    assert client.get("/weight_info").json == {"weight_version": name}
    assert client.post("/update_weight_version", {}).error["code"] == 400
    assert client.get("/weight_info").json == {"weight_version": name}
