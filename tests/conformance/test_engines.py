"""One suite for every binding: what the reconciler may rely on, whichever server it speaks to."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import TypeVar

import pytest

from holdfast.core.servers import Reaction, Way
from holdfast.engines.contract import Engine, EngineError
from tests.conformance.engine_benches import LIMITS, TOKEN, Bench, fake_bench

PROMPT = "Say which version you are, in a prompt that is longer than one block of the prefix cache."
WAYS = sorted(Way, key=lambda way: way.value)

T = TypeVar("T")


def have(part: T | None) -> T:
    """`part` of a bench, or skip: it cannot be brought about with this server."""
    if part is None:
        pytest.skip("cannot be brought about with this server")
    return part


def can(bench: Bench, way: Way) -> None:
    if way not in bench.engine.ways:
        pytest.skip(f"{bench.engine.kind} has no {way.value}")


class EngineSuite:
    """Derived classes bring a fixture `bench`: a fresh server with nothing loaded."""

    def test_an_empty_server_has_its_base_model_and_nothing_else(self, bench: Bench) -> None:
        for way in sorted(bench.engine.ways, key=lambda way: way.value):
            sight = bench.engine.look(way)
            assert bench.base in sight.bases
            assert sight.loaded == {}
            assert not sight.paused
            assert sight.busy == frozenset()

    def test_what_is_loaded_is_listed_with_its_path_until_it_is_unloaded(self, bench: Bench) -> None:
        paths = {"policy-1": bench.adapter(1), "policy-2": bench.adapter(2)}
        for name, path in paths.items():
            bench.engine.load_adapter(name, path)
        assert bench.engine.look(Way.VERSIONED).loaded == paths
        bench.engine.unload_adapter("policy-1")
        assert bench.engine.look(Way.VERSIONED).loaded == {"policy-2": paths["policy-2"]}

    def test_unloading_what_is_not_there_is_no_error(self, bench: Bench) -> None:
        bench.engine.unload_adapter("policy-1")
        bench.engine.load_adapter("policy-1", bench.adapter(1))
        bench.engine.unload_adapter("policy-1")
        bench.engine.unload_adapter("policy-1")
        assert bench.engine.look(Way.VERSIONED).loaded == {}

    def test_a_name_that_is_loaded_is_not_loaded_again(self, bench: Bench) -> None:
        path = bench.adapter(1)
        bench.engine.load_adapter("policy", path)
        for again in (path, bench.adapter(2)):
            with pytest.raises(EngineError) as caught:
                bench.engine.load_adapter("policy", again)
            assert (caught.value.code, caught.value.reaction) == ("already_loaded", Reaction.LOOK_AGAIN)
        assert bench.engine.look(Way.VERSIONED).loaded == {"policy": path}

    def test_a_path_that_is_not_there_may_be_there_at_the_next_look(self, bench: Bench, tmp_path: pathlib.Path) -> None:
        with pytest.raises(EngineError) as caught:
            bench.engine.load_adapter("policy", str(tmp_path / "nothing"))
        assert (caught.value.code, caught.value.reaction) == ("path_not_visible", Reaction.LOOK_AGAIN)
        assert "--path-map" in caught.value.hint
        assert bench.engine.look(Way.VERSIONED).loaded == {}

    @pytest.mark.parametrize("damage", ["truncated", "no_weights", "no_json", "rank"])
    def test_files_that_no_server_can_use_are_the_versions_fault(self, bench: Bench, damage: str) -> None:
        path = have(bench.unusable.get(damage))()
        with pytest.raises(EngineError) as caught:
            bench.engine.load_adapter("policy", path)
        assert (caught.value.code, caught.value.reaction) == ("refused_by_server", Reaction.NEXT_VERSION)
        assert bench.engine.look(Way.VERSIONED).loaded == {}
        bench.engine.load_adapter("policy", bench.adapter(1))

    def test_rights_are_a_matter_of_the_set_up(self, bench: Bench) -> None:
        forbid, path = have(bench.forbid), bench.adapter(1)
        forbid(path)
        with pytest.raises(EngineError) as caught:
            bench.engine.load_adapter("policy", path)
        assert (caught.value.code, caught.value.reaction) == ("no_rights", Reaction.FIX_SETUP)
        assert bench.engine.look(Way.VERSIONED).loaded == {}

    def test_the_base_models_name_is_taken(self, bench: Bench) -> None:
        assert bench.base in bench.engine.look(Way.VERSIONED).bases
        if bench.refuses_base:
            with pytest.raises(EngineError) as caught:
                bench.engine.load_adapter(bench.base, bench.adapter(1))
            assert (caught.value.code, caught.value.reaction) == ("name_taken", Reaction.FIX_SETUP)

    def test_a_route_that_is_switched_off_is_named_with_its_switch(self, bench: Bench) -> None:
        word = have(bench.switch_off)(Way.VERSIONED)
        path = bench.adapter(1)
        with pytest.raises(EngineError) as caught:
            bench.engine.load_adapter("policy", path)
        assert (caught.value.code, caught.value.reaction) == ("route_switched_off", Reaction.FIX_SETUP)
        assert word in caught.value.hint
        with pytest.raises(EngineError) as caught:
            bench.engine.unload_adapter("policy")
        assert caught.value.code == "route_switched_off"

    def test_development_routes_that_are_switched_off_are_named_with_their_switch(self, bench: Bench) -> None:
        can(bench, Way.STABLE)
        word = have(bench.switch_off)(Way.WEIGHTS)
        calls = (
            lambda: bench.engine.look(Way.WEIGHTS),
            lambda: bench.engine.look(Way.STABLE),
            bench.engine.pause,
            bench.engine.resume,
            bench.engine.reset_cache,
            lambda: bench.engine.set_label("1"),
            lambda: bench.engine.reload_weights("/nothing"),
        )
        for call in calls:
            with pytest.raises(EngineError) as caught:
                call()
            assert (caught.value.code, caught.value.reaction) == ("route_switched_off", Reaction.FIX_SETUP)
            assert word in caught.value.hint

    @pytest.mark.parametrize("token", [None, "wrong"])
    def test_a_wrong_token_is_a_matter_of_the_set_up(self, bench: Bench, token: str | None) -> None:
        engine = have(bench.with_token)(token)
        for call in (lambda: engine.look(Way.VERSIONED), lambda: engine.load_adapter("policy", bench.adapter(1))):
            with pytest.raises(EngineError) as caught:
                call()
            assert (caught.value.code, caught.value.reaction) == ("unauthorized", Reaction.FIX_SETUP)
            assert "--engine-token-file" in caught.value.hint

    def test_the_right_token_opens(self, bench: Bench) -> None:
        engine = have(bench.with_token)(TOKEN)
        engine.load_adapter("policy", bench.adapter(1))
        assert set(engine.look(Way.VERSIONED).loaded) == {"policy"}

    def test_a_completion_comes_from_the_adapter_that_is_named(self, bench: Bench) -> None:
        paths = {"policy-1": bench.adapter(1), "policy-2": bench.adapter(2)}
        for name, path in paths.items():
            bench.engine.load_adapter(name, path)
        said = {name: bench.engine.complete(name, PROMPT, 8) for name in paths}
        for name, path in paths.items():
            assert said[name].token_ids is not None
            assert len(said[name].token_ids or ()) == 8
            assert said[name].text
            if bench.tokens is not None:
                assert said[name].token_ids == bench.tokens(path, PROMPT, 8)
        assert said["policy-1"].token_ids != said["policy-2"].token_ids
        assert bench.engine.complete("policy-1", [5, 6, 7], 4).token_ids is not None

    def test_a_completion_by_what_is_not_there_is_looked_into_again(self, bench: Bench) -> None:
        with pytest.raises(EngineError) as caught:
            bench.engine.complete("nobody", PROMPT, 1)
        assert (caught.value.code, caught.value.reaction) == ("not_loaded", Reaction.LOOK_AGAIN)

    def test_adapters_with_requests_under_way_are_busy(self, bench: Bench) -> None:
        running = have(bench.running)
        bench.engine.load_adapter("policy-1", bench.adapter(1))
        bench.engine.load_adapter("policy-2", bench.adapter(2))
        with running("policy-1"):
            sight = bench.engine.look(Way.VERSIONED)
            assert sight.counts
            assert sight.busy == {"policy-1"}
            bench.engine.unload_adapter("policy-1")
            assert bench.engine.look(Way.VERSIONED).busy == {"policy-1"}
        assert bench.engine.look(Way.VERSIONED).busy == frozenset()

    def test_a_server_that_was_restarted_has_forgotten_everything(self, bench: Bench) -> None:
        restart = have(bench.restart)
        bench.engine.load_adapter("policy", bench.adapter(1))
        restart()
        assert bench.engine.look(Way.VERSIONED).loaded == {}
        bench.engine.load_adapter("policy", bench.adapter(2))
        assert set(bench.engine.look(Way.VERSIONED).loaded) == {"policy"}

    @pytest.mark.parametrize("way", WAYS)
    def test_pausing_and_resuming_twice_is_as_once(self, bench: Bench, way: Way) -> None:
        can(bench, way)
        if way is Way.VERSIONED:
            pytest.skip("nothing is paused for it")
        for wanted, call in ((True, bench.engine.pause), (False, bench.engine.resume)):
            for _ in range(2):
                call()
                assert bench.engine.look(way).paused is wanted

    def test_a_pause_is_over_once_the_last_request_is(self, bench: Bench) -> None:
        can(bench, Way.STABLE)
        running = have(bench.running)
        bench.engine.load_adapter("policy", bench.adapter(1))
        order: list[str] = []

        def pause() -> None:
            bench.engine.pause()
            order.append("paused")

        with running("policy"):
            thread = threading.Thread(target=pause)
            thread.start()
            for _ in range(20):  # as much time as it needs to be wrong; what is right does not depend on it
                bench.engine.look(Way.VERSIONED)
            order.append("the request ends")
        thread.join(LIMITS.drain_s)
        assert order == ["the request ends", "paused"]
        bench.engine.resume()

    def test_a_stable_name_is_swapped_while_paused(self, bench: Bench) -> None:
        can(bench, Way.STABLE)
        old, new = bench.adapter(1), bench.adapter(2)
        bench.engine.load_adapter("policy", old)
        before = bench.engine.complete("policy", PROMPT, 8)
        bench.engine.pause("policy")
        bench.engine.unload_adapter("policy")
        bench.engine.load_adapter("policy", new)
        assert bench.engine.look(Way.STABLE).paused
        bench.engine.resume()
        assert bench.engine.look(Way.STABLE).loaded == {"policy": new}
        after = bench.engine.complete("policy", PROMPT, 8)
        assert after.token_ids != before.token_ids
        if bench.tokens is not None:
            assert after.token_ids == bench.tokens(new, PROMPT, 8)

    def test_full_weights_are_replaced_and_labelled(self, bench: Bench) -> None:
        can(bench, Way.WEIGHTS)
        checkpoint = have(bench.checkpoint)
        engine = bench.engine
        for seed in (1, 2):
            path = checkpoint(seed)
            self._update(engine, path, f"version-{seed}")
            sight = engine.look(Way.WEIGHTS)
            assert sight.label == f"version-{seed}"
            assert not sight.paused
            said = engine.complete(sight.bases[0], PROMPT, 8)
            if bench.tokens is not None:
                assert said.token_ids == bench.tokens(path, PROMPT, 8)

    def _update(self, engine: Engine, path: str, label: str) -> None:
        """In the order of the reconciler."""
        engine.pause()
        assert engine.look(Way.WEIGHTS).paused
        engine.set_label("holdfast-updating")
        engine.reload_weights(path)
        engine.reset_cache()
        engine.set_label(label)
        engine.resume()

    def test_a_failed_reload_is_a_quarantine(self, bench: Bench, tmp_path: pathlib.Path) -> None:
        can(bench, Way.WEIGHTS)
        have(bench.checkpoint)
        empty = tmp_path / "empty"
        empty.mkdir()
        bench.engine.pause()
        bench.engine.set_label("holdfast-updating")
        with pytest.raises(EngineError) as caught:
            bench.engine.reload_weights(str(empty))
        assert (caught.value.code, caught.value.reaction) == ("reload_failed", Reaction.QUARANTINE)
        sight = bench.engine.look(Way.WEIGHTS)
        assert (sight.paused, sight.label) == (True, "holdfast-updating")

    def test_many_threads_may_speak_at_once(self, bench: Bench) -> None:
        """The driver looks while a canary or a hook is under way."""
        bench.engine.load_adapter("policy", bench.adapter(1))
        wrong: list[BaseException] = []

        def speak() -> None:
            try:
                for _ in range(3):
                    assert set(bench.engine.look(Way.VERSIONED).loaded) == {"policy"}
                    bench.engine.complete("policy", PROMPT, 2)
            except (EngineError, AssertionError) as error:
                wrong.append(error)

        threads = [threading.Thread(target=speak) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMITS.load_s)
        assert wrong == []


class TestFakes(EngineSuite):
    @pytest.fixture(params=["vllm", "sglang", "dynamo", "dynamo-old"])
    def bench(self, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Bench]:
        with contextlib.ExitStack() as stack:
            yield fake_bench(request.param, tmp_path, stack)


def test_an_adapter_that_was_evicted_and_is_gone_kills_vllm(tmp_path: pathlib.Path) -> None:
    """The hazard that copies are kept for: the fake has it, so that tests of what is kept can fail."""
    with contextlib.ExitStack() as stack:
        bench = fake_bench("vllm", tmp_path, stack)
        paths = [bench.adapter(seed) for seed in range(3)]
        for number, path in enumerate(paths):
            bench.engine.load_adapter(f"policy-{number}", path)
        bench.engine.complete("policy-0", PROMPT, 1)
        shutil.rmtree(paths[1])
        with pytest.raises(EngineError) as caught:
            bench.engine.complete("policy-1", PROMPT, 1)
        assert (caught.value.code, caught.value.reaction) == ("unreachable", Reaction.LOOK_AGAIN)
        with pytest.raises(EngineError, match="cannot be reached"):
            bench.engine.look(Way.VERSIONED)
