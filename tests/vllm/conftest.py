"""One vLLM server for all tests of this folder, as new for each; channels, sync processes and clients for one test."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.tiny import make_base
from tests.vllm.scene import Scene
from tests.vllm.server import DEVELOPMENT, LORA_ROUTES, VLLMServer
from tests.vllm.weights import Adapters, Checkpoints


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny-base", 0)


@pytest.fixture(scope="session")
def adapters(base: pathlib.Path) -> Adapters:
    return Adapters(base)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def started(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    server = VLLMServer(base, tmp_path_factory.mktemp("vllm"), switched_on=LORA_ROUTES | DEVELOPMENT)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(started: VLLMServer) -> VLLMServer:
    """A server with every route on, two adapters at once, and no adapter yet."""
    started.clean()
    return started


@pytest.fixture
def scene(tmp_path: pathlib.Path, server: VLLMServer, adapters: Adapters, checkpoints: Checkpoints) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(tmp_path, stack, server, adapters, checkpoints)
