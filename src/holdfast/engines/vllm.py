"""vLLM: adapters through its runtime LoRA routes, full weights through its development routes.

Source: facts measured against vLLM 0.32.0. What the binding takes care of:

* `load_inplace` is never sent: the server would read the disk at every step, and one answer would mix two versions.
* A 404 means four things: no such route (switched off), no such path, no such name, no such server; they are told apart
  by their bodies.
* Requests that wait keep the adapter that their name meant when they came: see `_pass_queue`.
* A 500 at a load tells its reason only in words. The files were verified before, so this server can't use them.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence

import msgspec

from holdfast.core.servers import Reaction, Way
from holdfast.engines.contract import Completion, EngineError, Sight
from holdfast.engines.http import DEFAULT_LIMITS, Answer, Http, Limits, unexpected
from holdfast.engines.models import list_models

logger = logging.getLogger(__name__)

_LORA_INFO = re.compile(r"^vllm:lora_requests_info\{(.*)\}\s+([0-9.eE+-]+)\s*$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# Clients that were answered last ask again at once; what asks for a name while it stands for nothing gets a 404. Once
# their requests wait, none does. Measured: without this, 57 of 888 requests of 12 clients; with 0.1 s, none of 1550 of
# theirs, and 3 of 1800 where the clients' machine was overloaded.
SETTLE_S = 0.25
_RIGHTS = ("permission denied", "permissionerror", "errno 13")


class _Paused(msgspec.Struct):
    is_paused: bool


class _WeightInfo(msgspec.Struct):
    weight_version: str | None = None


class _Success(msgspec.Struct):
    success: bool = True


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: list[int] | None = None


class _Completions(msgspec.Struct):
    choices: list[_Choice]


class VLLM:
    """A vLLM server. See `Engine`.

    Args:
        url: its base, "http://host:port".
        token: its API key, asked for at each call.
        limits: how long its calls may take.
    """

    kind = "vllm"
    ways = frozenset(Way)

    def __init__(
        self, url: str, *, token: Callable[[], str | None] = lambda: None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self._http = Http(url, token=token, timeout_s=limits.call_s)
        self.url = self._http.url

    def look(self, way: Way) -> Sight:
        bases, loaded = list_models(self._http)
        if way is Way.WEIGHTS:
            info = self._development(self._http.get("/weight_info")).decode(_WeightInfo)
            return Sight(bases=bases, label=info.weight_version, paused=self._is_paused(), counts=False)
        busy = self._busy()
        paused = self._is_paused() if way is Way.STABLE else False
        return Sight(bases=bases, loaded=loaded, paused=paused, busy=busy or frozenset(), counts=busy is not None)

    def load_adapter(self, name: str, path: str) -> None:
        body = {"lora_name": name, "lora_path": path, "load_inplace": False}
        answer = self._http.post("/v1/load_lora_adapter", body, timeout_s=self._limits.load_s)
        if not answer.ok:
            raise _load_error(answer, name, path)

    def unload_adapter(self, name: str) -> None:
        self._pass_intake(name)
        answer = self._http.post("/v1/unload_lora_adapter", {"lora_name": name})
        if answer.ok or (answer.status == 404 and not _no_route(answer)):
            return
        raise _switched_off(answer) if _no_route(answer) else unexpected(answer, f"unloading {name}")

    def pause(self, adapter: str | None = None) -> None:
        if adapter is not None:
            self._pass_queue(adapter)
        self._development(self._http.post("/pause", timeout_s=self._limits.drain_s, mode="wait"))
        if adapter is not None:
            time.sleep(SETTLE_S)

    def _pass_queue(self, adapter: str) -> None:
        """Wait until everything that waits for `adapter` now has begun: requests are begun in their order.

        A request that waits keeps the adapter that its name meant when it came. vLLM tells adapters in one batch apart
        by their names, so that requests of three adapters that had one name in turn would kill it.
        """
        body = {"model": adapter, "prompt": "1", "max_tokens": 1, "temperature": 0.0}
        answer = self._http.post("/v1/completions", body, timeout_s=self._limits.drain_s)
        if not answer.ok and answer.status != 404:
            raise unexpected(answer, f"waiting for the requests of {adapter}")

    def _pass_intake(self, name: str) -> None:
        """Wait until every request for `name` that the server has taken in has its adapter.

        vLLM looks a name up twice, before and after it has made tokens of the prompt: a name that goes between the two
        is a 404. Prompts are made into tokens one after the other, so that one of ours comes after all that are there.
        A server without this route, or that is too slow, is none the worse for it.
        """
        try:
            self._http.post("/tokenize", {"model": name, "prompt": "1"})
        except EngineError as error:
            logger.debug("%s: %s", self.url, error)

    def resume(self) -> None:
        self._development(self._http.post("/resume"))

    def reload_weights(self, path: str) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        answer = self._http.post("/collective_rpc", body, timeout_s=self._limits.load_s)
        if _no_route(answer):
            raise _no_development(answer)
        if not answer.ok:
            raise EngineError(
                f"reloading from {path} failed half-way: {answer.said}",
                Reaction.QUARANTINE,
                code="reload_failed",
                status=answer.status,
            )

    def reset_cache(self) -> None:
        answer = self._development(self._http.post("/reset_prefix_cache"))
        if answer.body.strip() and not answer.decode(_Success).success:
            raise EngineError(
                "the prefix cache is in use and cannot be reset yet", Reaction.LOOK_AGAIN, code="cache_busy"
            )

    def set_label(self, label: str) -> None:
        self._development(self._http.post("/update_weight_version", {"new_version": label}))

    def complete(self, model: str, prompt: str | Sequence[int], max_tokens: int) -> Completion:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "return_token_ids": True,
        }
        answer = self._http.post("/v1/completions", body, timeout_s=self._limits.load_s)
        if answer.status == 404 and not _no_route(answer):  # it was restarted meanwhile, or somebody unloaded it
            raise EngineError(f"{model} is not served: {answer.said}", Reaction.LOOK_AGAIN, code="not_loaded")
        if not answer.ok:
            raise unexpected(answer, f"a completion by {model}")
        choices = answer.decode(_Completions).choices
        if not choices:
            raise unexpected(answer, f"a completion by {model} without choices")
        ids = choices[0].token_ids
        return Completion(choices[0].text, tuple(ids) if ids is not None else None)

    def close(self) -> None:
        self._http.close()

    # Looking

    def _is_paused(self) -> bool:
        return self._development(self._http.get("/is_paused")).decode(_Paused).is_paused

    def _busy(self) -> frozenset[str] | None:
        """Adapters with running or waiting requests; None: the server does not tell (LoRA is off, or a proxy).

        Its metrics grow by a line per name and combination and never shrink, so that after very many versions they
        are longer than what is read: from then on drains end by their time alone.
        """
        try:
            answer = self._http.get("/metrics")
        except EngineError as error:
            if error.code != "huge_body":
                raise
            return None
        if not answer.ok:
            return None
        newest: tuple[float, frozenset[str]] | None = None
        for labels, value in _LORA_INFO.findall(answer.body.decode("utf-8", "replace")):
            said = dict(_LABEL.findall(labels))
            names = f"{said.get('running_lora_adapters', '')},{said.get('waiting_lora_adapters', '')}".split(",")
            written_s = float(value)
            if newest is None or written_s >= newest[0]:  # one series per combination; the value is its time
                newest = written_s, frozenset(name for name in names if name)
        return newest[1] if newest is not None else frozenset()

    def _development(self, answer: Answer) -> Answer:
        if _no_route(answer):
            raise _no_development(answer)
        if not answer.ok:
            raise unexpected(answer, "a development route")
        return answer


def _no_route(answer: Answer) -> bool:
    """Whether the path is unknown to the server: FastAPI's own body, not one of vLLM's."""
    return answer.status in (404, 405) and b'"error"' not in answer.body


def _switched_off(answer: Answer) -> EngineError:
    return EngineError(
        f"{answer.url} is switched off on this server",
        Reaction.FIX_SETUP,
        code="route_switched_off",
        hint="start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora",
    )


def _no_development(answer: Answer) -> EngineError:
    return EngineError(
        f"{answer.url} is switched off on this server",
        Reaction.FIX_SETUP,
        code="route_switched_off",
        hint="start the server with VLLM_SERVER_DEV_MODE=1",
    )


def _load_error(answer: Answer, name: str, path: str) -> EngineError:
    said, lower = answer.said, answer.said.lower()
    if _no_route(answer):
        return _switched_off(answer)
    if answer.status == 404:
        return EngineError(
            f"the server finds no adapter at {path}: {said}",
            Reaction.LOOK_AGAIN,
            code="path_not_visible",
            hint="does the server see this path? --stage a directory that it sees, or --path-map OURS=THEIRS",
        )
    if answer.status == 400 and "already been loaded" in lower:
        return EngineError(f"{name} is loaded already: {said}", Reaction.LOOK_AGAIN, code="already_loaded")
    if answer.status == 400 and "conflicts with" in lower:
        return EngineError(
            f"{name} is the name of the base model: {said}",
            Reaction.FIX_SETUP,
            code="name_taken",
            hint="give another --adapter",
        )
    if "lora is not enabled" in lower:
        return EngineError(
            f"the server takes no adapters: {said}",
            Reaction.FIX_SETUP,
            code="lora_is_off",
            hint="start the server with --enable-lora",
        )
    if any(word in lower for word in _RIGHTS):
        return EngineError(
            f"the server may not read {path}: {said}",
            Reaction.FIX_SETUP,
            code="no_rights",
            hint="let the server's user read the staging directory",
        )
    if answer.status in (400, 500):
        return EngineError(f"the server cannot use it: {said}", Reaction.NEXT_VERSION, code="refused_by_server")
    return unexpected(answer, f"loading {name}")
