"""What a sync process tells Prometheus, and that a channel that has ended leaves nothing on the page."""

from __future__ import annotations

import pytest

import holdfast
from holdfast.core.names import Version
from holdfast.core.servers import Load, Server, Status
from holdfast.engines.contract import EngineError, Reaction
from holdfast.eventfiles import find_event_files, tail_events
from holdfast.sync.metrics import ChannelNow, Metrics
from tests.support.channels import until
from tests.support.promlint import lint
from tests.support.syncing import Scene

OLD, NEW = Version(1, 10, 0, "a1b2c3"), Version(1, 30, 0, "a1b2c3")


def test_lag_holds_and_loads_of_a_running_process(scene: Scene) -> None:
    server = scene.server()
    sync = scene.sync(server, drive="manual")
    publisher = scene.publisher(retention=holdfast.Retention(keep_recent=9))
    sync.until_serves(scene.publish(publisher, 10))
    where = f'{{adapter="policy",server="{server.url}"}}'

    def now() -> dict[str, float]:
        return lint(sync.ask("/metrics")[1])

    assert now()[f"holdfast_sync_behind_steps{where}"] == 0
    version = scene.publish(publisher, 30)
    until(lambda: now()['holdfast_sync_newest_step{adapter="policy"}'] == 30)
    seen = now()
    assert seen[f"holdfast_sync_behind_steps{where}"] == 20
    assert seen[f"holdfast_sync_behind_versions{where}"] == 1
    assert seen[f"holdfast_sync_served_step{where}"] == 10
    assert seen['holdfast_sync_held_versions{adapter="policy"}'] == 2
    assert seen['holdfast_sync_channel_failed{adapter="policy"}'] == 0
    assert seen[f"holdfast_sync_outside_lineage{where}"] == 0
    assert sync.ask("/apply", {"version": "newest"})[0] == 200
    sync.until_serves(version)
    seen = now()
    assert (seen[f"holdfast_sync_behind_steps{where}"], seen[f"holdfast_sync_changes_total{where}"]) == (0, 2)
    assert seen[f'holdfast_sync_state{where[:-1]},state="ready"}}'] == 1
    loads = f'holdfast_sync_action_seconds_count{{action="load",adapter="policy",server="{server.url}"}}'
    assert seen[loads] == 2


def test_what_is_served_outside_of_the_lineage_has_no_lag() -> None:
    states = {"http://a": Server(status=Status.READY, serving=OLD), "http://b": Server(status=Status.GONE)}
    channel = ChannelNow(
        adapter="policy",
        newest=NEW,
        taken=(OLD, NEW),
        held=2,
        failed=True,
        outside=frozenset({OLD}),
        servers=states,
    )
    now = lint(Metrics(lambda: [channel]).text().decode())
    assert now['holdfast_sync_outside_lineage{adapter="policy",server="http://a"}'] == 1
    assert now['holdfast_sync_channel_failed{adapter="policy"}'] == 1
    assert not any(name.startswith("holdfast_sync_behind") for name in now)
    assert 'holdfast_sync_served_step{adapter="policy",server="http://b"}' not in now


def test_a_channel_that_has_ended_leaves_no_series() -> None:
    metrics = Metrics(list)
    for adapter in ("one", "two"):
        metrics.state("http://a", adapter, Server(status=Status.READY, serving=OLD))
        metrics.did("http://a", adapter, Load("x", OLD), 0.5)
        for code in ("too_slow", "name_taken"):
            metrics.failed("http://a", adapter, EngineError("no", Reaction.FIX_SETUP, code=code))
    metrics.forget("http://a", "one")
    metrics.forget("http://a", "one")
    assert 'adapter="one"' not in metrics.text().decode()
    assert 'adapter="two"' in metrics.text().decode()


def test_a_state_that_stays_is_told_again_and_leaving_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.sync.driver.STILL_S", 0.0)
    server = scene.server()
    sync = scene.sync(server)
    version = scene.publish(scene.publisher(), 1)
    sync.until_serves(version)
    (file,) = (path for path in find_event_files([scene.path / "channel"]) if path.name.startswith("sync-"))
    still = until(lambda: [one for one in tail_events(file, 2**20) if one.event == "server_still"])
    wanted = {"server": server.url, "adapter": "policy", "state": "ready"}
    until(lambda: tail_events(file, 2**20)[-1].fields == wanted)
    assert still[0].fields["server"] == server.url
    sync.stop()
    last = tail_events(file, 2**20)[-1]
    assert (last.event, last.fields) == ("closed", {"sync": "sync"})
