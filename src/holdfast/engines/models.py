"""The list of models as vLLM and SGLang give it: a card each, and an adapter's card names its base as its parent."""

from __future__ import annotations

import msgspec

from holdfast.engines.http import Http, unexpected


class _Card(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Card]


def list_models(http: Http) -> tuple[tuple[str, ...], dict[str, str]]:
    """Every name of the base models, and the adapters: name -> the path that it was loaded from, "" if untold.

    Raises:
        EngineError: the server gave no such list.
    """
    answer = http.get("/v1/models")
    if not answer.ok:
        raise unexpected(answer, "listing the models")
    cards = answer.decode(_Models).data
    bases = [name for card in cards if card.parent is None for name in (card.id, card.root) if name]
    loaded = {card.id: card.root or "" for card in cards if card.parent is not None}
    return tuple(dict.fromkeys(bases)), loaded
