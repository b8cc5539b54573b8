"""What the fake inference servers have in common: a base model, a key, and requests that are running."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from holdfast.testing.adapters import AdapterMissing, read_adapter, read_weights, tokens
from holdfast.testing.server import FakeServer, Reply, Request

NOT_FOUND = Reply.of({"detail": "Not Found"}, 404)
NOT_ALLOWED = Reply.of({"detail": "Method Not Allowed"}, 405)
UNAUTHORIZED = Reply.of({"error": "Unauthorized"}, 401)


class FakeEngine(FakeServer):
    """An inference server without a model.

    Args:
        base: the name of the base model; `root` is the path from which it was loaded.
        max_lora_rank: the highest rank of an adapter.
        api_key: what callers have to show; None: nothing.

    Attributes:
        running: model -> number of its requests that are running.
    """

    def __init__(self, *, base: str, root: str, max_lora_rank: int, api_key: str | None) -> None:
        super().__init__()
        self.base, self.root = base, root
        self.max_lora_rank, self.api_key = max_lora_rank, api_key
        FakeEngine.forget(self)

    def forget(self) -> None:
        self.weights = self.root.encode()
        self.running: Counter[str] = Counter()

    def counted(self) -> None:
        """Called whenever `running` has changed."""

    def admits(self, request: Request) -> bool:
        return self.api_key is None or request.headers.get("authorization") == f"Bearer {self.api_key}"

    def expected(self, path: str, prompt: str | list[int], max_tokens: int) -> tuple[int, ...]:
        """The tokens of a server that serves the adapter, or the whole model, at `path` and nothing else."""
        try:
            weights = read_adapter(path, self.max_lora_rank)
        except AdapterMissing:
            weights = read_weights(path)
        return tokens(weights, prompt, max_tokens)

    @contextlib.contextmanager
    def request(self, model: str) -> Iterator[None]:
        """A request of `model` that runs as long as the block."""
        with self.changed:
            running = self.running
            running[model] += 1
            self.counted()
        try:
            yield
        finally:
            with self.changed:
                if running is self.running:  # else it died with the process
                    running[model] -= 1
                    self.counted()
                self.changed.notify_all()


def body_of(request: Request) -> dict[str, Any] | None:
    """The JSON object in its body; None: it is something else."""
    try:
        body = request.json
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
