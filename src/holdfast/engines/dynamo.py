"""NVIDIA Dynamo: adapters on every worker of one front end. Experimental; not run against a live server.

Source: Dynamo's documentation and source. The front end lists its workers, each with the URL of its own system server
and with the routes that it has; adapters are loaded and unloaded worker by worker. What follows:

* A name counts as loaded once every worker lists it, and is loaded on those that lack it: on a worker that has just
  joined too. What only some workers have is not listed, and goes when it is unloaded.
* Workers list names without paths. The path is the one that was given to this object; after a restart of `sync` it is
  unknown, and the adapter is loaded anew.
* Workers say nothing of requests per adapter: an unloaded version's copy stays as long as the policy's drain allows.
* The workers' URLs come from the front end and are not trusted: http or https, nothing else, and the token is for the
  front end alone.
* Older builds load through the front end itself. A worker says which of the two it has; no other route is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn
from urllib.parse import quote, urlsplit

import msgspec

from holdfast.core.servers import Reaction, Way
from holdfast.engines.contract import Completion, EngineError, Sight
from holdfast.engines.http import DEFAULT_LIMITS, Answer, Http, Limits, unexpected
from holdfast.errors import UsageError

DISCOVERY_PORT = 8001  # where newer front ends list their workers, beside the port of their requests
WORKERS_MAX = 1000
OWN, OLD = "load_lora", "load_lora_adapter"  # as the last part of a route's name
_MISSING = ("no adapter found", "no such file", "not found", "does not exist", "os error 2", "failed to resolve")
_RIGHTS = ("permission denied", "permissionerror", "os error 13", "errno 13")
_OFF = ("dyn_lora_enabled", "lora management not available", "route not found")


class _Worker(msgspec.Struct, frozen=True):
    component: str = ""
    instance_id: int | str = 0
    system_url: str | None = None
    model: str | None = None
    routes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.component or 'worker'} {self.instance_id}"

    def has(self, route: str) -> bool:
        return any(known.rstrip("/").rpartition("/")[2] == route for known in self.routes)


class _Workers(msgspec.Struct):
    workers: list[_Worker]


class _Said(msgspec.Struct):
    """A worker's answer. Builds differ in whether an error has a status of its own."""

    status: str = "success"
    message: str | None = None
    loras: dict[str, object] | list[str] | None = None


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card]


class _Extra(msgspec.Struct):
    completion_token_ids: list[int] | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: list[int] | None = None


class _Completions(msgspec.Struct):
    choices: list[_Choice]
    nvext: _Extra | None = None


class Dynamo:
    """One Dynamo front end and its workers. See `Engine`.

    Args:
        url: the front end's base, "http://host:port".
        token: the front end's token, asked for at each call.
        limits: how long its calls may take.
        discovery_port: where the workers are listed if not beside the completions.
    """

    kind = "dynamo"
    ways = frozenset({Way.VERSIONED})

    def __init__(
        self,
        url: str,
        *,
        token: Callable[[], str | None] = lambda: None,
        limits: Limits = DEFAULT_LIMITS,
        discovery_port: int = DISCOVERY_PORT,
    ) -> None:
        self._limits = limits
        self._token = token
        self._discovery_port = discovery_port
        self._front = Http(url, token=token, timeout_s=limits.call_s)
        self.url = self._front.url
        self._lists: Http | None = None
        self._workers: dict[str, Http] = {}
        self._paths: dict[str, str] = {}

    def look(self, way: Way) -> Sight:
        workers = self._discover()
        everywhere = set.intersection(*self._names(workers).values())
        bases = tuple(dict.fromkeys(worker.model for worker in workers if worker.model))
        loaded = {name: self._paths.get(name, "") for name in sorted(everywhere) if name not in bases}
        return Sight(bases=bases, loaded=loaded, counts=False)

    def load_adapter(self, name: str, path: str) -> None:
        workers = self._discover()
        if any(name == worker.model for worker in workers):
            raise _taken(name, "the front end lists it as its model")
        lacking = [worker for worker, names in self._names(workers).items() if name not in names]
        if not lacking:
            raise EngineError(f"{name} is loaded already", Reaction.LOOK_AGAIN, code="already_loaded")
        done: list[_Worker] = []
        try:
            for worker in lacking:
                self._load(worker, name, path)
                done.append(worker)
        except EngineError:
            for worker in done:  # else a version that one worker refuses would stay on the others
                with contextlib.suppress(EngineError):
                    self._unload(worker, name)
            raise
        self._paths[name] = path

    def unload_adapter(self, name: str) -> None:
        for worker, names in self._names(self._discover()).items():
            if name in names:
                self._unload(worker, name)
        self._paths.pop(name, None)

    def pause(self, adapter: str | None = None) -> None:
        self._impossible("pausing")

    def resume(self) -> None:
        self._impossible("resuming")

    def reload_weights(self, path: str) -> None:
        self._impossible("reloading the whole model")

    def reset_cache(self) -> None:
        self._impossible("resetting the cache")

    def set_label(self, label: str) -> None:
        self._impossible("labelling the weights")

    def complete(self, model: str, prompt: str | Sequence[int], max_tokens: int) -> Completion:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "nvext": {"extra_fields": ["completion_token_ids"]},
        }
        answer = self._front.post("/v1/completions", body, timeout_s=self._limits.load_s)
        if answer.status == 404 and _is_of_a_model(answer):
            raise EngineError(f"{model} is not served: {answer.said}", Reaction.LOOK_AGAIN, code="not_loaded")
        if not answer.ok:
            raise unexpected(answer, f"a completion by {model}")
        said = answer.decode(_Completions)
        if not said.choices:
            raise unexpected(answer, f"a completion by {model} without choices")
        ids = said.nvext.completion_token_ids if said.nvext is not None else said.choices[0].token_ids
        return Completion(said.choices[0].text, tuple(ids) if ids is not None else None)

    def close(self) -> None:
        for http in (self._front, self._lists, *self._workers.values()):
            if http is not None:
                http.close()

    def _impossible(self, what: str) -> NoReturn:
        raise EngineError(
            f"{what} is not possible with Dynamo",
            Reaction.FIX_SETUP,
            code="way_not_possible",
            hint="use naming = versioned",
        )

    # Workers

    def _discover(self) -> list[_Worker]:
        """The workers, at least one, each ready and with a route to load adapters by."""
        answer = self._ask_for_workers()
        if answer.status == 404:
            raise EngineError(
                f"{answer.url} is not there: the front end does not list its workers",
                Reaction.FIX_SETUP,
                code="route_switched_off",
                hint="start front end and workers with DYN_ENABLE_RL=true",
            )
        if not answer.ok:
            raise unexpected(answer, "listing the workers")
        workers = answer.decode(_Workers).workers
        if not workers:
            raise EngineError(f"{self.url} has no worker yet", Reaction.LOOK_AGAIN, code="no_worker")
        if len(workers) > WORKERS_MAX:
            raise EngineError(
                f"{self.url} lists {len(workers)} workers, more than {WORKERS_MAX}",
                Reaction.FIX_SETUP,
                code="too_many_workers",
            )
        for worker in workers:
            self._check(worker)
        self._forget_others(workers)
        own = [worker for worker in workers if worker.system_url and worker.has(OWN)]
        return own + [worker for worker in workers if worker not in own][:1]  # the front end loads on all of its own

    def _ask_for_workers(self) -> Answer:
        """Where they are listed: on the port of the requests, or on the one beside it."""
        if self._lists is not None:
            return self._lists.get("/v1/rl/workers")
        answer = self._front.get("/v1/rl/workers")
        parts = urlsplit(self.url)
        if answer.status != 404 or parts.port == self._discovery_port or parts.hostname is None:
            return answer
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        beside = Http(
            f"{parts.scheme}://{host}:{self._discovery_port}", token=self._token, timeout_s=self._limits.call_s
        )
        try:
            other = beside.get("/v1/rl/workers")
        except EngineError:
            beside.close()
            return answer
        if not other.ok:
            beside.close()
            return answer
        self._lists = beside
        return other

    def _check(self, worker: _Worker) -> None:
        if worker.error:
            raise EngineError(f"{worker.name} is not ready: {worker.error}", Reaction.LOOK_AGAIN, code="no_worker")
        if not (worker.has(OLD) or (worker.has(OWN) and worker.system_url)):
            raise EngineError(
                f"{worker.name} lists no route {OWN} (and a system_url), nor {OLD}",
                Reaction.FIX_SETUP,
                code="route_switched_off",
                hint="start each worker with DYN_ENABLE_RL=true, DYN_LORA_ENABLED=true, DYN_SYSTEM_PORT and LoRA on",
            )

    def _forget_others(self, workers: Iterable[_Worker]) -> None:
        """Close the connections to workers that are gone."""
        for url in self._workers.keys() - {worker.system_url for worker in workers}:
            self._workers.pop(url).close()

    def _system(self, worker: _Worker) -> Http:
        url = worker.system_url or ""
        if url not in self._workers:
            try:
                self._workers[url] = Http(url, timeout_s=self._limits.call_s)
            except UsageError as error:
                raise EngineError(
                    f"the front end gives {url!r} as the address of {worker.name}",
                    Reaction.FIX_SETUP,
                    code="bad_worker_url",
                    hint="is this front end yours? DYN_SYSTEM_HOST of the worker has to be an address",
                ) from error
        return self._workers[url]

    def _names(self, workers: Iterable[_Worker]) -> dict[_Worker, set[str]]:
        """What each worker has."""
        names = {}
        for worker in workers:
            if worker.has(OWN) and worker.system_url:
                listed = _heard(self._system(worker).get("/v1/loras"), f"listing what {worker.name} has")
                names[worker] = set(listed.loras or ())
            else:
                answer = self._front.get("/v1/models")
                if not answer.ok:
                    raise unexpected(answer, "listing the models")
                names[worker] = {card.id for card in answer.decode(_Models).data}
        return names

    def _load(self, worker: _Worker, name: str, path: str) -> None:
        limit_s = self._limits.load_s
        if worker.has(OWN) and worker.system_url:
            body = {"lora_name": name, "source": {"uri": "file://" + quote(path)}}
            answer = self._system(worker).post("/v1/loras", body, timeout_s=limit_s)
        else:
            old = {"lora_name": name, "lora_path": path}
            answer = self._front.post("/v1/rl/load_lora_adapter", old, timeout_s=limit_s)
        error = _load_error(answer, worker, name, path)
        if error is not None:
            raise error

    def _unload(self, worker: _Worker, name: str) -> None:
        limit_s = self._limits.drain_s
        if worker.has(OWN) and worker.system_url:
            answer = self._system(worker).call("DELETE", f"/v1/loras/{quote(name, safe='')}", timeout_s=limit_s)
        else:
            answer = self._front.post("/v1/rl/unload_lora_adapter", {"lora_name": name}, timeout_s=limit_s)
        said = answer.said.lower()
        if _failed(answer) and (_OFF[2] in said or "not found" not in said):
            raise _switched_off(answer, worker) if _is_off(answer) else unexpected(answer, f"unloading {name}")


def _failed(answer: Answer) -> bool:
    return not answer.ok or (bool(answer.body.strip()) and answer.decode(_Said).status == "error")


def _heard(answer: Answer, what: str) -> _Said:
    if _is_off(answer):
        raise _switched_off(answer, None)
    if _failed(answer):
        raise unexpected(answer, what)
    return answer.decode(_Said)


def _is_off(answer: Answer) -> bool:
    return any(word in answer.said.lower() for word in _OFF) and (answer.status == 404 or _failed(answer))


def _is_of_a_model(answer: Answer) -> bool:
    return "model" in answer.said.lower()


def _switched_off(answer: Answer, worker: _Worker | None) -> EngineError:
    return EngineError(
        f"{answer.url} is switched off{f' on {worker.name}' if worker else ''}: {answer.said}",
        Reaction.FIX_SETUP,
        code="route_switched_off",
        hint="start each worker with DYN_LORA_ENABLED=true beside DYN_ENABLE_RL=true",
    )


def _taken(name: str, said: str) -> EngineError:
    return EngineError(
        f"{name} is the name of the base model: {said}",
        Reaction.FIX_SETUP,
        code="name_taken",
        hint="give another --adapter",
    )


def _load_error(answer: Answer, worker: _Worker, name: str, path: str) -> EngineError | None:
    if not _failed(answer):
        return None
    said, lower = answer.said, answer.said.lower()
    if _is_off(answer):
        return _switched_off(answer, worker)
    if "conflicts with the served base model" in lower:
        return _taken(name, said)
    if "conflicts with the loaded" in lower or "already" in lower:
        return EngineError(f"{name} is loaded already: {said}", Reaction.LOOK_AGAIN, code="already_loaded")
    if any(word in lower for word in _RIGHTS):
        return EngineError(
            f"{worker.name} may not read {path}: {said}",
            Reaction.FIX_SETUP,
            code="no_rights",
            hint="let the worker's user read the staging directory",
        )
    if any(word in lower for word in _MISSING):
        return EngineError(
            f"{worker.name} finds no adapter at {path}: {said}",
            Reaction.LOOK_AGAIN,
            code="path_not_visible",
            hint="does every worker see this path? --stage a directory that they see, or --path-map OURS=THEIRS",
        )
    if answer.status in (200, 400, 500):
        return EngineError(f"{worker.name} cannot use it: {said}", Reaction.NEXT_VERSION, code="refused_by_server")
    return unexpected(answer, f"loading {name}")
