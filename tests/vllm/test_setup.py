"""What is wrong with a set-up is told in one line, which says what to set."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.support.tiny import make_base
from tests.vllm.process import SyncProcess
from tests.vllm.scene import Scene
from tests.vllm.server import VLLMServer, free_port

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def closed(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """A server as vLLM starts by itself: neither the LoRA nor the development routes are switched on."""
    server = VLLMServer(base, tmp_path_factory.mktemp("closed"), switched_on={})
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_routes_that_are_switched_off(scene: Scene, closed: VLLMServer) -> None:
    scene.publish(scene.publisher(), 1)
    _told(scene.sync(url=closed.url), closed.url, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")


def test_development_routes_that_are_switched_off(scene: Scene, closed: VLLMServer) -> None:
    scene.publish_full(scene.publisher(), 1, seed=1)
    _told(scene.sync("--weights", "full", url=closed.url), closed.url, "VLLM_SERVER_DEV_MODE=1")


def test_a_wrong_port(scene: Scene) -> None:
    scene.publish(scene.publisher(), 1)
    url = f"http://127.0.0.1:{free_port()}"
    _told(scene.sync(url=url), url, "refused")


def test_a_wrong_base_model(scene: Scene, tmp_path: pathlib.Path) -> None:
    """The adapter says what it was made for; if it does not, the server refuses it."""
    config = scene.adapters.config() | {"base_model_name_or_path": str(make_base(tmp_path / "another", 5))}
    publisher = scene.publisher()
    publisher.publish_adapter(1, scene.adapters.tensors(1), config)
    _told(scene.sync(), "another", "tiny", "--base-model")


def test_a_staging_directory_that_the_server_may_not_read(scene: Scene) -> None:
    """The directory is shut while the first load is on its way, and opened again later: then it goes on by itself."""
    tap = scene.tap()
    tap.stop_at(1, obeyed=False)
    version = scene.publish(scene.publisher(), 1)
    sync = scene.sync(url=tap.url)
    sync.until(tap.reached.is_set, "it never loads")
    mode = scene.stage.stat().st_mode
    scene.stage.chmod(0)
    try:
        tap.let_go()
        _told(sync, "may not read", "let the server's user read")
    finally:
        scene.stage.chmod(mode)
    sync.until_serves(version)


def _told(sync: SyncProcess, *words: str) -> None:
    """Wait until one line of what it says has all these words; what it serves is said there too."""
    sync.until(
        lambda: any(all(word in line for word in words) for line in sync.said().splitlines()),
        f"no line has {words}:\n{sync.said()}",
    )
    sync.until(lambda: all(word in sync.serves()["reason"] for word in words), str(sync.serves()))
    assert sync.serves()["version"] is None
