"""FakeSGLang: the routes and bodies of SGLang as its documentation and source give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.testing.adapters import AdapterMissing, AdapterUnusable, read_adapter, read_weights, tokens
from holdfast.testing.fake import NOT_ALLOWED, NOT_FOUND, UNAUTHORIZED, FakeEngine, body_of
from holdfast.testing.server import Reply, Request

_OFF = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."


class FakeSGLang(FakeEngine):
    """An SGLang server without a model.

    Its tokens come from the bytes that it loaded: compare them with `expected`. What the real one does, it does too: an
    unload takes the name away and waits for its requests; a request that names an adapter that was there loads it again
    from its path; an update of all weights waits for every request, and renames the base model.

    Args:
        base: the name of the base model; `root` is the path from which it was loaded.
        max_lora_rank: as its flag of that name.
        enable_lora: as its flag of that name.
        api_key: what every route asks for; None: nothing.
    """

    def __init__(
        self,
        *,
        base: str = "base",
        root: str = "/models/base",
        max_lora_rank: int = 16,
        enable_lora: bool = True,
        api_key: str | None = None,
    ) -> None:
        super().__init__(base=base, root=root, max_lora_rank=max_lora_rank, api_key=api_key)
        self.enable_lora = enable_lora
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.served, self.path = self.base, self.root
        self.loaded: dict[str, str] = {}
        self.known: dict[str, str] = {}  # loaded at some time
        self.memory: dict[str, bytes] = {}
        self.label = "default"
        self.paused: str | None = None
        self.updating = False  # new requests wait
        self.unloading = False  # loads and unloads wait

    def handle(self, request: Request) -> Reply:
        if not self.admits(request):
            return UNAUTHORIZED
        routes: dict[str, dict[str, Callable[[Request], Reply]]] = {
            "/health": {"GET": lambda _: Reply(kind="")},
            "/v1/models": {"GET": lambda _: self._models()},
            "/model_info": {"GET": lambda _: Reply.of({"model_path": self.path, "weight_version": self.label})},
            "/load_lora_adapter": {"POST": self._load},
            "/unload_lora_adapter": {"POST": self._unload},
            "/update_weights_from_disk": {"POST": self._update},
            "/update_weight_version": {"POST": self._relabel},
            "/pause_generation": {"POST": self._pause},
            "/continue_generation": {"POST": self._continue},
            "/generate": {"POST": self._generate},
        }
        methods = routes.get(request.path)
        if methods is None:
            return NOT_FOUND
        return methods[request.method](request) if request.method in methods else NOT_ALLOWED

    def _models(self) -> Reply:
        cards: list[dict[str, Any]] = [{"id": self.served, "object": "model", "root": self.served, "parent": None}]
        if self.enable_lora:
            cards += [
                {"id": name, "object": "model", "root": path, "parent": self.served}
                for name, path in self.loaded.items()
            ]
        return Reply.of({"object": "list", "data": cards})

    def _load(self, request: Request) -> Reply:
        body = body_of(request) or {}
        name, path = str(body.get("lora_name")), str(body.get("lora_path"))
        if not self.enable_lora:
            return self._lora(_OFF)
        self.wait_until(lambda: not self.unloading)
        return self._lora(self._loading(name, path))

    def _loading(self, name: str, path: str) -> str:
        """What is wrong with it; nothing: it is loaded."""
        if name in self.loaded:
            return f"Failed to load LoRA adapter {name} because it is already loaded"
        try:
            self.memory[name] = read_adapter(path, self.max_lora_rank)
        except AdapterMissing:
            return f"[Errno 2] No such file or directory: '{path}/adapter_config.json'"
        except AdapterUnusable as error:
            return str(error)
        self.loaded[name] = self.known[name] = path
        return ""

    def _unload(self, request: Request) -> Reply:
        name = str((body_of(request) or {}).get("lora_name"))
        if not self.enable_lora:
            return self._lora(_OFF)
        self.wait_until(lambda: not self.unloading)
        if self.loaded.pop(name, None) is None:
            return self._lora(f"LoRA with name {name} does not exist. Loaded LoRAs: {list(self.loaded)}")
        self.unloading = True
        self.changed.notify_all()
        try:
            self.wait_until(lambda: self.running[name] == 0)
            self.memory.pop(name, None)
        finally:
            self.unloading = False
            self.changed.notify_all()
        return self._lora("")

    def _lora(self, wrong: str) -> Reply:
        body = {"success": not wrong, "error_message": wrong, "loaded_adapters": dict(self.loaded)}
        return Reply.of(body, 400 if wrong else 200)

    def _update(self, request: Request) -> Reply:
        body = body_of(request) or {}
        path = str(body.get("model_path"))
        self.updating = True
        self.changed.notify_all()
        try:
            if self.paused is None:
                self.wait_until(lambda: self.running.total() == 0)
            self.weights = read_weights(path)
        except AdapterUnusable as error:
            self.weights = b"half of these, half of those"
            said = f"Failed to update weights: {error}.\nRolling back to original weights."
            return Reply.of({"success": False, "message": said, "num_paused_requests": 0}, 400)
        finally:
            self.updating = False
            self.changed.notify_all()
        self.served = self.path = path
        if body.get("flush_cache", True) and self.running.total():
            said = "Cache flush failed after updating weights"
            return Reply.of({"success": False, "message": said, "num_paused_requests": 0}, 400)
        said = "Succeeded to update model weights."
        return Reply.of({"success": True, "message": said, "num_paused_requests": 0})

    def _relabel(self, request: Request) -> Reply:
        label = (body_of(request) or {}).get("new_version")
        if not isinstance(label, str):
            said = {"object": "error", "message": "new_version: Input should be a valid string", "code": 400}
            return Reply.of(said, 400)
        self.label = label
        done = {"success": True, "message": f"Weight version updated to {label}", "new_version": label}
        return Reply.of(done)

    def _pause(self, request: Request) -> Reply:
        self.paused = str((body_of(request) or {}).get("mode", "abort"))
        return Reply.of({"message": "Generation paused successfully.", "status": "ok"})

    def _continue(self, request: Request) -> Reply:
        self.paused = None
        return Reply.of({"message": "Generation continued successfully.", "status": "ok"})

    def _generate(self, request: Request) -> Reply:
        body = body_of(request) or {}
        prompt = body.get("text", body.get("input_ids", ""))
        count = int(body.get("sampling_params", {}).get("max_new_tokens", 128))
        name = body.get("lora_path")
        self.wait_until(lambda: not self.updating and self.paused is None)
        if name is not None and name not in self.loaded:
            wrong = f"Got LoRA adapter that has never been loaded: {name}\nAll loaded adapters: {list(self.known)}."
            if name in self.known:
                self.wait_until(lambda: not self.unloading)
                wrong = self._loading(name, self.known[name])
            if wrong:
                return Reply.of({"error": {"message": wrong}}, 400)
        with self.request(name or self.base):
            ids = tokens(self.weights if name is None else self.memory[name], prompt, count)
        meta = {"id": "1", "weight_version": self.label, "finish_reason": {"type": "length", "length": count}}
        return Reply.of({"text": " ".join(map(str, ids)), "output_ids": list(ids), "meta_info": meta})
