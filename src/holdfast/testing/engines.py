"""Fake inference servers: real HTTP on the loopback interface, no model behind it.

    with FakeVLLM() as server:
        engine = VLLM(server.url)
        server.fail("POST /v1/load_lora_adapter", Drop(done=True))   # the answer of the next load is lost

They are built from the servers' documented or measured requests and bodies. Their completions tell by their tokens
which bytes they come from (`expected`), so that an answer of a wrong version is seen.
"""

from __future__ import annotations

from holdfast.testing.adapters import adapter_files, write_adapter
from holdfast.testing.dynamo import FakeDynamo, FakeDynamoWorker
from holdfast.testing.server import Die, Drip, Drop, FakeServer, Flood, Half, Hang, Raw, Reply, Request
from holdfast.testing.sglang import FakeSGLang
from holdfast.testing.vllm import FakeVLLM

__all__ = [
    "Die",
    "Drip",
    "Drop",
    "FakeDynamo",
    "FakeDynamoWorker",
    "FakeSGLang",
    "FakeServer",
    "FakeVLLM",
    "Flood",
    "Half",
    "Hang",
    "Raw",
    "Reply",
    "Request",
    "adapter_files",
    "write_adapter",
]
