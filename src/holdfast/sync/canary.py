"""A canary: a greedy completion that the publisher made itself, put into the manifest, and that a server must repeat.

    publisher.publish_adapter(step, model, metadata={"canary": {"prompt": "2 + 2 =", "token_ids": [220, 19]}})

`prompt` is a text or a list of token ids; `token_ids` or `text` is what a greedy completion of that length gives.
Engines that compute otherwise than the trainer (another precision, other kernels) may differ in near ties: choose a
prompt whose continuation is clear.
"""

from __future__ import annotations

import msgspec

from holdfast.core.manifest import Manifest
from holdfast.core.names import Version
from holdfast.core.servers import Reaction
from holdfast.engines.contract import Engine, EngineError

KEY = "canary"
TOKENS_MAX = 64


class Expected(msgspec.Struct, frozen=True):
    """What the publisher expects."""

    prompt: str | list[int]
    token_ids: list[int] | None = None
    text: str | None = None
    max_tokens: int = 8


def compare(engine: Engine, model: str, version: Version, manifest: Manifest | None) -> None:
    """Nothing if the manifest has no canary, or `model` repeats it.

    Raises:
        EngineError: NEXT_VERSION code "canary_differs", "bad_canary"; or as `Engine.complete`.
    """
    raw = manifest.metadata.get(KEY) if manifest is not None else None
    if raw is None:
        return
    try:
        expected = msgspec.convert(raw, Expected)
    except msgspec.ValidationError as error:
        raise EngineError(
            f"{version}: a canary that says nothing: {error}", Reaction.NEXT_VERSION, code="bad_canary"
        ) from error
    count = len(expected.token_ids) if expected.token_ids is not None else expected.max_tokens
    found = engine.complete(model, expected.prompt, min(max(count, 1), TOKENS_MAX))
    if expected.token_ids is not None and found.token_ids is not None:
        same, told = list(found.token_ids) == expected.token_ids[:TOKENS_MAX], f"{list(found.token_ids)}"
    elif expected.text is not None:
        same, told = found.text == expected.text, repr(found.text)
    else:
        return
    if not same:
        raise EngineError(
            f"{version}: the server completes {expected.prompt!r} with {told}",
            Reaction.NEXT_VERSION,
            code="canary_differs",
        )
