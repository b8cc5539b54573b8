"""A channel that is read-only where sync runs: what sync says to the trainer lies elsewhere."""

from __future__ import annotations

import os
import pathlib

import pytest

import holdfast
from holdfast.errors import UsageError
from holdfast.sync.config import ChannelConfig
from holdfast.sync.discover import Discovery
from tests.support.channels import until
from tests.support.syncing import Scene


def test_holds_are_written_to_the_other_place_and_nothing_to_the_channel(scene: Scene) -> None:
    claims = scene.path / "claims"
    channel = holdfast.Channel(scene.path / "channel", claims=claims, lease_s=20.0)
    with channel.publisher(holdfast.Retention(keep_recent=1)) as publisher:
        running = scene.sync(scene.server(), channel={"claims": str(claims)})
        version = scene.publish(publisher, 1)
        running.until_serves(version)
        until(
            lambda: any(one.record.acknowledged == str(version) for one in channel.observer().consumers().values()),
            "it is never acknowledged",
        )
        running.stop()
    assert not {"consumers", "sweepers", "events"} & set(os.listdir(scene.path / "channel"))
    assert os.listdir(claims / "consumers")


def test_each_channel_of_a_pattern_has_claims_of_its_own(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        with holdfast.Channel(tmp_path / name).publisher():
            pass
    pattern = ChannelConfig(path=str(tmp_path / "*"), claims=f"{tmp_path}/claims-{{match}}")
    found = Discovery((pattern,), 60.0).look()
    assert [one.config.claims for one in found] == [f"{tmp_path}/claims-a", f"{tmp_path}/claims-b"]


@pytest.mark.parametrize(
    "channels",
    [
        (ChannelConfig(path="/runs/*", claims="/claims"),),
        (
            ChannelConfig(path="/a", adapter="a", claims="/claims"),
            ChannelConfig(path="/b", adapter="b", claims="/claims"),
        ),
    ],
)
def test_two_channels_with_one_place_are_refused(scene: Scene, channels: tuple[ChannelConfig, ...]) -> None:
    with pytest.raises(UsageError) as raised:
        scene.config(scene.server(), channels=channels)
    assert raised.value.code == "bad_config"
