"""`run_control`, serving the embedded store by itself."""

from __future__ import annotations

import pathlib

import pytest

from holdfast.errors import UsageError
from holdfast.rendezvous.etcd_cluster import Health, health
from holdfast.rendezvous.open import open_store
from holdfast.run.control import ControlSettings, run_control
from holdfast.run.etcd_member import Place, parse_place
from tests.support.controls import Control
from tests.support.etcds import free_ports

LONG_S = 60.0


def test_it_serves_the_store_until_it_is_told_to_stop(tmp_path: pathlib.Path) -> None:
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    control = Control(tmp_path / "log", endpoint=endpoint)
    try:
        store = open_store(endpoint, "job", timeout_s=LONG_S)
        stands = store.compare_and_set("control", 0, b"x")
        second = Control(tmp_path / "second", endpoint=endpoint)
        assert second.ended() == 1
        assert "port_in_use" in second.log.read_text() or "in use" in second.log.read_text()
        assert store.read("control") == stands
        assert control.stop() == 0
    finally:
        control.kill()
    assert "Traceback" not in control.log.read_text()


def test_a_member_is_written_with_its_ports() -> None:
    assert parse_place("m0=node-1:2380:2379") == Place("m0", "node-1", 2380, 2379)
    assert parse_place("m0=[fd00::1]:2380:2379").client_url == "http://[fd00::1]:2379"


@pytest.mark.parametrize(
    "text", ["", "m0", "m0=host", "m0=host:1", "=host:1:2", "m0=host:1:x", "m0=host:0:1", "a=b=c:1:2"]
)
def test_what_is_no_member(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_place(text)
    assert caught.value.code == "bad_member"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (ControlSettings(), "bad_control"),
        (ControlSettings(endpoint="127.0.0.1:1", etcd_binary="etcd"), "bad_control"),
        (ControlSettings(endpoint="nonsense"), "bad_endpoint"),
        (ControlSettings(etcd_binary="etcd", members=("m0=h:1:2",), name="m0"), "bad_control"),
        (ControlSettings(etcd_binary="etcd", members=("m0=h:1:2",), name="m1", data="d"), "bad_member"),
        (ControlSettings(etcd_binary="etcd", members=("m0=h:1:2", "m0=g:1:2"), name="m0", data="d"), "bad_member"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: ControlSettings, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_control(settings)
    assert caught.value.code == code


def test_an_etcd_that_cannot_be_run(tmp_path: pathlib.Path) -> None:
    peer_port, port = free_ports(2)
    settings = ControlSettings(
        etcd_binary=str(tmp_path / "nothing"),
        members=(f"m0=127.0.0.1:{peer_port}:{port}",),
        name="m0",
        data=str(tmp_path / "data"),
    )
    with pytest.raises(UsageError) as caught:
        run_control(settings)
    assert caught.value.code == "no_etcd"


def test_members_whose_hosts_are_not_known_yet_just_do_not_answer() -> None:
    assert health(["http://no-such-host.invalid:2379", "http://nor-this.invalid:2379"]) == Health(0, 2)
    assert health([]) == Health(0, 0)
