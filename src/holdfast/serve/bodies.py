"""What clients send: bodies of requests, checked, and made into prompts and sampling.

What vLLM would honour and this server can't is refused when it is set to anything that changes the answer; names that
neither knows are ignored, as vLLM ignores them.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from holdfast.serve.errors import ApiError, bad_value, malformed
from holdfast.serve.sampling import Sampling

BODY_BYTES_MAX = 16 * 1024 * 1024
SEQUENCES_MAX = 256
LOGPROBS_MAX = 20
STOPS_MAX = 64

# Not supported, with the values that make no difference.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "guided_choice": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "logit_bias": (None, {}),
    "logprob_token_ids": (None, []),
    "min_tokens": (None, 0),
    "presence_penalty": (None, 0),
    "prompt_embeds": (None,),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tools": (None, []),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
}


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Common(msgspec.Struct, kw_only=True):
    """What both kinds of requests have."""

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    prompt_logprobs: int | None = None


class Completion(Common, kw_only=True):
    prompt: str | list[Any] | None = None
    add_special_tokens: bool = True
    logprobs: int | None = None


class Chat(Common, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class LoadAdapter(msgspec.Struct):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapter(msgspec.Struct):
    lora_name: str


class UpdateWeightVersion(msgspec.Struct):
    new_version: str


Body = TypeVar("Body")
_MISSING = re.compile(r"missing required field `(\w+)`")


async def read_body(request: Request) -> bytes:
    """The body, never more than it may be.

    Raises:
        ApiError: 413.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise ApiError(413, f"the body is larger than {BODY_BYTES_MAX} bytes", "Request Entity Too Large")
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request) -> Any:
    """The body as JSON.

    Raises:
        ApiError: 400; it is none.
    """
    raw = await read_body(request)
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f"1 validation error:\n  JSON decode error: {error}", "body") from error


def convert(value: Any, kind: type[Body]) -> Body:
    """`value` as a `kind`.

    Raises:
        ApiError: 400, which says where it is not.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        param = f"body{place.rstrip('`')}"
        if missing := _MISSING.search(message):
            param = f"{param}.{missing[1]}"
        raise malformed(f"1 validation error:\n  {param}: {message}", param) from error


async def read_as(request: Request, kind: type[Body]) -> Body:
    return convert(await read_json(request), kind)


def refuse_unsupported(raw: Any) -> None:
    """A wish that would silently go unheard is an error."""
    if not isinstance(raw, dict):
        return
    for name, neutral in NEUTRAL.items():
        if name in raw and raw[name] not in neutral:
            raise bad_value(f"{name} is not supported by this server", name, raw[name])


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the model allows and, where a request does not say, prefers."""

    max_model_len: int
    vocab_size: int
    eos_ids: frozenset[int]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def sampling(
    body: Common, limits: Limits, *, prompt_len: int, max_tokens: int | None, logprobs: int | None
) -> Sampling:
    """How the answer is to be made.

    Args:
        max_tokens: as the client says; None: as many as fit.
        logprobs: how many alternatives; None: no log-probabilities.
    """
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if "" in stop or len(stop) > STOPS_MAX:
        raise bad_value(f"stop must be at most {STOPS_MAX} strings, none of them empty", "stop")
    made = Sampling(
        max_tokens=_max_tokens(max_tokens, prompt_len, limits),
        temperature=limits.temperature if body.temperature is None else body.temperature,
        top_p=limits.top_p if body.top_p is None else body.top_p,
        top_k=max(limits.top_k if body.top_k is None else body.top_k, 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
        stop=stop,
        stop_ids=frozenset(body.stop_token_ids or ()),
        eos_ids=frozenset() if body.ignore_eos else limits.eos_ids,
        include_stop=body.include_stop_str_in_output,
        skip_special=body.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
    )
    if made.prompt_logprobs is not None and body.stream:
        raise bad_value("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
    _check(made, 1 if body.n is None else body.n)
    return made


def _max_tokens(wanted: int | None, prompt_len: int, limits: Limits) -> int:
    if prompt_len >= limits.max_model_len:
        raise bad_value(
            f"This model's maximum context length is {limits.max_model_len} tokens. However, your prompt contains "
            f"{prompt_len} input tokens. Please reduce the length of the input prompt.",
            "input_tokens",
            prompt_len,
        )
    room = limits.max_model_len - prompt_len
    if wanted is None:
        return room
    if wanted < 1:
        raise bad_value(f"max_tokens must be at least 1, got {wanted}.", "max_tokens", wanted)
    if wanted > limits.max_model_len:
        raise bad_value(
            f"max_tokens={wanted} cannot be greater than max_model_len={limits.max_model_len}. "
            "Please request fewer output tokens.",
            "max_tokens",
            wanted,
        )
    return min(wanted, room)


def _check(made: Sampling, n: int) -> None:
    if not 0.0 <= made.temperature <= 1e6:
        raise bad_value(f"temperature must be non-negative, got {made.temperature}.", "temperature", made.temperature)
    if not 0.0 < made.top_p <= 1.0:
        raise bad_value(f"top_p must be in (0, 1], got {made.top_p}.", "top_p", made.top_p)
    if not 0.0 <= made.min_p <= 1.0:
        raise bad_value(f"min_p must be in [0, 1], got {made.min_p}.", "min_p", made.min_p)
    if made.seed is not None and not -(2**63) <= made.seed < 2**63:
        raise bad_value("seed must fit into 64 bits", "seed", made.seed)
    _check_count(made.logprobs, "logprobs", "sample")
    _check_count(made.prompt_logprobs, "prompt_logprobs", "prompt")
    if n < 1:
        raise bad_value(f"n must be at least 1, got {n}.")
    if n > 1 and made.temperature == 0.0:
        raise bad_value(f"n must be 1 when using greedy sampling, got {n}.")


def _check_count(wanted: int | None, name: str, kind: str) -> None:
    if wanted is not None and wanted < 0:
        raise bad_value(f"{name} must be non-negative", name, wanted)
    if wanted is not None and wanted > LOGPROBS_MAX:
        raise bad_value(
            f"Requested {kind} logprobs of {wanted}, which is greater than max allowed: {LOGPROBS_MAX}", name, wanted
        )


def prompts(value: str | list[Any] | None) -> list[str | list[int]]:
    """The prompts of a completion, each as text or as tokens.

    Raises:
        ApiError: 400; it is of none of the four forms, or empty.
    """
    if value == []:
        raise bad_value("You must pass at least one prompt")
    if not value:
        raise bad_value("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(value, str) or _are_tokens(value):
        return [value]
    if len(value) > SEQUENCES_MAX:
        raise bad_value(f"at most {SEQUENCES_MAX} prompts", "prompt", len(value))
    if all(isinstance(each, str) for each in value) or all(_are_tokens(each) for each in value):
        if not all(value):
            raise bad_value("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        return list(value)
    raise malformed(
        "1 validation error:\n  body.prompt: a string, a list of strings, a list of token ids, or a list of such lists",
        "body.prompt",
    )


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def conversation(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with plain text as their content.

    Raises:
        ApiError: 400; there are none, or one is not text.
    """
    if not messages:
        raise bad_value("Cannot apply chat template to an empty conversation. Provide at least one message.")
    plain = []
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise malformed(f"1 validation error:\n  body.messages.{number}.role: a string", "body.messages")
        plain.append({**message, "content": _text(message.get("content"), number)})
    return plain


def _text(content: Any, number: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(part, str) for part in parts):
            return "\n".join(str(part) for part in parts)
    raise malformed(f"1 validation error:\n  body.messages.{number}.content: only text is supported", "body.messages")
