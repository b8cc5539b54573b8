"""Adapters come and go while requests run: each answer is of one version, whatever happens to names and files."""

from __future__ import annotations

import json
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import safetensors.torch
import torch

from holdfast.serve.server import Server
from tests.serve.conftest import Reference, Tiny
from tests.support.channels import until
from tests.support.serving import Client, serving

PROMPT = [40, 41, 42]
LONG = {"ignore_eos": True, "max_tokens": 250, "return_token_ids": True, "temperature": 0}


def _tokens(events: Iterator[Any]) -> list[int]:
    return [token for event in events if event != "[DONE]" for token in event["choices"][0]["token_ids"]]


def test_loaded_and_unloaded(client: Client, tiny: Tiny) -> None:
    path = tiny.adapters[0]
    reply = client.load("a", path)
    assert (reply.status, reply.raw) == (200, b"Success: LoRA adapter 'a' added successfully.")
    base, card = client.get("/v1/models").json["data"]
    assert (base["id"], base["root"], base["parent"], base["max_model_len"]) == ("tiny", str(tiny.base), None, 512)
    assert (card["id"], card["root"], card["parent"]) == ("a", str(path), "tiny")
    reply = client.unload("a")
    assert (reply.status, reply.raw) == (200, b"Success: LoRA adapter 'a' removed successfully.")
    assert client.models() == ["tiny"]
    error = client.complete("a", PROMPT).error
    assert error["message"] == "The model `a` does not exist. Valid aliases: tiny."
    assert (error["type"], error["param"]) == ("NotFoundError", "model")


def test_what_is_loaded_needs_its_files_no_more(
    client: Client, tiny: Tiny, tmp_path: pathlib.Path, reference: Reference
) -> None:
    path = shutil.copytree(tiny.adapters[0], tmp_path / "adapter")
    assert client.load("a", path).status == 200
    for file in path.iterdir():
        file.write_bytes(b"overwritten in place")
    assert client.tokens("a", PROMPT, ignore_eos=True) == reference(tiny.base, tiny.adapters[0], PROMPT)
    shutil.rmtree(path)
    assert client.load("b", tiny.adapters[1]).status == 200
    assert client.tokens("a", PROMPT, ignore_eos=True) == reference(tiny.base, tiny.adapters[0], PROMPT)


def test_a_request_keeps_the_version_that_it_began_with(
    running: tuple[Client, Server], tiny: Tiny, reference: Reference
) -> None:
    """Its name is unloaded and stands for another version, before it is half done."""
    client, server = running
    old, new = tiny.adapters
    assert client.load("a", old).status == 200
    with client.stream("/v1/completions", {"model": "a", "prompt": PROMPT, **LONG}) as events:
        first = next(events)["choices"][0]["token_ids"]
        assert client.post("/pause?mode=keep").status == 200
        assert client.metric("vllm:lora_requests_info").keys() == {
            '{max_lora="8",running_lora_adapters="a",waiting_lora_adapters=""}'
        }
        assert client.unload("a").status == 200
        assert client.load("a", new).status == 200
        assert client.count("vllm:num_requests_running") == 1
        assert len(server.engine.weights.installed) == 2
        assert client.post("/resume").status == 200
        assert client.tokens("a", PROMPT, ignore_eos=True) == reference(tiny.base, new, PROMPT)
        assert first + _tokens(events) == reference(tiny.base, old, PROMPT, 250)
    until(lambda: len(server.engine.weights.installed) == 1)  # the old one's memory is free


def test_no_answer_mixes_versions_while_names_change(client: Client, tiny: Tiny, reference: Reference) -> None:
    answers: list[tuple[str, list[int]]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            reply = client.complete("a", PROMPT, ignore_eos=True)
            if reply.status == 200:
                answers.append((reply.json["system_fingerprint"], reply.json["choices"][0]["token_ids"]))
            else:
                assert reply.status == 404

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for turn in range(16):
            assert client.load("a", tiny.adapters[turn % 2]).status == 200
            count = len(answers)
            until(lambda count=count: len(answers) > count + 3)
            assert client.unload("a").status == 200
    finally:
        ended.set()
        for asker in askers:
            asker.join()
    expected = [reference(tiny.base, path, PROMPT) for path in tiny.adapters]
    assert {tuple(tokens) for _, tokens in answers} == {tuple(tokens) for tokens in expected}
    assert len({fingerprint for fingerprint, _ in answers}) == 2
    assert len({(fingerprint, *tokens) for fingerprint, tokens in answers}) == 2


def _rewrite(path: pathlib.Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = path / "adapter_model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, file)


def _truncated(path: pathlib.Path) -> None:
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _no_tensors(path: pathlib.Path) -> None:
    _rewrite(path, lambda tensors: tensors.clear())


def _tensor_missing(path: pathlib.Path) -> None:
    _rewrite(path, lambda tensors: tensors.pop(min(tensors)))


def _tensor_too_many(path: pathlib.Path) -> None:
    _rewrite(path, lambda tensors: tensors.update(more=torch.zeros(1)))


def _wrong_shape(path: pathlib.Path) -> None:
    _rewrite(path, lambda tensors: tensors.update({min(tensors): torch.zeros(8, 63)}))


def _no_weights(path: pathlib.Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def _configure(path: pathlib.Path, **values: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _no_json(path: pathlib.Path) -> None:
    (path / "adapter_config.json").write_text("{")


def _no_object(path: pathlib.Path) -> None:
    (path / "adapter_config.json").write_text("[]")


def _other_method(path: pathlib.Path) -> None:
    _configure(path, peft_type="IA3")


def _no_method(path: pathlib.Path) -> None:
    _configure(path, peft_type="NOTHING")


def _with_bias(path: pathlib.Path) -> None:
    _configure(path, bias="all")


def _saves_modules(path: pathlib.Path) -> None:
    _configure(path, modules_to_save=["lm_head"])


def _no_such_modules(path: pathlib.Path) -> None:
    _configure(path, target_modules=["nothing_of_this_name"])


def _rank_pattern(path: pathlib.Path) -> None:
    _configure(path, rank_pattern={"q_proj": 64})


UNUSABLE = [
    *(_truncated, _no_tensors, _tensor_missing, _tensor_too_many, _wrong_shape, _no_weights, _no_json, _no_object),
    *(_other_method, _no_method, _with_bias, _saves_modules, _no_such_modules, _rank_pattern),
]


@pytest.fixture(scope="module")
def shared(tiny: Tiny) -> Iterator[Client]:
    """One server for tests that change nothing."""
    with serving(tiny.base, served_model_name="tiny", max_lora_rank=8) as (client, _):
        assert client.load("good", tiny.adapters[0]).status == 200
        yield client


@pytest.mark.parametrize("spoil", UNUSABLE, ids=lambda spoil: spoil.__name__.strip("_"))
def test_unusable_adapters_are_500_and_change_nothing(
    shared: Client, tiny: Tiny, tmp_path: pathlib.Path, spoil: Callable[[pathlib.Path], None], reference: Reference
) -> None:
    path = shutil.copytree(tiny.adapters[1], tmp_path / "adapter")
    spoil(path)
    error = shared.load("bad", path)
    assert (error.status, error.error["type"]) == (500, "InternalServerError"), error.raw
    assert shared.models() == ["tiny", "good"]
    assert shared.complete("bad", PROMPT).status == 404
    for model, adapter in (("tiny", None), ("good", tiny.adapters[0])):
        assert shared.tokens(model, PROMPT, ignore_eos=True) == reference(tiny.base, adapter, PROMPT)


def test_rank_above_the_limit(shared: Client, tiny: Tiny) -> None:
    error = shared.load("large", tiny.large).error
    assert (error["code"], error["message"]) == (500, "LoRA rank 16 is greater than max_lora_rank 8.")


@pytest.mark.parametrize("there", [False, True], ids=["no directory", "no config"])
def test_no_adapter_there_is_404(shared: Client, tmp_path: pathlib.Path, there: bool) -> None:
    path = tmp_path / "adapter"
    if there:
        path.mkdir()
    error = shared.load("bad", path).error
    assert (error["code"], error["type"]) == (404, "NotFoundError")
    assert error["message"] == "Loading lora bad failed: No adapter found for <path>"


BAD_WISHES: list[tuple[dict[str, Any], str, str]] = [
    ({"lora_name": "good", "lora_path": "/"}, "InvalidUserInput", "has already been loaded"),
    ({"lora_name": "tiny", "lora_path": "/"}, "InvalidUserInput", "conflicts with a served base model"),
    ({"lora_name": "", "lora_path": ""}, "InvalidUserInput", "must be provided"),
    ({"lora_name": "new", "lora_path": "/", "load_inplace": True}, "InvalidUserInput", "mixes two versions"),
    ({"lora_name": "good", "lora_path": "/", "load_inplace": True}, "InvalidUserInput", "mixes two versions"),
    ({"lora_name": "new"}, "Bad Request", "lora_path"),
    ({"lora_name": 3, "lora_path": "/"}, "Bad Request", "lora_name"),
]


@pytest.mark.parametrize(("body", "kind", "words"), BAD_WISHES)
def test_wishes_that_cannot_be_fulfilled_are_400(shared: Client, body: dict[str, Any], kind: str, words: str) -> None:
    error = shared.post("/v1/load_lora_adapter", body).error
    assert (error["code"], error["type"]) == (400, kind)
    assert words in error["message"]
    assert shared.models() == ["tiny", "good"]


def test_unloading_what_is_not_there(shared: Client) -> None:
    error = shared.unload("nobody").error
    assert (error["code"], error["type"]) == (404, "NotFoundError")
    assert error["message"] == "The lora adapter 'nobody' cannot be found."
    assert shared.unload("").error["type"] == "InvalidUserInput"
    assert shared.unload("tiny").status == 404
    assert shared.post("/v1/unload_lora_adapter", {}).error["code"] == 400


def test_limits_on_adapters(tiny: Tiny, reference: Reference) -> None:
    """No more names than allowed; and requests for more adapters than may run at once wait, and are answered."""
    with serving(tiny.base, served_model_name="tiny", max_loras=1, max_cpu_loras=2) as (client, _):
        assert client.load("a", tiny.adapters[0]).status == 200
        assert client.load("b", tiny.adapters[1]).status == 200
        error = client.load("c", tiny.large).error
        assert (error["code"], error["type"]) == (503, "ServiceUnavailableError")
        assert "--max-cpu-loras" in error["message"]
        with client.stream("/v1/completions", {"model": "a", "prompt": PROMPT, **LONG}) as events:
            head = next(events)["choices"][0]["token_ids"]
            assert client.post("/pause?mode=keep").status == 200
            waiter = threading.Thread(target=lambda: later.append(client.tokens("b", PROMPT, ignore_eos=True)))
            later: list[list[int]] = []
            waiter.start()
            until(lambda: client.count("vllm:num_requests_waiting") == 1)
            assert client.post("/resume").status == 200
            assert client.post("/pause?mode=keep").status == 200
            assert client.metric("vllm:lora_requests_info").keys() == {
                '{max_lora="1",running_lora_adapters="a",waiting_lora_adapters="b"}'
            }
            assert client.post("/resume").status == 200
            assert head + _tokens(events) == reference(tiny.base, tiny.adapters[0], PROMPT, 250)
            waiter.join()
        assert later == [reference(tiny.base, tiny.adapters[1], PROMPT)]
        assert client.unload("a").status == 200
        assert client.load("c", tiny.large).status == 200
        assert client.tokens("c", PROMPT, ignore_eos=True) == reference(tiny.base, tiny.large, PROMPT)
