"""Which binding speaks to which server. Each is imported when it is first asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable

from holdfast.engines.contract import Engine
from holdfast.errors import UsageError

KINDS = {
    "vllm": ("holdfast.engines.vllm", "VLLM"),
    "sglang": ("holdfast.engines.sglang", "SGLang"),
    "dynamo": ("holdfast.engines.dynamo", "Dynamo"),
}


def open_engine(kind: str, url: str, *, token: Callable[[], str | None] = lambda: None) -> Engine:
    """The binding `kind` for the server at `url`. Nothing is sent yet.

    Raises:
        UsageError: code "bad_engine": there is no such binding; "bad_url".
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of: {', '.join(KINDS)}"
        raise UsageError(f"there is no engine {kind!r}", code="bad_engine", hint=hint)
    module, name = KINDS[kind]
    engine: Engine = getattr(importlib.import_module(module), name)(url, token=token)
    return engine
