"""SGLang: adapters by its LoRA routes, full weights by one call that does everything. Not run against a live server.

Source: SGLang's documentation and source (0.5). Where it differs from vLLM, and what follows:

* Unloading first takes the name off the list, so that new requests for it fail, and answers once its last request is
  done. So one name can't be given new weights without failing requests: there is no Way.STABLE. A name whose unload
  has been asked for and not been answered counts as busy; adapters are read from disk only when they are loaded, so
  that nothing is lost if that is forgotten with this process.
* A request that names an unloaded adapter may make the server load it again from where it was. It is then on the list
  again, and is unloaded again; if its files are gone that request fails, and no other.
* `/pause_generation` can abort requests, or go on with them on top of other weights: neither is what pausing means
  here. `/update_weights_from_disk` waits for running requests by itself, holds new ones back, loads, and flushes the
  cache, all under one lock. So `pause` sends nothing and is remembered, and `reset_cache` has nothing left to do.
* If it fails half-way, nothing holds requests back from weights that nobody knows. Then, and only then, the server is
  told to stop in place; `resume` takes that back.
* After an update the base model is called as the path that it came from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from holdfast.core.servers import Reaction, Way
from holdfast.engines.contract import Completion, EngineError, Sight
from holdfast.engines.http import DEFAULT_LIMITS, Answer, Http, Limits, unexpected
from holdfast.engines.models import list_models

_MISSING = ("no such file or directory", "repo id must be", "cannot find the requested files")
_RIGHTS = ("permission denied", "permissionerror", "errno 13")
_OFF = "lora is not enabled"


class _Info(msgspec.Struct):
    model_path: str
    weight_version: str | None = None


class _Done(msgspec.Struct):
    success: bool


class _Generated(msgspec.Struct):
    text: str = ""
    output_ids: list[int] | None = None


class SGLang:
    """An SGLang server. See `Engine`.

    Args:
        url: its base, "http://host:port".
        token: its API key, or its admin API key where it has one; asked for at each call.
        limits: how long its calls may take.
    """

    kind = "sglang"
    ways = frozenset({Way.VERSIONED, Way.WEIGHTS})

    def __init__(
        self, url: str, *, token: Callable[[], str | None] = lambda: None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self._http = Http(url, token=token, timeout_s=limits.call_s)
        self.url = self._http.url
        self._paused = False
        self._unloading: set[str] = set()

    def look(self, way: Way) -> Sight:
        bases, loaded = list_models(self._http)
        if way is Way.WEIGHTS:
            info = self._info()
            bases = tuple(dict.fromkeys((*bases, info.model_path)))
            return Sight(bases=bases, label=info.weight_version, paused=self._paused, counts=False)
        self._unloading -= loaded.keys()
        return Sight(bases=bases, loaded=loaded, paused=self._paused, busy=frozenset(self._unloading))

    def load_adapter(self, name: str, path: str) -> None:
        body = {"lora_name": name, "lora_path": path}
        answer = self._http.post("/load_lora_adapter", body, timeout_s=self._limits.load_s)
        if not _succeeded(answer):
            raise _load_error(answer, name, path)

    def unload_adapter(self, name: str) -> None:
        self._unloading.add(name)
        answer = self._http.post("/unload_lora_adapter", {"lora_name": name}, timeout_s=self._limits.drain_s)
        if _succeeded(answer) or "does not exist" in answer.said.lower():
            self._unloading.discard(name)
            return
        raise _switched_off(answer) if _is_off(answer) else unexpected(answer, f"unloading {name}")

    def pause(self, adapter: str | None = None) -> None:
        self._paused = True

    def resume(self) -> None:
        answer = self._http.post("/continue_generation", {})
        if not answer.ok:
            raise unexpected(answer, "letting requests go on")
        self._paused = False

    def reload_weights(self, path: str) -> None:
        body = {"model_path": path, "abort_all_requests": False, "flush_cache": True}
        limit_s = self._limits.drain_s + self._limits.load_s
        try:
            answer = self._http.post("/update_weights_from_disk", body, timeout_s=limit_s)
        except EngineError:
            self._stop_in_place()
            raise
        if answer.status in (404, 405):  # nothing was done
            raise unexpected(answer, f"reloading from {path}")
        if _succeeded(answer):
            return
        self._stop_in_place()
        raise EngineError(
            f"reloading from {path} failed half-way: {answer.said}",
            Reaction.QUARANTINE,
            code="reload_failed",
            status=answer.status,
        )

    def reset_cache(self) -> None:
        """Nothing: `reload_weights` did it while no request ran. Asked for later, it fails as long as one does."""

    def set_label(self, label: str) -> None:
        answer = self._http.post("/update_weight_version", {"new_version": label, "abort_all_requests": False})
        if not _succeeded(answer):
            raise unexpected(answer, "labelling the weights")

    def complete(self, model: str, prompt: str | Sequence[int], max_tokens: int) -> Completion:
        body: dict[str, object] = {"sampling_params": {"temperature": 0.0, "max_new_tokens": max_tokens}}
        body["text" if isinstance(prompt, str) else "input_ids"] = prompt
        if model not in list_models(self._http)[0]:
            body["lora_path"] = model
        answer = self._http.post("/generate", body, timeout_s=self._limits.load_s)
        if answer.status == 400 and "never been loaded" in answer.said.lower():
            raise EngineError(f"{model} is not served: {answer.said}", Reaction.LOOK_AGAIN, code="not_loaded")
        if not answer.ok:
            raise unexpected(answer, f"a completion by {model}")
        generated = answer.decode(_Generated)
        ids = generated.output_ids
        return Completion(generated.text, tuple(ids) if ids is not None else None)

    def close(self) -> None:
        self._http.close()

    def _info(self) -> _Info:
        answer = self._http.get("/model_info")
        if answer.status == 404:  # until 0.5.4 it was called so
            answer = self._http.get("/get_model_info")
        if not answer.ok:
            raise unexpected(answer, "asking for the weights' version")
        return answer.decode(_Info)

    def _stop_in_place(self) -> None:
        """Hold requests back from weights that nobody knows. If that fails as well, there is only the quarantine."""
        with contextlib.suppress(EngineError):
            self._http.post("/pause_generation", {"mode": "in_place"})


def _succeeded(answer: Answer) -> bool:
    """Its status and its word: an answer that says neither of the two is not SGLang's."""
    return answer.ok and answer.decode(_Done).success


def _is_off(answer: Answer) -> bool:
    return answer.status in (404, 405) or _OFF in answer.said.lower()


def _switched_off(answer: Answer) -> EngineError:
    return EngineError(
        f"{answer.url} is switched off on this server: {answer.said}",
        Reaction.FIX_SETUP,
        code="route_switched_off",
        hint="start the server with --enable-lora, --max-lora-rank and --lora-target-modules",
    )


def _load_error(answer: Answer, name: str, path: str) -> EngineError:
    said, lower = answer.said, answer.said.lower()
    if _is_off(answer):
        return _switched_off(answer)
    if answer.status >= 500:
        return unexpected(answer, f"loading {name}")
    if "already loaded" in lower or "already exists" in lower:
        return EngineError(f"{name} is loaded already: {said}", Reaction.LOOK_AGAIN, code="already_loaded")
    if any(word in lower for word in _RIGHTS):
        return EngineError(
            f"the server may not read {path}: {said}",
            Reaction.FIX_SETUP,
            code="no_rights",
            hint="let the server's user read the staging directory",
        )
    if any(word in lower for word in _MISSING):
        return EngineError(
            f"the server finds no adapter at {path}: {said}",
            Reaction.LOOK_AGAIN,
            code="path_not_visible",
            hint="does the server see this path? --stage a directory that it sees, or --path-map OURS=THEIRS",
        )
    if answer.status == 400:
        return EngineError(f"the server cannot use it: {said}", Reaction.NEXT_VERSION, code="refused_by_server")
    return unexpected(answer, f"loading {name}")
