"""The engine contract: what an inference server must let us do, and how its refusals are sorted.

A binding turns these calls into its server's routes. It keeps nothing but the connection, decides nothing, and tries
nothing twice: when, in which order, and what a failure means for a version is for `holdfast.core.reconcile` to say.
Every call returns once the server has said that it is done, or raises EngineError with a reaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from holdfast.core.servers import Reaction, Way
from holdfast.errors import HoldfastError

UPDATING = "holdfast-updating"  # what full weights are labelled with while nobody knows what they are


class EngineError(HoldfastError):
    """An inference server said no, said nonsense, or nothing at all.

    Attributes:
        reaction: what to do about it.
    """

    def __init__(self, message: str, reaction: Reaction, *, code: str, hint: str = "", **fields: object) -> None:
        super().__init__(message, code=code, hint=hint, **fields)
        self.reaction = reaction


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself at one look.

    Attributes:
        bases: the names of the base model: what it is served as, and where it was loaded from.
        loaded: adapter name -> path, as the server lists them.
        label: the label of full weights, or None where nobody asked or the server has none.
        paused: it holds its requests back.
        busy: adapters whose requests are running or waiting; empty where `counts` is False.
        counts: whether it reports requests per adapter, so that an adapter's last request can be told.
    """

    bases: tuple[str, ...] = ()
    loaded: Mapping[str, str] = {}
    label: str | None = None
    paused: bool = False
    busy: frozenset[str] = frozenset()
    counts: bool = True


class Completion(msgspec.Struct, frozen=True):
    """A greedy completion: its text, and its token ids where the server gives them."""

    text: str
    token_ids: tuple[int, ...] | None = None


class Engine(Protocol):
    """One inference server (with Dynamo: one front end and its workers).

    Attributes:
        kind: "vllm", "sglang" or "dynamo".
        url: where it is.
        ways: what can be loaded into it without failing a request.
    """

    kind: str
    url: str
    ways: frozenset[Way]

    def look(self, way: Way) -> Sight:
        """Ask it afresh for everything that `way` needs."""

    def load_adapter(self, name: str, path: str) -> None:
        """Load the adapter at `path` under a name that is not in use. Never in place of another one."""

    def unload_adapter(self, name: str) -> None:
        """Forget the name; a name that is not there is no error. Requests under way go on."""

    def pause(self, adapter: str | None = None) -> None:
        """Let requests under way end, and hold new ones back without failing them.

        Args:
            adapter: the one that is about to be replaced: what waits for it now has begun before the pause does.
        """

    def resume(self) -> None:
        """Let requests go on."""

    def reload_weights(self, path: str) -> None:
        """Replace the weights of the whole model by those at `path`."""

    def reset_cache(self) -> None:
        """Forget every result that was computed with older weights."""

    def set_label(self, label: str) -> None:
        """Label the weights."""

    def complete(self, model: str, prompt: str | Sequence[int], max_tokens: int) -> Completion:
        """A greedy completion by `model`."""

    def close(self) -> None:
        """Close the connections."""
