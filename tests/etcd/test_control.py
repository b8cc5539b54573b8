"""An etcd cluster that a job carries: started in any order, members killed, their disks lost, replaced."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
from collections.abc import Iterator

import pytest

from holdfast.errors import UnavailableError
from holdfast.rendezvous.etcd import EtcdOptions, EtcdStore, open_etcd
from holdfast.rendezvous.etcd_cluster import Cluster, Health, health
from holdfast.run.etcd_member import parse_place
from tests.support.controls import Control
from tests.support.etcds import binary, free_ports, until

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]
LONG_S = 60.0


class Carried:
    """Three members, each kept by a control process on a "node" that is a directory."""

    def __init__(self, root: pathlib.Path) -> None:
        ports = free_ports(6)
        self.root = root
        self.members = tuple(f"m{n}=127.0.0.1:{ports[2 * n]}:{ports[2 * n + 1]}" for n in range(3))
        self.endpoints = tuple(parse_place(text).client_url for text in self.members)
        self.controls: dict[int, Control] = {}

    def start(self, number: int) -> Control:
        self.controls[number] = Control(
            self.root / f"log-{number}",
            etcd_binary=binary(),
            members=self.members,
            name=f"m{number}",
            data=str(self.data(number)),
            token="test",
        )
        return self.controls[number]

    def data(self, number: int) -> pathlib.Path:
        return self.root / f"node-{number}"

    def until_health(self, answering: int, members: int = 3) -> None:
        wanted = Health(answering, members)
        until(lambda: health(self.endpoints) == wanted, f"never {wanted}, see {self.root}")

    def ids(self) -> dict[str, str]:
        cluster = Cluster(self.endpoints)
        members = cluster.members()
        cluster.close()
        assert members is not None
        return {member.name: member.id for member in members}

    def store(self) -> EtcdStore:
        return open_etcd(EtcdOptions(endpoints=self.endpoints), "job", timeout_s=LONG_S)


def write(store: EtcdStore, value: bytes) -> None:
    """The cluster takes a change."""

    def changed() -> bool:
        try:
            stood = store.read("control")
            if stood is not None and stood.value == value:
                return True
            store.compare_and_set("control", 0 if stood is None else stood.revision, value)
        except UnavailableError as error:
            if error.code == "store_lost":
                raise
        return False

    until(changed, f"{value!r} cannot be written")


@pytest.fixture
def carried(tmp_path: pathlib.Path) -> Iterator[Carried]:
    cluster = Carried(tmp_path)
    try:
        yield cluster
    finally:
        for control in cluster.controls.values():
            children = control.children()
            control.kill()
            until(lambda children=children: not any(map(is_alive, children)), "an etcd outlives its control")  # type: ignore[misc]


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_members_start_in_any_order_and_leave_when_told(carried: Carried) -> None:
    assert health(carried.endpoints) == Health(0, 3)
    carried.start(2)
    until(lambda: bool(carried.controls[2].children()), "etcd is not started")
    assert not health(carried.endpoints).works
    carried.start(0)
    store = carried.store()
    write(store, b"two of three")
    degraded = health(carried.endpoints)
    assert degraded.works
    assert degraded.degraded
    carried.start(1)
    carried.until_health(3)
    assert not health(carried.endpoints).degraded
    children = [pid for control in carried.controls.values() for pid in control.children()]
    assert len(children) == 3
    for control in carried.controls.values():
        assert control.stop() == 0
    assert not any(map(is_alive, children))
    store.close()


def test_an_etcd_that_dies_is_started_again_and_one_dies_with_its_control(carried: Carried) -> None:
    for number in range(3):
        carried.start(number)
    carried.until_health(3)
    ids, store = carried.ids(), carried.store()
    write(store, b"start")
    first = carried.controls[0].children()
    os.kill(first[0], signal.SIGKILL)
    until(lambda: carried.controls[0].children() not in ([], first), "etcd is not started again")
    carried.until_health(3)
    child = carried.controls[1].children()[0]
    carried.controls[1].kill()
    until(lambda: not is_alive(child), "etcd outlives its control")
    carried.until_health(2)
    write(store, b"without one")
    carried.start(1)
    carried.until_health(3)
    assert carried.ids() == ids
    again = Control(
        carried.root / "again",
        etcd_binary=binary(),
        members=carried.members,
        name="m0",
        data=str(carried.root / "elsewhere"),
    )
    assert again.ended() == 1
    assert "answers at" in again.log.read_text()
    store.close()


def test_a_member_whose_disk_is_lost_is_replaced(carried: Carried) -> None:
    """Each in turn; then the cluster is all new, and still bears the loss of any."""
    for number in range(3):
        carried.start(number)
    carried.until_health(3)
    before, store = carried.ids(), carried.store()
    write(store, b"start")
    for number in range(3):
        carried.controls[number].kill()
        shutil.rmtree(carried.data(number))
        write(store, b"without %d" % number)
        carried.start(number)
        carried.until_health(3)
        write(store, b"with a new %d" % number)
    after = carried.ids()
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    for number in range(3):
        carried.controls[number].kill()
        write(store, b"after all, without %d" % number)
        carried.start(number)
        carried.until_health(3)
    store.close()


def test_a_member_that_the_others_removed_comes_back_as_a_new_one(carried: Carried) -> None:
    for number in range(3):
        carried.start(number)
    carried.until_health(3)
    store = carried.store()
    write(store, b"start")
    carried.controls[2].kill()
    cluster = Cluster(carried.endpoints[:2])

    def removed() -> bool:
        members = cluster.members() or ()
        gone = [member for member in members if member.name == "m2"]
        if not gone:
            return bool(members)
        try:
            cluster.remove(gone[0])
        except UnavailableError:
            return False
        return True

    until(removed, "it is not removed")
    cluster.close()
    carried.until_health(2, 2)
    carried.start(2)
    carried.until_health(3)
    write(store, b"end")
    assert [path.name for path in carried.data(2).iterdir() if ".removed-" in path.name]
    store.close()
