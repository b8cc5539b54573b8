"""The small server passes the suite that every engine's binding passes, by vLLM's binding."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer

from holdfast.engines.vllm import VLLM
from tests.conformance.engine_benches import LIMITS, TOKEN, Bench
from tests.conformance.test_engines import EngineSuite
from tests.serve.conftest import Reference, Tiny
from tests.support.channels import until
from tests.support.serving import Client, serving


class _Files:
    """Adapters and checkpoints of the tiny model, by the seeds that the suite gives."""

    def __init__(self, tiny: Tiny, path: pathlib.Path) -> None:
        self._tiny = tiny
        self._path = path

    def adapter(self, seed: int) -> str:
        return str(self._tiny.adapters[seed - 1])

    def checkpoint(self, seed: int) -> str:
        return str((self._tiny.base2, self._tiny.base)[seed - 1])

    def truncated(self) -> str:
        path = self._copy("truncated")
        weights = path / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        return str(path)

    def no_weights(self) -> str:
        path = self._copy("no_weights")
        (path / "adapter_model.safetensors").unlink()
        return str(path)

    def no_json(self) -> str:
        path = self._copy("no_json")
        (path / "adapter_config.json").write_text('{"r": 8,')
        return str(path)

    def rank(self) -> str:
        return str(self._tiny.large)

    def _copy(self, name: str) -> pathlib.Path:
        return shutil.copytree(self._tiny.adapters[0], self._path / name)


@contextlib.contextmanager
def _running(client: Client, model: str) -> Iterator[None]:
    """A request that would take many times as long as any test, and ends when its client goes away."""
    asked = {"model": model, "prompt": [40], "ignore_eos": True, "max_tokens": 500, "n": 32, "seed": 1}
    with client.stream("/v1/completions", asked) as events:
        next(events)
        yield
    until(lambda: client.count("vllm:num_requests_running") == 0)


class TestServe(EngineSuite):
    @pytest.fixture
    def bench(self, tiny: Tiny, tmp_path: pathlib.Path, reference: Reference) -> Iterator[Bench]:
        encode = AutoTokenizer.from_pretrained(tiny.base).encode
        files = _Files(tiny, tmp_path)

        def tokens(at: str, prompt: str, count: int) -> tuple[int, ...]:
            path = pathlib.Path(at)
            base, adapter = (path, None) if path in (tiny.base, tiny.base2) else (tiny.base, path)
            return tuple(reference(base, adapter, encode(prompt), count))

        with contextlib.ExitStack() as stack:

            def bind(**options: Any) -> tuple[Client, VLLM]:
                name = {"served_model_name": "tiny", "max_lora_rank": 8}
                client, _ = stack.enter_context(serving(tiny.base, **name, **options))
                engine = VLLM(client.url, token=lambda: options.get("api_key"), limits=LIMITS)
                stack.callback(engine.close)
                return client, engine

            def with_token(token: str | None) -> VLLM:
                client, _ = bind(api_key=TOKEN)
                engine = VLLM(client.url, token=lambda: token, limits=LIMITS)
                stack.callback(engine.close)
                return engine

            client, engine = bind()
            yield Bench(
                engine=engine,
                base="tiny",
                adapter=files.adapter,
                unusable={kind: getattr(files, kind) for kind in ("truncated", "no_weights", "no_json", "rank")},
                checkpoint=files.checkpoint,
                tokens=tokens,
                running=lambda model: _running(client, model),
                with_token=with_token,
            )
