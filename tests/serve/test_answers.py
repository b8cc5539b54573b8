"""What is answered: the tokens of transformers and PEFT, in the bodies of vLLM."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, Qwen3ForCausalLM

from tests.serve.conftest import Reference, Tiny
from tests.support.serving import Client, serving

PROMPTS = ([259, 283, 328], [10], list(range(40, 140)))


def test_tokens_are_those_of_transformers_and_peft(client: Client, tiny: Tiny, reference: Reference) -> None:
    for number, path in enumerate(tiny.adapters):
        assert client.load(f"adapter-{number}", path).status == 200
    for prompt in PROMPTS:
        for name, path in (("tiny", None), ("adapter-0", tiny.adapters[0]), ("adapter-1", tiny.adapters[1])):
            made = client.tokens(name, prompt, ignore_eos=True, max_tokens=30)
            assert made == reference(tiny.base, path, prompt, 30), (name, prompt)


def test_many_at_once_and_each_gets_its_own_answer(client: Client, tiny: Tiny, reference: Reference) -> None:
    names: dict[str, pathlib.Path | None] = {"tiny": None, "a": tiny.adapters[0], "b": tiny.adapters[1]}
    for name in ("a", "b"):
        assert client.load(name, names[name] or tiny.base).status == 200
    wanted = [(name, [number + 5, 40, 41]) for number in range(8) for name in names]
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda want: client.tokens(*want, ignore_eos=True), wanted))
    assert answers == [reference(tiny.base, names[name], prompt) for name, prompt in wanted]


def test_forms_of_a_prompt(client: Client, tiny: Tiny) -> None:
    encode = AutoTokenizer.from_pretrained(tiny.base).encode
    hello, fox = encode("hello world"), encode("the fox")
    for prompt, read in (
        ("hello world", [hello]),
        (hello, [hello]),
        (["hello world", "the fox"], [hello, fox]),
        ([hello, fox], [hello, fox]),
    ):
        body = client.complete("tiny", prompt).json
        assert [choice["prompt_token_ids"] for choice in body["choices"]] == read
        assert [choice["token_ids"] for choice in body["choices"]] == [client.tokens("tiny", ids) for ids in read]
        num_read, num_made = sum(map(len, read)), 12 * len(read)
        assert body["usage"]["prompt_tokens"] == num_read
        assert body["usage"]["completion_tokens"] == num_made
        assert body["usage"]["total_tokens"] == num_read + num_made


def test_body_of_a_completion(client: Client) -> None:
    body = client.complete("tiny", "hello world", max_tokens=3).json
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", "tiny")
    choice = body["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["stop_reason"] is None
    assert choice["logprobs"] is None
    plain = client.post("/v1/completions", {"prompt": "hello world", "temperature": 0}).json
    assert plain["model"] == "tiny"
    assert plain["usage"]["completion_tokens"] == 16
    assert plain["choices"][0]["token_ids"] is None


def test_chat_goes_through_the_template(client: Client, tiny: Tiny, reference: Reference) -> None:
    ids = AutoTokenizer.from_pretrained(tiny.base).encode("system: be brief\nuser: hello\n")
    parts = [{"type": "text", "text": "hello"}]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 5, "return_token_ids": True}
    body = client.post("/v1/chat/completions", asked | {"logprobs": True, "top_logprobs": 2}).json
    assert body["object"] == "chat.completion"
    assert body["prompt_token_ids"] == ids
    choice = body["choices"][0]
    assert choice["token_ids"] == reference(tiny.base, None, ids, 5)
    assert choice["message"]["role"] == "assistant"
    content = choice["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * 5
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in content)  # greedy: the likeliest
    with client.stream("/v1/chat/completions", asked) as events:
        opening, *chunks, done = events
    assert done == "[DONE]"
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert opening["prompt_token_ids"] == ids
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == choice["message"]["content"]
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == choice["token_ids"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_chat_is_as_long_as_fits(client: Client) -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "ignore_eos": True}
    usage = client.post("/v1/chat/completions", asked).json["usage"]
    assert usage["total_tokens"] == 512
    for name in ("max_tokens", "max_completion_tokens"):
        assert client.post("/v1/chat/completions", asked | {name: 3}).json["usage"]["completion_tokens"] == 3


def test_logprobs_are_of_the_unchanged_distribution(client: Client, tiny: Tiny) -> None:
    prompt = [259, 283, 328]
    sampled = {"temperature": 0.5, "top_p": 0.9, "seed": 3}
    by_id = {"logprobs": 2, "return_tokens_as_token_ids": True}
    choice = client.complete("tiny", prompt, max_tokens=4, **by_id, **sampled).json["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    model = Qwen3ForCausalLM.from_pretrained(tiny.base, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + choice["token_ids"]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    for place, token in enumerate(choice["token_ids"]):
        assert math.isclose(logprobs["token_logprobs"][place], expected[place, token], abs_tol=1e-4)
        top = dict(zip(*((tensor.tolist()) for tensor in reversed(expected[place].topk(2))), strict=True))
        told = logprobs["top_logprobs"][place]
        assert {f"token_id:{each}" for each in top} <= told.keys() <= {f"token_id:{each}" for each in {*top, token}}
        assert max(told.values()) == pytest.approx(max(top.values()), abs=1e-4)
    in_words = client.complete("tiny", prompt, logprobs=0, max_tokens=4).json["choices"][0]["logprobs"]
    lengths = [len(token) for token in in_words["tokens"]]
    assert in_words["text_offset"] == [sum(lengths[:place]) for place in range(4)]


def test_logprobs_of_the_prompt(client: Client, tiny: Tiny, reference: Reference) -> None:
    """As vLLM tells them: by token id, nothing for the first token; and the answer is the same as without."""
    assert client.load("a", tiny.adapters[0]).status == 200
    prompts, asked = [[259, 283, 328], [10], list(range(40, 60))], {"ignore_eos": True, "prompt_logprobs": 2}
    choices = client.complete("a", prompts, **asked).json["choices"]
    plain = Qwen3ForCausalLM.from_pretrained(tiny.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, tiny.adapters[0]).eval()
    for prompt, choice in zip(prompts, choices, strict=True):
        assert choice["token_ids"] == reference(tiny.base, tiny.adapters[0], prompt)
        told = choice["prompt_logprobs"]
        assert len(told) == len(prompt)
        assert told[0] is None
        with torch.inference_mode():
            expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        for place, token in enumerate(prompt[1:]):
            likeliest = expected[place].argsort(descending=True).tolist()
            assert told[place + 1].keys() == {str(each) for each in (token, *likeliest[:2])}
            for each, one in told[place + 1].items():
                assert math.isclose(one["logprob"], expected[place, int(each)], abs_tol=1e-4)
                assert one["rank"] == likeliest.index(int(each)) + 1
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "return_token_ids": True}
    body = client.post("/v1/chat/completions", chat | {"prompt_logprobs": 0}).json
    read, told = body["prompt_token_ids"], body["prompt_logprobs"]
    assert [None if one is None else list(one) for one in told] == [None, *([str(token)] for token in read[1:])]
    decode = AutoTokenizer.from_pretrained(tiny.base).decode
    words = [one[str(token)]["decoded_token"] for one, token in zip(told[1:], read[1:], strict=True)]
    assert words == [decode([token]) for token in read[1:]]
    assert client.complete("a", [40]).json["choices"][0]["prompt_logprobs"] is None


def test_streamed_and_whole_are_the_same(client: Client, tiny: Tiny) -> None:
    client.load("a", tiny.adapters[0])
    asked = {"model": "a", "prompt": ["hello world", "the lazy"], "max_tokens": 40, "logprobs": 1, "seed": 5}
    asked |= {"return_token_ids": True, "ignore_eos": True, "temperature": 0.7}
    whole = client.post("/v1/completions", asked).json
    with client.stream("/v1/completions", asked | {"stream_options": {"include_usage": True}}) as events:
        *chunks, usage, done = events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"].items() <= whole["usage"].items()
    assert usage["system_fingerprint"] == whole["system_fingerprint"]
    for choice in whole["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert [token for each in mine for token in each["token_ids"]] == choice["token_ids"]
        assert [each["prompt_token_ids"] for each in mine] == [choice["prompt_token_ids"], *[None] * 39]
        for field in ("text_offset", "token_logprobs", "tokens", "top_logprobs"):
            assert [value for each in mine for value in each["logprobs"][field]] == choice["logprobs"][field]
        assert [each["finish_reason"] for each in mine] == [*[None] * 39, "length"]


def test_stop_strings_and_tokens(client: Client) -> None:
    prompt, more = [40, 41, 42], {"ignore_eos": True, "max_tokens": 60}
    free = client.complete("tiny", prompt, **more).json["choices"][0]
    text = free["text"]
    stop = text[3:6]  # across the boundaries of tokens
    end = text.find(stop)
    for asked, kept in (
        ({"stop": ["nowhere", stop]}, end),
        ({"stop": stop, "include_stop_str_in_output": True}, end + 3),
    ):
        choice = client.complete("tiny", prompt, **more, **asked).json["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[:kept], "stop", stop)
        with client.stream("/v1/completions", {"prompt": prompt, "temperature": 0, **more, **asked}) as events:
            streamed = [event["choices"][0]["text"] for event in events if event != "[DONE]"]
        assert "".join(streamed) == text[:kept]
    token = free["token_ids"][7]
    cut = free["token_ids"].index(token) + 1
    choice = client.complete("tiny", prompt, stop_token_ids=[token], **more).json["choices"][0]
    assert choice["token_ids"] == free["token_ids"][:cut]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)


def test_the_model_says_what_ends_an_answer_and_how_to_sample(
    tiny: Tiny, tmp_path: pathlib.Path, reference: Reference
) -> None:
    wanted = reference(tiny.base, None, [40, 41, 42], 12)
    shutil.copytree(tiny.base, tmp_path / "base")
    preferred = {"eos_token_id": [1, wanted[4]], "temperature": 0.0}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(preferred))
    with serving(tmp_path / "base") as (client, _):
        asked = {"prompt": [40, 41, 42], "return_token_ids": True}
        choice = client.post("/v1/completions", asked).json["choices"][0]
        assert choice["token_ids"] == wanted[: wanted.index(wanted[4]) + 1]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
        assert client.post("/v1/completions", asked | {"ignore_eos": True}).json["usage"]["completion_tokens"] == 16


def _sample(client: Client, **asked: Any) -> list[list[int]]:
    body = {"prompt": [40, 41], "max_tokens": 12, "return_token_ids": True, "ignore_eos": True, **asked}
    return [choice["token_ids"] for choice in client.post("/v1/completions", body).json["choices"]]


def test_sampling_follows_its_seed_and_its_limits(client: Client) -> None:
    greedy = client.tokens("tiny", [40, 41], ignore_eos=True)
    first = _sample(client, seed=1)
    assert first == _sample(client, seed=1)
    assert first != _sample(client, seed=2)
    assert _sample(client, seed=1, n=3) == [_sample(client, seed=seed)[0] for seed in (1, 2, 3)]
    for narrow in ({"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-6}, {"temperature": 1e-4}):
        assert _sample(client, seed=1, **narrow) == [greedy], narrow


def test_equal_bytes_have_equal_fingerprints(client: Client, tiny: Tiny) -> None:
    def fingerprint(model: str) -> str:
        return str(client.complete(model, [40]).json["system_fingerprint"])

    for name, path in (("a", tiny.adapters[0]), ("again", tiny.adapters[0]), ("other", tiny.adapters[1])):
        assert client.load(name, path).status == 200
    assert fingerprint("a") == fingerprint("again")
    assert len({fingerprint(model) for model in ("tiny", "a", "other")}) == 3
