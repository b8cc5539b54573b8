"""What the engine suite needs of a server, and the fake servers as that.

A real server is tested by the same suite: give a class derived from `EngineSuite` a fixture `bench` that returns a
`Bench` of its own. What cannot be brought about there stays None, and its test is skipped.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.core.servers import Way
from holdfast.engines.contract import Engine
from holdfast.engines.dynamo import Dynamo
from holdfast.engines.http import Limits
from holdfast.engines.sglang import SGLang
from holdfast.engines.vllm import VLLM
from holdfast.testing.engines import FakeDynamo, FakeServer, FakeSGLang, FakeVLLM, Reply, adapter_files, write_adapter

TOKEN = "right"
LIMITS = Limits(call_s=30.0, load_s=30.0, drain_s=30.0)

Tokens = tuple[int, ...]
Running = Callable[[str], contextlib.AbstractContextManager[None]]


@dataclass
class Bench:
    """A running server with nothing loaded.

    Attributes:
        engine: the binding to it.
        base: what its base model is called.
        adapter: writes a usable adapter for a seed, and says where.
        unusable: kind of damage -> writes an adapter that no server can use.
        checkpoint: writes a whole model for a seed.
        tokens: what a server says that serves what lies at a path: (path, prompt, count).
        running: makes a request of a model run as long as a block.
        forbid: takes the server's right to read what is at a path.
        switch_off: takes the routes away that a way needs; returns a word that the hint has to name.
        with_token: a binding whose token is this, to a server that wants TOKEN.
        restart: the server comes up anew at the same address.
        refuses_base: it refuses an adapter under the base model's name by itself.
    """

    engine: Engine
    base: str
    adapter: Callable[[int], str]
    unusable: dict[str, Callable[[], str]]
    checkpoint: Callable[[int], str] | None = None
    tokens: Callable[[str, str, int], Tokens] | None = None
    running: Running | None = None
    forbid: Callable[[str], None] | None = None
    switch_off: Callable[[Way], str] | None = None
    with_token: Callable[[str | None], Engine] | None = None
    restart: Callable[[], None] | None = None
    refuses_base: bool = True


def fake_bench(kind: str, path: pathlib.Path, stack: contextlib.ExitStack) -> Bench:
    return {"vllm": _vllm, "sglang": _sglang, "dynamo": _dynamo, "dynamo-old": _dynamo_old}[kind](path, stack)


def _vllm(path: pathlib.Path, stack: contextlib.ExitStack) -> Bench:
    server = stack.enter_context(FakeVLLM())

    def off(way: Way) -> str:
        server.runtime_lora = server.dev_mode = False
        return "VLLM_ALLOW_RUNTIME_LORA_UPDATING" if way is Way.VERSIONED else "VLLM_SERVER_DEV_MODE"

    def forbid(at: str) -> None:
        said = {"error": {"message": f"PermissionError: [Errno 13] Permission denied: '{at}'", "code": 500}}
        server.fail("POST /v1/load_lora_adapter", Reply.of(said, 500))

    return Bench(
        engine=_closing(stack, VLLM(server.url, limits=LIMITS)),
        base=server.base,
        **_files(path),
        checkpoint=lambda seed: _checkpoint(path, seed),
        tokens=lambda at, prompt, count: server.expected(at, prompt, count),
        running=server.request,
        forbid=forbid,
        switch_off=off,
        with_token=lambda token: _with_token(stack, FakeVLLM(api_key=TOKEN), VLLM, token),
        restart=server.restart,
    )


def _sglang(path: pathlib.Path, stack: contextlib.ExitStack) -> Bench:
    server = stack.enter_context(FakeSGLang())

    def off(way: Way) -> str:
        server.enable_lora = False
        return "--enable-lora"

    def forbid(at: str) -> None:
        said = {"success": False, "error_message": f"[Errno 13] Permission denied: '{at}/adapter_config.json'"}
        server.fail("POST /load_lora_adapter", Reply.of(said, 400))

    return Bench(
        engine=_closing(stack, SGLang(server.url, limits=LIMITS)),
        base=server.base,
        **_files(path),
        checkpoint=lambda seed: _checkpoint(path, seed),
        tokens=lambda at, prompt, count: server.expected(at, prompt, count),
        forbid=forbid,
        switch_off=off,
        with_token=lambda token: _with_token(stack, FakeSGLang(api_key=TOKEN), SGLang, token),
        restart=server.restart,
        refuses_base=False,
    )


def _dynamo(path: pathlib.Path, stack: contextlib.ExitStack, *, old: bool = False) -> Bench:
    server = stack.enter_context(FakeDynamo(old=old))

    def off(way: Way) -> str:
        server.enable_rl = False
        return "DYN_ENABLE_RL=true"

    def forbid(at: str) -> None:
        said = {"status": "error", "message": f"failed to inspect LoRA path: Permission denied (os error 13): {at}"}
        where, route = (server, "POST /v1/rl/load_lora_adapter") if old else (server.workers[0], "POST /v1/loras")
        where.fail(route, Reply.of(said, 500))

    return Bench(
        engine=_closing(stack, Dynamo(server.url, limits=LIMITS)),
        base=server.base,
        **_files(path),
        tokens=lambda at, prompt, count: server.expected(at, prompt, count),
        forbid=forbid,
        switch_off=off,
        with_token=lambda token: _with_token(stack, FakeDynamo(api_key=TOKEN), Dynamo, token),
        restart=server.restart,
    )


def _dynamo_old(path: pathlib.Path, stack: contextlib.ExitStack) -> Bench:
    return _dynamo(path, stack, old=True)


def _closing(stack: contextlib.ExitStack, engine: Engine) -> Engine:
    stack.callback(engine.close)
    return engine


def _with_token(
    stack: contextlib.ExitStack, server: FakeServer, binding: Callable[..., Engine], token: str | None
) -> Engine:
    stack.enter_context(server)
    return _closing(stack, binding(server.url, token=lambda: token, limits=LIMITS))


def _files(path: pathlib.Path) -> dict[str, object]:
    def adapter(seed: int) -> str:
        return str(write_adapter(path / f"adapter {seed}", seed))

    def truncated() -> str:
        directory = write_adapter(path / "truncated", 1)
        weights = directory / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        return str(directory)

    def no_weights() -> str:
        directory = write_adapter(path / "no_weights", 1)
        (directory / "adapter_model.safetensors").unlink()
        return str(directory)

    def no_json() -> str:
        directory = write_adapter(path / "no_json", 1)
        (directory / "adapter_config.json").write_text('{"r": 8,')
        return str(directory)

    def rank() -> str:
        return str(write_adapter(path / "rank", 1, rank=4096))

    damage = {"truncated": truncated, "no_weights": no_weights, "no_json": no_json, "rank": rank}
    return {"adapter": adapter, "unusable": damage}


def _checkpoint(path: pathlib.Path, seed: int) -> str:
    directory = path / f"checkpoint-{seed}"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(adapter_files(seed)["adapter_model.safetensors"])
    return str(directory)
