"""Versions on their way into servers: what is served, said and kept."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import holdfast
from holdfast.engines.open import open_engine
from holdfast.sync.config import ChannelConfig
from holdfast.testing.server import Reply
from holdfast.testing.vllm import FakeVLLM
from tests.support.channels import until
from tests.support.syncing import Scene

WAYS = {
    "versioned": {},
    "stable": {"naming": "stable"},
    "weights": {"weights": "full"},
}


@pytest.mark.parametrize("way", WAYS)
def test_I1_each_version_is_served_whole_and_the_label_says_which(scene: Scene, way: str) -> None:
    server = scene.server()
    publisher = scene.publisher()
    sync = scene.sync(server, channel=WAYS[way])
    for step in (1, 2, 3):
        version = scene.publish(publisher, step, full=way == "weights")
        said = sync.until_serves(version)
        assert (said["step"], said["desired"]) == (step, str(version))
        path = scene.stage / "policy" / "sync" / "versions" / str(version)
        assert _tokens(server, said["model"]) == server.expected(str(path), "x", 4)
        scene.until_acknowledged(version)
    until(lambda: scene.copies() == {str(version)}, "the copies of older versions go")
    assert scene.consumer().holds == (), "the channel's versions are held only while they are copied"
    assert server.deaths == []


def _tokens(server: FakeVLLM, model: str) -> tuple[int, ...] | None:
    engine = open_engine("vllm", server.url)
    try:
        return engine.complete(model, "x", 4).token_ids
    finally:
        engine.close()


def test_one_copy_feeds_all_servers_of_the_host(scene: Scene) -> None:
    servers = [scene.server() for _ in range(4)]
    publisher = scene.publisher()
    sync = scene.sync(*servers)
    version = scene.publish(publisher, 1)
    for index in range(4):
        sync.until_serves(version, server=index)
    assert len({path for server in servers for path in server.loaded.values()}) == 1
    assert scene.copies() == {str(version)}


def test_what_is_acknowledged_is_served_by_all(scene: Scene) -> None:
    servers = [scene.server(), scene.server()]
    publisher = scene.publisher()
    servers[1].fail("POST /v1/load_lora_adapter", Reply.of({"error": {"message": "busy"}}, 503), None)
    sync = scene.sync(*servers)
    version = scene.publish(publisher, 1)
    sync.until_serves(version, server=0)
    assert scene.consumer().acknowledged is None
    servers[1].heal()
    sync.until_serves(version, server=1)
    scene.until_acknowledged(version)


def test_a_server_that_was_restarted_is_filled_again_without_a_new_publish(scene: Scene) -> None:
    server = scene.server()
    sync = scene.sync(server)
    version = scene.publish(scene.publisher(), 1)
    sync.until_serves(version)
    server.restart()
    until(lambda: list(server.loaded) == [f"policy-{version}"])
    sync.until_serves(version)


def test_a_server_that_comes_late_is_waited_for(scene: Scene) -> None:
    server = scene.server()
    server.die("not up yet")
    sync = scene.sync(server)
    version = scene.publish(scene.publisher(), 1)
    said = sync.until_reason("cannot be reached")
    assert (said["state"], said["version"]) == ("gone", None)
    assert sync.ask("/healthz")[0] == 503
    server.restart()
    sync.until_serves(version)
    assert sync.ask("/healthz") == (200, {"status": "ok", "problems": {}})


def test_a_version_that_the_server_cannot_use_is_refused_once_and_the_run_goes_on(scene: Scene) -> None:
    server = scene.server(max_lora_rank=8)
    publisher = scene.publisher()
    sync = scene.sync(server)
    good = scene.publish(publisher, 1)
    sync.until_serves(good)
    bad = scene.publish(publisher, 2, rank=64)
    until(lambda: str(bad) in scene.consumer().refused, "the channel says that nobody here can use it")
    assert sync.served()["version"] == str(good)
    again = scene.publish(publisher, 3)
    sync.until_serves(again)
    loads = [request for request in server.log if request.route == "POST /v1/load_lora_adapter"]
    assert sum(str(bad) in request.body.decode() for request in loads) == 1


def test_damaged_versions_never_reach_the_server(scene: Scene) -> None:
    server = scene.server()
    publisher = scene.publisher(sweep=False)
    good = scene.publish(publisher, 1)
    bad = scene.publish(publisher, 2)
    weights = scene.path / "channel" / "versions" / str(bad) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    sync = scene.sync(server, patience_s=0.5)
    sync.until_serves(good)
    assert not any(str(bad) in request.body.decode() for request in server.log)


def test_a_rewind_is_acknowledged_when_nothing_outside_the_lineage_answers_any_more(scene: Scene) -> None:
    server = scene.server()
    sync = scene.sync(server, server={"linger_s": 3600.0})
    with holdfast.Channel(scene.path / "channel", lease_s=20.0).publisher(sweep=False) as first:
        versions = [scene.publish(first, 1)]
        sync.until_serves(versions[0])
        versions.append(scene.publish(first, 2))
        sync.until_serves(versions[1])
    scene.publisher(resume_from=versions[0])
    sync.until_serves(versions[0])
    until(lambda: scene.consumer().acknowledged_cycle == 2, "the rewind was never acknowledged")
    assert scene.consumer().acknowledged == str(versions[0])
    assert list(server.loaded) == [f"policy-{versions[0]}"]


def test_what_is_stale_is_served_on_and_said_to_be(scene: Scene) -> None:
    server = scene.server()
    sync = scene.sync(server)
    old = scene.publish(scene.publisher(), 1)
    sync.until_serves(old)
    fresh = scene.publisher()
    said = sync.until_reason("stale")
    assert said["version"] == str(old)
    new = scene.publish(fresh, 1)
    sync.until_serves(new)


def test_the_storage_away_harms_nothing(scene: Scene) -> None:
    server = scene.server()
    publisher = scene.publisher(sweep=False)
    sync = scene.sync(server)
    old = scene.publish(publisher, 1)
    sync.until_serves(old)
    new = scene.publish(publisher, 2)
    channel = scene.path / "channel"
    channel.rename(scene.path / "away")
    server.restart()
    until(lambda: list(server.loaded) != [], "it is filled again from the copies")
    assert scene.copies() != set()
    (scene.path / "away").rename(channel)
    sync.until_serves(new)


def test_channels_come_and_go_and_each_has_a_name_of_its_own(scene: Scene) -> None:
    server = scene.server(max_cpu_loras=8)
    pattern = ChannelConfig(path=str(scene.path / "runs" / "*" / "weights"), adapter="run-{match}")
    sync = scene.sync(server, channels=(pattern,), retire_s=0.5)
    a = scene.publish(scene.publisher("runs/a/weights"), 1)
    sync.until_serves(a, "run-a")
    with holdfast.Channel(scene.path / "runs/b/weights", lease_s=20.0).publisher() as publisher:
        b = scene.publish(publisher, 7)
        sync.until_serves(b, "run-b")
    assert set(server.loaded) == {f"run-a-{a}", f"run-b-{b}"}
    (scene.path / "runs" / "b").rename(scene.path / "ended")
    until(lambda: set(server.loaded) == {f"run-a-{a}"}, "what has ended is unloaded")
    until(lambda: set(sync.channels()) == {"run-a"})
    assert scene.copies("run-b") == set()


def test_a_mount_that_is_away_is_no_channel_that_has_ended(scene: Scene) -> None:
    server = scene.server(max_cpu_loras=8)
    patterns = tuple(ChannelConfig(path=str(scene.path / name / "*" / "weights")) for name in ("mount", "other"))
    sync = scene.sync(server, channels=patterns, retire_s=0.0)
    version = scene.publish(scene.publisher("mount/a/weights"), 1)
    sync.until_serves(version, "a")
    mount, elsewhere = scene.path / "mount", scene.path / "elsewhere"
    mount.rename(elsewhere)
    mount.symlink_to(mount)  # a directory that cannot be listed, not even by root
    for name in ("b", "c"):  # each is found by a look of its own, so that two have passed
        sync.until_serves(scene.publish(scene.publisher(f"other/{name}/weights"), 1), name)
    assert f"a-{version}" in server.loaded
    mount.unlink()
    elsewhere.rename(mount)


def test_residents_of_all_channels_are_limited_together(scene: Scene) -> None:
    server = scene.server(max_cpu_loras=8)
    channels = tuple(ChannelConfig(path=str(scene.path / name), adapter=name) for name in ("a", "b"))
    sync = scene.sync(server, channels=channels, server={"residents_total": 2, "linger_s": 0.0})
    a, b = scene.publisher("a"), scene.publisher("b")
    sync.until_serves(scene.publish(a, 1), "a")
    sync.until_serves(scene.publish(b, 1), "b")
    scene.publish(a, 2)
    said = sync.until_reason("residents leave none", adapter="a")
    assert (said["step"], said["state"]) == (1, "lagging")


def test_a_full_stage_keeps_what_is_served_and_says_what_to_free(scene: Scene) -> None:
    server = scene.server()
    publisher = scene.publisher(sweep=False)
    sync = scene.sync(server, stage_bytes=6000)
    first = scene.publish(publisher, 1)
    sync.until_serves(first)
    scene.publish(publisher, 2)
    until(lambda: "too much for the limit" in sync.ask("/desired")[1]["channels"][0]["status"])
    assert scene.copies() == {str(first)}
    assert sync.served()["version"] == str(first)


def test_in_place_servers_load_from_the_channel_which_keeps_what_they_read(scene: Scene) -> None:
    server = scene.server()
    publisher = scene.publisher()
    sync = scene.sync(server, stage="off")
    versions = []
    for step in (1, 2, 3):
        versions.append(scene.publish(publisher, step))
        sync.until_serves(versions[-1])
    (path,) = until(lambda: list(server.loaded.values()) if len(server.loaded) == 1 else None)
    assert pathlib.Path(path) == scene.path / "channel" / "versions" / str(versions[-1])
    until(lambda: scene.consumer().holds == (str(versions[-1]),))


def test_copies_alone_are_kept_on_hosts_that_only_have_workers(scene: Scene) -> None:
    publisher = scene.publisher()
    scene.sync(stage_only=True, keep=2)
    versions = [scene.publish(publisher, step) for step in (1, 2)]
    until(lambda: str(versions[-1]) in scene.copies())
    versions.append(scene.publish(publisher, 3))
    until(lambda: str(versions[-1]) in scene.copies())
    until(lambda: len(scene.copies()) <= 2)


def test_paths_are_told_as_the_server_sees_them(scene: Scene) -> None:
    server = scene.server()
    seen = scene.path / "as-the-server-sees-it"
    scene.stage.mkdir()
    seen.symlink_to(scene.stage)
    sync = scene.sync(server, server={"path_map": (f"{scene.stage}={seen}",)})
    version = scene.publish(scene.publisher(), 1)
    sync.until_serves(version)
    (path,) = server.loaded.values()
    assert path == f"{seen}/policy/sync/versions/{version}"


def test_a_canary_that_differs_refuses_the_version(scene: Scene) -> None:
    server = scene.server()
    publisher = scene.publisher()
    sync = scene.sync(server, server={"canary": True})
    good = scene.publish(publisher, 1)
    sync.until_serves(good)
    bad = scene.publish(publisher, 2, metadata={"canary": {"prompt": "x", "token_ids": [1, 2, 3]}})
    until(lambda: str(bad) in scene.consumer().refused)
    assert "completes 'x' with" in scene.consumer().refused[str(bad)]
    assert sync.served()["version"] == str(good)
    until(lambda: list(server.loaded) == [f"policy-{good}"])


def test_an_orchestrator_decides_when(scene: Scene) -> None:
    server = scene.server()
    publisher = scene.publisher(sweep=False)
    sync = scene.sync(server, drive="manual")
    first = scene.publish(publisher, 1)
    sync.until_serves(first)
    second = scene.publish(publisher, 2)
    until(lambda: sync.ask("/desired")[1]["channels"][0]["newest"] == str(second))
    assert sync.served()["version"] == str(first)
    assert sync.ask("/apply", {"version": "newest"}) == (200, {"adapter": "policy", "desired": str(second)})
    sync.until_serves(second)
    assert sync.ask("/apply", {"version": str(first)})[0] == 200
    sync.until_serves(first)
    for body, status in (({"version": "nonsense"}, 400), ({"versoin": "newest"}, 400), ({"adapter": "x"}, 400)):
        assert sync.ask("/apply", body)[0] == status
    assert sync.ask("/apply", {"version": "c000001-s00000009-00aaaaaa"})[0] == 404


def test_a_process_that_drives_itself_takes_no_orders(scene: Scene) -> None:
    sync = scene.sync(scene.server())
    status, body = sync.ask("/apply", {})
    assert (status, body["error"]["code"]) == (400, "not_manual")


def test_who_has_no_token_is_told_nothing(scene: Scene) -> None:
    token = scene.path / "token"
    token.write_text("secret\n")
    sync = scene.sync(scene.server(), token_file=str(token))
    assert sync.ask("/served")[0] == 200
    for path in ("/served", "/desired", "/metrics"):
        assert sync.ask(path, token="wrong")[0] == 401
    assert sync.ask("/apply", {}, token="wrong")[0] == 401
    assert sync.ask("/healthz", token="wrong")[0] in (200, 503)


def test_metrics_tell_what_is_served_and_how_long_it_took(scene: Scene) -> None:
    sync = scene.sync(scene.server())
    sync.until_serves(scene.publish(scene.publisher(), 41))
    text = sync.ask("/metrics")[1]
    where = next(line for line in text.splitlines() if line.startswith("holdfast_sync_served_step{"))
    assert where.endswith(" 41.0")
    assert 'action="load"' in text


def test_the_server_wants_a_token(scene: Scene) -> None:
    token = scene.path / "key"
    token.write_text("wrong")
    server = scene.server(api_key="right")
    sync = scene.sync(server, server={"token_file": str(token)})
    version = scene.publish(scene.publisher(), 1)
    sync.until_reason("--engine-token-file")
    token.write_text("right")
    sync.until_serves(version)


@pytest.mark.parametrize(
    ("server", "channel", "said"),
    [
        ({"runtime_lora": False}, {}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"dev_mode": False}, {"weights": "full"}, "VLLM_SERVER_DEV_MODE=1"),
        ({"dev_mode": False}, {"naming": "stable"}, "VLLM_SERVER_DEV_MODE=1"),
        ({"base": "policy"}, {}, "give another adapter name"),
    ],
)
def test_a_wrong_set_up_is_one_line_that_says_what_to_set(
    scene: Scene, server: dict[str, Any], channel: dict[str, Any], said: str
) -> None:
    sync = scene.sync(scene.server(**server), channel=channel)
    scene.publish(scene.publisher(), 1)
    reason = sync.until_reason(said)["reason"]
    assert "\n" not in reason


def test_hooks_hear_of_a_change_before_and_after_it_and_may_object(scene: Scene) -> None:
    hook = scene.server()
    hook.fail("POST /before", Reply.of({"detail": "rollouts are being drained"}, 409), 1)
    hook.fail("POST /before", Reply.of({}), None)
    hook.fail("POST /after", Reply.of({}), None)
    config = scene.config(scene.server()).hooks
    hooks = type(config)(before=f"{hook.url}/before", after=f"{hook.url}/after")
    sync = scene.sync(scene.server(), hooks=hooks)
    version = scene.publish(scene.publisher(), 1)
    sync.until_serves(version)
    until(lambda: "POST /after" in hook.routes())
    assert hook.routes() == ["POST /before", "POST /before", "POST /after"]
    assert str(version) in hook.log[0].body.decode()


def test_another_process_of_the_same_name_takes_over_and_the_older_one_stops(scene: Scene) -> None:
    server = scene.server()
    older = scene.sync(server)
    publisher = scene.publisher()
    older.until_serves(scene.publish(publisher, 1))
    younger = scene.sync(server)
    until(lambda: older.sync.failed, timeout_s=60.0)
    version = scene.publish(publisher, 2)
    younger.until_serves(version)
