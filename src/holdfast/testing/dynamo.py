"""FakeDynamo: a front end and its workers, with the routes and bodies of Dynamo's documentation and source."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import unquote, urlsplit

from holdfast.testing.adapters import AdapterMissing, AdapterUnusable, read_adapter, tokens
from holdfast.testing.fake import UNAUTHORIZED, FakeEngine, body_of
from holdfast.testing.server import FakeServer, Reply, Request

_NO_ROUTE = Reply(404, b"Route not found", "text/plain; charset=utf-8")
ROUTES = ("update/load_lora", "update/unload_lora", "update/list_loras")
OLD_ROUTES = ("load_lora_adapter", "unload_lora_adapter")


class FakeDynamoWorker(FakeServer):
    """The system server of one worker."""

    def __init__(self, front: FakeDynamo, number: int) -> None:
        super().__init__()
        self.front, self.number = front, number
        self.forget()

    def forget(self) -> None:
        self.loaded: dict[str, str] = {}
        self.memory: dict[str, bytes] = {}

    def handle(self, request: Request) -> Reply:
        if not self.front.lora_enabled:
            return _NO_ROUTE
        if request.route == "GET /v1/loras":
            ids = {name: at + 1 for at, name in enumerate(sorted(self.loaded))}
            return Reply.of({"status": "success", "count": len(ids), "loras": ids})
        if request.route == "POST /v1/loras":
            body = body_of(request) or {}
            name = str(body.get("lora_name"))
            return _said(name, self.load(name, unquote(urlsplit(str(body.get("source", {}).get("uri"))).path)))
        if request.method == "DELETE" and request.path.startswith("/v1/loras/"):
            name = unquote(request.path.removeprefix("/v1/loras/"))
            return _said(name, self.unload(name))
        return _NO_ROUTE

    def load(self, name: str, path: str) -> str:
        """What is wrong with it; nothing: it is loaded."""
        if name in (self.front.base, self.front.root):
            return f"LoRA adapter name '{name}' conflicts with the served base model"
        if name in self.loaded:
            same = self.loaded[name] == path
            return "" if same else f"LoRA adapter '{name}' conflicts with the loaded source path"
        try:
            self.memory[name] = read_adapter(path, self.front.max_lora_rank)
        except AdapterMissing:
            return "failed to resolve LoRA path: No such file or directory (os error 2)"
        except AdapterUnusable as error:
            return str(error)
        self.loaded[name] = path
        return ""

    def unload(self, name: str) -> str:
        """What is wrong with it; nothing: it is unloaded."""
        self.memory.pop(name, None)
        return "" if self.loaded.pop(name, None) is not None else f"LoRA adapter '{name}' not found"


class FakeDynamo(FakeEngine):
    """A Dynamo front end without a model, and its workers.

    Args:
        base: the name of the base model; `root` is the path from which it was loaded.
        max_lora_rank: the highest rank of an adapter.
        num_workers: how many workers it has at first.
        enable_rl: DYN_ENABLE_RL.
        lora_enabled: DYN_LORA_ENABLED.
        old: a build that loads adapters through the front end.
        api_key: what the front end asks for; None: nothing.
    """

    def __init__(
        self,
        *,
        base: str = "base",
        root: str = "/models/base",
        max_lora_rank: int = 16,
        num_workers: int = 2,
        enable_rl: bool = True,
        lora_enabled: bool = True,
        old: bool = False,
        api_key: str | None = None,
    ) -> None:
        super().__init__(base=base, root=root, max_lora_rank=max_lora_rank, api_key=api_key)
        self.enable_rl, self.lora_enabled, self.old = enable_rl, lora_enabled, old
        self.listed = OLD_ROUTES if old else ROUTES
        self.workers = [FakeDynamoWorker(self, number) for number in range(num_workers)]

    def start(self) -> Self:
        for worker in self.workers:
            if not worker.alive:
                worker.start()
        return super().start()

    def stop(self) -> None:
        super().stop()
        for worker in self.workers:
            worker.stop()

    def restart(self) -> None:
        """The front end and all workers come up again as new processes."""
        for worker in self.workers:
            worker.restart()
        super().restart()

    def join(self) -> FakeDynamoWorker:
        """One more worker, with nothing loaded."""
        worker = FakeDynamoWorker(self, len(self.workers)).start()
        with self.changed:
            self.workers.append(worker)
        return worker

    def handle(self, request: Request) -> Reply:
        if request.path.startswith("/v1") and not self.admits(request):
            return UNAUTHORIZED
        body = body_of(request) or {}
        name, path = str(body.get("lora_name")), str(body.get("lora_path"))
        match request.route:
            case "GET /health":
                return Reply.of({"status": "healthy"})
            case "GET /v1/models":
                names = dict.fromkeys([self.base, *(name for worker in self.workers for name in worker.loaded)])
                return Reply.of({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
            case "POST /v1/completions":
                return self._completion(body)
            case "GET /v1/rl/workers" if self.enable_rl:
                workers = [self._describe(worker) for worker in self.workers]
                return Reply.of({"protocol_version": 1, "namespace": "dynamo", "workers": workers})
            case "POST /v1/rl/load_lora_adapter" if self.enable_rl and self.old:
                return _said(name, next(filter(None, [worker.load(name, path) for worker in self.workers]), ""))
            case "POST /v1/rl/unload_lora_adapter" if self.enable_rl and self.old:
                return _said(name, next(filter(None, [worker.unload(name) for worker in self.workers]), ""))
        return Reply(404, b"", "")

    def _describe(self, worker: FakeDynamoWorker) -> dict[str, Any]:
        return {
            "namespace": "dynamo",
            "component": "backend",
            "endpoint": "rl",
            "instance_id": worker.number,
            "transport": {"tcp": "dynamo.backend.rl"},
            "request_plane_url": "dyn://dynamo.backend.rl",
            "system_url": worker.url,
            "model": self.base,
            "routes": list(self.listed),
        }

    def _completion(self, body: dict[str, Any]) -> Reply:
        model, prompt, count = str(body.get("model")), body.get("prompt", ""), int(body.get("max_tokens", 16))
        having = [worker for worker in self.workers if model in worker.loaded]
        if model != self.base and not having:
            said = {"message": f"Model not found: {model}", "type": "Not Found", "code": 404}
            return Reply.of(said, 404)
        with self.request(model):
            ids = tokens(self.weights if model == self.base else having[0].memory[model], prompt, count)
        content: dict[str, Any] = {
            "object": "text_completion",
            "model": model,
            "choices": [{"index": 0, "text": " ".join(map(str, ids)), "finish_reason": "length"}],
        }
        if "completion_token_ids" in body.get("nvext", {}).get("extra_fields", []):
            content["nvext"] = {"completion_token_ids": list(ids)}
        return Reply.of(content)


def _said(name: str, wrong: str) -> Reply:
    if wrong:
        return Reply.of({"status": "error", "message": wrong, "lora_name": name}, 500)
    return Reply.of({"status": "success", "message": f"LoRA adapter '{name}' done", "lora_name": name, "lora_id": 1})
