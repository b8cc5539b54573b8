"""What only SGLang or only Dynamo needs of its binding."""

from __future__ import annotations

import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from holdfast.core.servers import Reaction, Way
from holdfast.engines.contract import EngineError
from holdfast.engines.dynamo import Dynamo
from holdfast.engines.http import BODY_BYTES_MAX, Limits
from holdfast.engines.sglang import SGLang
from holdfast.engines.vllm import VLLM
from holdfast.testing.engines import (
    FakeDynamo,
    FakeServer,
    FakeSGLang,
    FakeVLLM,
    Flood,
    Reply,
    adapter_files,
    write_adapter,
)

PATIENCE_S = 60.0
LIMITS = Limits(call_s=30.0, load_s=30.0, drain_s=30.0)


def _fails(call: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        call()
    return caught.value


class Meanwhile:
    """`act` in a thread."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._wrong: list[EngineError] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._act()
        except EngineError as error:
            self._wrong.append(error)

    def done(self) -> None:
        """Once it is over; its error is raised here."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self._wrong:
            raise self._wrong[0]


def _wait(server: FakeServer, true: Callable[[], bool]) -> None:
    with server.changed:
        assert server.changed.wait_for(true, PATIENCE_S)


class TestVLLM:
    def test_metrics_that_have_grown_too_long_to_be_read_do_not_hide_what_is_served(
        self, tmp_path: pathlib.Path
    ) -> None:
        with FakeVLLM() as server, contextlib.closing(VLLM(server.url, limits=LIMITS)) as engine:
            engine.load_adapter("policy-1", str(write_adapter(tmp_path / "1", 1)))
            server.fail("GET /metrics", Flood(BODY_BYTES_MAX + 2**17), times=None)
            sight = engine.look(Way.VERSIONED)
        assert set(sight.loaded) == {"policy-1"}
        assert not sight.counts
        assert sight.busy == frozenset()


class TestSGLang:
    @pytest.fixture
    def server(self) -> Iterator[FakeSGLang]:
        with FakeSGLang() as server:
            yield server

    @pytest.fixture
    def engine(self, server: FakeSGLang) -> Iterator[SGLang]:
        with contextlib.closing(SGLang(server.url, limits=LIMITS)) as engine:
            yield engine

    def test_a_stable_name_is_not_offered(self, engine: SGLang) -> None:
        assert engine.ways == {Way.VERSIONED, Way.WEIGHTS}

    def test_an_adapter_is_busy_from_the_request_to_unload_it_until_its_last_request_is_done(
        self, server: FakeSGLang, engine: SGLang, tmp_path: pathlib.Path
    ) -> None:
        engine.load_adapter("policy-1", str(write_adapter(tmp_path / "1", 1)))
        with server.request("policy-1"):
            unloading = Meanwhile(lambda: engine.unload_adapter("policy-1"))
            _wait(server, lambda: server.unloading)
            sight = engine.look(Way.VERSIONED)
            assert sight.counts
            assert sight.loaded == {}
            assert sight.busy == {"policy-1"}
        unloading.done()
        assert engine.look(Way.VERSIONED).busy == frozenset()

    def test_an_unload_that_was_not_answered_leaves_its_adapter_busy_until_it_is_known_to_be_gone(
        self, server: FakeSGLang, tmp_path: pathlib.Path
    ) -> None:
        hasty = Limits(call_s=30.0, load_s=30.0, drain_s=0.5)
        with contextlib.closing(SGLang(server.url, limits=hasty)) as engine:
            engine.load_adapter("policy-1", str(write_adapter(tmp_path / "1", 1)))
            with server.request("policy-1"):
                error = _fails(lambda: engine.unload_adapter("policy-1"))
                assert (error.code, error.reaction) == ("too_slow", Reaction.LOOK_AGAIN)
                _wait(server, lambda: server.unloading)
                assert engine.look(Way.VERSIONED).busy == {"policy-1"}
            _wait(server, lambda: not server.unloading)
            engine.unload_adapter("policy-1")
            assert engine.look(Way.VERSIONED).busy == frozenset()

    def test_an_adapter_that_a_late_request_brought_back_is_listed_and_can_be_unloaded_again(
        self, server: FakeSGLang, engine: SGLang, tmp_path: pathlib.Path
    ) -> None:
        path = str(write_adapter(tmp_path / "1", 1))
        engine.load_adapter("policy-1", path)
        engine.unload_adapter("policy-1")
        engine.complete("policy-1", "hello", 1)
        assert engine.look(Way.VERSIONED).loaded == {"policy-1": path}
        engine.unload_adapter("policy-1")
        assert engine.look(Way.VERSIONED).loaded == {}

    def test_new_weights_wait_for_running_requests_and_answer_none_of_them(
        self, server: FakeSGLang, engine: SGLang, tmp_path: pathlib.Path
    ) -> None:
        path = _checkpoint(tmp_path)
        old = server.weights
        engine.pause()
        with server.request(server.base):
            reloading = Meanwhile(lambda: engine.reload_weights(path))
            _wait(server, lambda: server.updating)
            assert server.weights == old
        reloading.done()
        engine.resume()
        assert engine.complete(path, "hello", 4).token_ids == server.expected(path, "hello", 4)
        assert all(request.json.get("abort_all_requests") is False for request in _posts(server, "/update_weights"))

    def test_after_a_failed_reload_requests_are_held_back(
        self, server: FakeSGLang, engine: SGLang, tmp_path: pathlib.Path
    ) -> None:
        engine.pause()
        assert _fails(lambda: engine.reload_weights(str(tmp_path))).reaction is Reaction.QUARANTINE
        assert server.paused == "in_place"
        engine.resume()
        assert server.paused is None

    def test_a_server_without_the_route_was_not_touched(self, server: FakeSGLang, engine: SGLang) -> None:
        server.fail("POST /update_weights_from_disk", Reply.of({"detail": "Not Found"}, 404))
        assert _fails(lambda: engine.reload_weights("/nothing")).reaction is Reaction.FIX_SETUP
        assert server.paused is None

    def test_an_older_server_is_asked_by_the_older_name(self, server: FakeSGLang, engine: SGLang) -> None:
        server.fail("GET /model_info", Reply.of({"detail": "Not Found"}, 404))
        server.fail("GET /get_model_info", Reply.of({"model_path": "/models/base", "weight_version": "7"}))
        assert engine.look(Way.WEIGHTS).label == "7"

    def test_success_is_what_the_body_says(self, server: FakeSGLang, engine: SGLang) -> None:
        server.fail("POST /load_lora_adapter", Reply.of({"success": False, "error_message": "rank 1 failed"}))
        assert "rank 1 failed" in str(_fails(lambda: engine.load_adapter("policy", "/nothing")))


def _checkpoint(path: pathlib.Path) -> str:
    directory = path / "checkpoint"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(adapter_files(1)["adapter_model.safetensors"])
    return str(directory)


def _posts(server: FakeServer, path: str) -> list[object]:
    found = [request for request in server.log if request.method == "POST" and request.path.startswith(path)]
    assert found
    return list(found)


class TestDynamo:
    @pytest.fixture
    def server(self) -> Iterator[FakeDynamo]:
        with FakeDynamo(api_key="secret") as server:
            yield server

    @pytest.fixture
    def engine(self, server: FakeDynamo) -> Iterator[Dynamo]:
        with contextlib.closing(Dynamo(server.url, token=lambda: "secret", limits=LIMITS)) as engine:
            yield engine

    def test_only_fresh_names_are_offered(self, engine: Dynamo) -> None:
        assert engine.ways == {Way.VERSIONED}
        for call in (engine.pause, engine.resume, engine.reset_cache, lambda: engine.set_label("1")):
            error = _fails(call)
            assert (error.code, error.reaction) == ("way_not_possible", Reaction.FIX_SETUP)

    def test_a_worker_that_joins_is_loaded_too(
        self, server: FakeDynamo, engine: Dynamo, tmp_path: pathlib.Path
    ) -> None:
        path = str(write_adapter(tmp_path / "1", 1))
        engine.load_adapter("policy-1", path)
        worker = server.join()
        assert engine.look(Way.VERSIONED).loaded == {}
        before = [len(other.log) for other in server.workers[:2]]
        engine.load_adapter("policy-1", path)
        assert engine.look(Way.VERSIONED).loaded == {"policy-1": path}
        assert worker.loaded == {"policy-1": path}
        loads = [other.routes()[at:].count("POST /v1/loras") for other, at in zip(server.workers, before, strict=False)]
        assert loads == [0, 0]

    def test_a_version_that_one_worker_refuses_is_left_on_none(
        self, server: FakeDynamo, engine: Dynamo, tmp_path: pathlib.Path
    ) -> None:
        refused = Reply.of({"status": "error", "message": "LoRA rank 64 is greater than max_lora_rank 16."}, 500)
        server.workers[1].fail("POST /v1/loras", refused)
        error = _fails(lambda: engine.load_adapter("policy-1", str(write_adapter(tmp_path / "1", 1))))
        assert (error.code, error.reaction) == ("refused_by_server", Reaction.NEXT_VERSION)
        assert [worker.loaded for worker in server.workers] == [{}, {}]

    def test_an_error_with_status_200_is_an_error(
        self, server: FakeDynamo, engine: Dynamo, tmp_path: pathlib.Path
    ) -> None:
        server.workers[0].fail("POST /v1/loras", Reply.of({"status": "error", "message": "out of slots"}))
        error = _fails(lambda: engine.load_adapter("policy-1", str(write_adapter(tmp_path / "1", 1))))
        assert error.code == "refused_by_server"

    def test_after_a_restart_of_ours_the_path_is_unknown(
        self, server: FakeDynamo, engine: Dynamo, tmp_path: pathlib.Path
    ) -> None:
        engine.load_adapter("policy-1", str(write_adapter(tmp_path / "1", 1)))
        with contextlib.closing(Dynamo(server.url, token=lambda: "secret", limits=LIMITS)) as other:
            assert other.look(Way.VERSIONED).loaded == {"policy-1": ""}

    def test_requests_are_not_counted(self, engine: Dynamo) -> None:
        assert not engine.look(Way.VERSIONED).counts

    def test_no_worker_yet(self, server: FakeDynamo, engine: Dynamo) -> None:
        server.fail("GET /v1/rl/workers", Reply.of({"namespace": "dynamo", "workers": []}))
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("no_worker", Reaction.LOOK_AGAIN)

    def test_a_worker_that_is_not_ready(self, server: FakeDynamo, engine: Dynamo) -> None:
        self._list(server, error="worker discovery timed out after 30s")
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("no_worker", Reaction.LOOK_AGAIN)
        assert "timed out" in str(error)

    @pytest.mark.parametrize("listed", [{"routes": []}, {"routes": ["pause"]}, {"system_url": None}])
    def test_a_worker_without_a_route_to_load_by(
        self, server: FakeDynamo, engine: Dynamo, listed: dict[str, object]
    ) -> None:
        self._list(server, **listed)
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("route_switched_off", Reaction.FIX_SETUP)
        assert "load_lora" in str(error)
        assert "DYN_ENABLE_RL=true" in error.hint

    def test_a_worker_with_lora_off(self, server: FakeDynamo, engine: Dynamo) -> None:
        server.lora_enabled = False
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("route_switched_off", Reaction.FIX_SETUP)
        assert "DYN_LORA_ENABLED=true" in error.hint

    @pytest.mark.parametrize("url", ["file:///etc", "ftp://worker:1", "http://u:p@worker", "worker:8081", "http://"])
    def test_a_workers_address_is_not_trusted(self, server: FakeDynamo, engine: Dynamo, url: str) -> None:
        self._list(server, system_url=url)
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("bad_worker_url", Reaction.FIX_SETUP)

    def test_the_token_is_for_the_front_end_alone(
        self, server: FakeDynamo, engine: Dynamo, tmp_path: pathlib.Path
    ) -> None:
        engine.load_adapter("policy-1", str(write_adapter(tmp_path / "1", 1)))
        engine.unload_adapter("policy-1")
        assert all("authorization" in request.headers for request in server.log)
        for worker in server.workers:
            assert worker.log
            assert not any("authorization" in request.headers for request in worker.log)

    def test_a_worker_that_is_away_makes_the_look_fail(self, server: FakeDynamo, engine: Dynamo) -> None:
        server.workers[1].die()
        error = _fails(lambda: engine.look(Way.VERSIONED))
        assert (error.code, error.reaction) == ("unreachable", Reaction.LOOK_AGAIN)

    def test_names_are_escaped(self, server: FakeDynamo, engine: Dynamo, tmp_path: pathlib.Path) -> None:
        path = str(write_adapter(tmp_path / "a b#c?d%20", 1))
        engine.load_adapter("team/policy 1?", path)
        assert engine.look(Way.VERSIONED).loaded == {"team/policy 1?": path}
        engine.unload_adapter("team/policy 1?")
        assert engine.look(Way.VERSIONED).loaded == {}

    def test_workers_that_are_listed_on_another_port_are_found(self, server: FakeDynamo) -> None:
        with FakeServer() as front:
            port = int(server.url.rpartition(":")[2])
            engine = Dynamo(front.url, token=lambda: "secret", limits=LIMITS, discovery_port=port)
            with contextlib.closing(engine):
                for _ in range(2):
                    assert engine.look(Way.VERSIONED).bases == ("base",)
            assert front.routes() == ["GET /v1/rl/workers"]

    def _list(self, server: FakeDynamo, **changes: object) -> None:
        worker = {
            "component": "backend",
            "instance_id": 7,
            "system_url": server.workers[0].url,
            "model": "base",
            "routes": ["update/load_lora"],
            **changes,
        }
        server.fail("GET /v1/rl/workers", Reply.of({"namespace": "dynamo", "workers": [worker]}), times=None)
