"""FakeVLLM: the routes and bodies of vLLM 0.32.0 as measured, with its hazards."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from holdfast.testing.adapters import AdapterMissing, AdapterUnusable, read_adapter, read_weights, tokens
from holdfast.testing.fake import NOT_ALLOWED, NOT_FOUND, UNAUTHORIZED, FakeEngine, body_of
from holdfast.testing.server import Reply, Request, ServerDied

_BUCKET = 16  # tokens in a block of the prefix cache


class FakeVLLM(FakeEngine):
    """A vLLM server without a model.

    Its tokens come from the bytes that it loaded: compare them with `expected`. What the real one does wrongly, it
    does too: an evicted adapter is read again from its path, and if that is gone the server dies; a reload that
    failed kills it at the next request; the prefix cache answers with older weights until it is reset.

    Args:
        base: the name of the base model; `root` is the path from which it was loaded.
        max_cpu_loras: adapters that it keeps in memory.
        max_lora_rank: as its flag of that name.
        runtime_lora: VLLM_ALLOW_RUNTIME_LORA_UPDATING.
        dev_mode: VLLM_SERVER_DEV_MODE.
        api_key: what /v1 asks for; None: nothing.
    """

    def __init__(
        self,
        *,
        base: str = "base",
        root: str = "/models/base",
        max_cpu_loras: int = 2,
        max_lora_rank: int = 16,
        runtime_lora: bool = True,
        dev_mode: bool = True,
        api_key: str | None = None,
    ) -> None:
        super().__init__(base=base, root=root, max_lora_rank=max_lora_rank, api_key=api_key)
        self.max_cpu_loras = max_cpu_loras
        self.runtime_lora, self.dev_mode = runtime_lora, dev_mode
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.loaded: dict[str, str] = {}  # what the front end lists: name -> path
        self.paths: dict[str, str] = {}  # what the engine knows, also after an unload: name -> path
        self.memory: OrderedDict[str, bytes] = OrderedDict()  # what the engine has in memory, least used first
        self.broken = False
        self.label = "default"
        self.paused = False
        self.waiting: Counter[str] = Counter()
        self.cache: dict[tuple[str, str, str], bytes] = {}
        self._infos: dict[tuple[str, str], float] = {}
        self._written_s = 0.0

    # Routes

    def handle(self, request: Request) -> Reply:
        if request.path.startswith("/v1") and not self.admits(request):
            return UNAUTHORIZED
        routes: dict[str, dict[str, Callable[[Request], Reply]]] = {
            "/health": {"GET": lambda _: Reply(kind="")},
            "/version": {"GET": lambda _: Reply.of({"version": "0.32.0"})},
            "/metrics": {"GET": lambda _: self._metrics()},
            "/v1/models": {"GET": lambda _: self._models()},
            "/v1/completions": {"POST": self._completion},
        }
        if self.runtime_lora:
            routes["/v1/load_lora_adapter"] = {"POST": self._load}
            routes["/v1/unload_lora_adapter"] = {"POST": self._unload}
        if self.dev_mode:
            routes |= {
                "/pause": {"POST": self._pause},
                "/resume": {"POST": self._resume},
                "/is_paused": {"GET": lambda _: Reply.of({"is_paused": self.paused})},
                "/reset_prefix_cache": {"POST": self._reset},
                "/collective_rpc": {"POST": self._rpc},
                "/weight_info": {"GET": lambda _: Reply.of({"weight_version": self.label})},
                "/update_weight_version": {"POST": self._relabel},
            }
        methods = routes.get(request.path)
        if methods is None:
            return NOT_FOUND
        return methods[request.method](request) if request.method in methods else NOT_ALLOWED

    def _models(self) -> Reply:
        now = int(time.time())
        cards = [{"id": self.base, "object": "model", "created": now, "root": self.root, "parent": None}]
        cards += [
            {"id": name, "object": "model", "created": now, "root": path, "parent": self.base}
            for name, path in self.loaded.items()
        ]
        return Reply.of({"object": "list", "data": cards})

    def _metrics(self) -> Reply:
        lines = ["# TYPE vllm:num_requests_running gauge", f"vllm:num_requests_running {self.running.total()}"]
        lines += [
            f'vllm:lora_requests_info{{max_lora="{self.max_cpu_loras}",running_lora_adapters="{running}",'
            f'waiting_lora_adapters="{waiting}"}} {written_s!r}'
            for (running, waiting), written_s in self._infos.items()
        ]
        return Reply(body="\n".join([*lines, ""]).encode(), kind="text/plain")

    def _load(self, request: Request) -> Reply:
        body = body_of(request)
        if body is None or not isinstance(body.get("lora_name"), str) or not isinstance(body.get("lora_path"), str):
            return _error(400, "Both 'lora_name' and 'lora_path' must be provided.", "Bad Request")
        name, path = body["lora_name"], body["lora_path"]
        if name == self.base:
            return _error(400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
        if name in self.loaded and not body.get("load_inplace"):
            said = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            return _error(400, f"{said}'load_inplace' to True.", "InvalidUserInput")
        try:
            self._keep(name, read_adapter(path, self.max_lora_rank))
        except AdapterMissing:
            return _error(404, f"Loading lora {name} failed: No adapter found for <path>", "NotFoundError")
        except AdapterUnusable as error:
            return _error(500, f"Call to add_lora method failed: {error}", "InternalServerError")
        self.loaded[name] = self.paths[name] = path
        return Reply(body=f"Success: LoRA adapter '{name}' added successfully.".encode(), kind="")

    def _unload(self, request: Request) -> Reply:
        body = body_of(request)
        if body is None or not isinstance(body.get("lora_name"), str):
            return _error(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "Bad Request")
        name = body["lora_name"]
        if self.loaded.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return Reply(body=f"Success: LoRA adapter '{name}' removed successfully.".encode(), kind="")

    def _pause(self, request: Request) -> Reply:
        mode = request.query.get("mode", "abort")
        if mode not in ("abort", "wait", "keep"):
            return Reply.of({"error": f"Invalid mode {mode!r}"}, 400)
        self.paused = True
        if mode == "wait":
            self.wait_until(lambda: self.running.total() == 0)
        if request.query.get("clear_cache", "true") == "true":
            self.cache.clear()
        return Reply.of({"status": "paused"})

    def _resume(self, request: Request) -> Reply:
        self.paused = False
        return Reply.of({"status": "resumed"})

    def _reset(self, request: Request) -> Reply:
        if self.running.total():
            return Reply.of({"success": False})
        self.cache.clear()
        return Reply.of({"success": True})

    def _rpc(self, request: Request) -> Reply:
        body = body_of(request) or {}
        if body.get("method") != "reload_weights":
            said = f"'CPUWorker' object has no attribute '{body.get('method')}'"
            return _error(500, f"Call to collective_rpc method failed: {said}", "InternalServerError")
        try:
            self.weights = read_weights(str(body.get("kwargs", {}).get("weights_path", self.root)))
        except AdapterUnusable as error:
            self.broken = True  # some of its weights are the old ones, and /health still says 200
            return _error(500, f"Call to collective_rpc method failed: {error}", "InternalServerError")
        return Reply.of({"results": [None]})

    def _relabel(self, request: Request) -> Reply:
        label = (body_of(request) or {}).get("new_version")
        if not isinstance(label, str):
            return _error(400, "new_version must be a string", "Bad Request")
        self.label = label
        return Reply.of({"success": True, "new_version": label})

    def _completion(self, request: Request) -> Reply:
        body = body_of(request) or {}
        model, prompt, count = body.get("model", self.base), body.get("prompt", ""), int(body.get("max_tokens", 16))
        if model != self.base and model not in self.loaded:
            said = f"The model `{model}` does not exist. Valid aliases: {self.base}."
            return _error(404, said, "NotFoundError", "model")
        path = self.loaded.get(model, "")
        waiting = self.waiting
        waiting[model] += 1
        self.counted()
        try:
            self.wait_until(lambda: not self.paused)
        finally:
            waiting[model] -= 1
        with self.request(model):
            ids = tokens(self._weights(model, path, prompt), prompt, count)
        choice = {"index": 0, "text": " ".join(map(str, ids)), "token_ids": list(ids), "finish_reason": "length"}
        return Reply.of({"object": "text_completion", "model": model, "choices": [choice]})

    # The engine behind the front end

    def _weights(self, model: str, path: str, prompt: Any) -> bytes:
        if self.broken:
            raise ServerDied("the engine failed on weights that were loaded half-way")
        weights = self.weights
        if path:
            if model not in self.memory or self.paths.get(model) != path:
                try:
                    self._keep(model, read_adapter(path, self.max_lora_rank))
                except (AdapterMissing, AdapterUnusable) as error:
                    raise ServerDied(f"an evicted adapter cannot be read again: {error}") from error
                self.paths[model] = path
            self.memory.move_to_end(model)
            weights = self.memory[model]
        if len(prompt) <= _BUCKET:
            return weights
        return self.cache.setdefault((model if path else "", path, str(prompt)), weights)

    def _keep(self, name: str, weights: bytes) -> None:
        self.memory[name] = weights
        self.memory.move_to_end(name)
        while len(self.memory) > self.max_cpu_loras:
            self.memory.popitem(last=False)

    def counted(self) -> None:
        names = tuple(
            ",".join(sorted(name for name in which if which[name] > 0 and name != self.base))
            for which in (self.running, self.waiting)
        )
        self._written_s = max(time.time(), self._written_s + 1e-6)
        self._infos[names[0], names[1]] = self._written_s


def _error(status: int, message: str, kind: str, param: str | None = None) -> Reply:
    return Reply.of({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)
