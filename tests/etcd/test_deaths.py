"""What befalls an etcd: members that are gone, restarts, freezes, a history that would grow for ever."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.errors import UnavailableError
from holdfast.rendezvous.etcd import EtcdOptions, EtcdStore, open_etcd
from holdfast.rendezvous.kv import Cell
from tests.etcd.test_access import post
from tests.support.etcds import Etcd, free_ports, three_etcds, until

pytestmark = pytest.mark.etcd
LONG_S = 60.0


def opened(*urls: str, prefix: str = "job", compact: bool = True) -> EtcdStore:
    return open_etcd(EtcdOptions(endpoints=urls, compact=compact), prefix, timeout_s=LONG_S)


def works(call: Callable[[], object]) -> Callable[[], bool]:
    def tried() -> bool:
        try:
            call()
        except UnavailableError as error:
            return bool(error.code != "store_unavailable")
        return True

    return tried


def test_an_endpoint_that_is_dead_is_passed_by(shared_etcd: Etcd) -> None:
    dead = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    store = opened(*dead, shared_etcd.url, prefix="dead-endpoints")
    stands = store.compare_and_set("control", 0, b"0")
    for number in range(5):
        stands = store.compare_and_set("control", stands.revision, b"%d" % number)
        assert store.read("control") == stands
    store.close()


def test_a_restart_is_a_pause(own_etcd: Etcd) -> None:
    store, other = opened(own_etcd.url), opened(own_etcd.url)
    told = threading.Event()
    end = store.watch("control", told.set)
    stands = store.compare_and_set("control", 0, b"first")
    store.put_listed("nodes", "n0", b"first")
    assert told.wait(LONG_S)
    own_etcd.kill()
    for call in (
        lambda: store.read("control"),
        lambda: store.put_listed("nodes", "n0", b"second"),
        lambda: store.compare_and_set("control", stands.revision, b"second"),
    ):
        with pytest.raises(UnavailableError) as caught:
            call()
        assert caught.value.code == "store_unavailable"
    told.clear()
    own_etcd.start()
    until(works(lambda: store.read("control")), "it does not come back")
    assert store.read("control") == stands
    assert told.wait(LONG_S)
    store.put_listed("nodes", "n0", b"second")
    assert other.list_all("nodes") == {"n0": b"second"}
    told.clear()
    other.compare_and_set("control", stands.revision, b"second")
    assert told.wait(LONG_S)
    end()
    for each in (store, other):
        each.close()


def test_a_freeze_is_a_pause(own_etcd: Etcd) -> None:
    store = opened(own_etcd.url)
    stands = store.compare_and_set("control", 0, b"first")
    store.put_listed("nodes", "n0", b"first")
    own_etcd.freeze()
    for call in (
        lambda: store.read("control"),
        lambda: store.newer("control", stands.revision),
        lambda: store.put_listed("nodes", "n0", b"second"),
        lambda: store.compare_and_set("control", stands.revision, b"second"),
    ):
        with pytest.raises(UnavailableError) as caught:
            call()
        assert caught.value.code == "store_unavailable"
    own_etcd.thaw()
    store.put_listed("nodes", "n0", b"third")
    found = store.read("control")
    assert found is not None
    assert found.value in (b"first", b"second")
    assert store.compare_and_set("control", found.revision, b"third").value == b"third"
    assert store.list_all("nodes") == {"n0": b"third"}
    store.close()


def test_what_one_member_held_back_does_not_undo_what_came_later(tmp_path: pathlib.Path) -> None:
    """A member is frozen with a put in its hands; the next goes through another; then the first one wakes."""
    with three_etcds(tmp_path) as members:
        for frozen in members:
            rest = [member.url for member in members if member is not frozen]
            store = opened(frozen.url, *rest, prefix=f"held back by {frozen.name}")
            store.put_listed("nodes", "n0", b"0")
            frozen.freeze()
            until(works(lambda store=store: store.put_listed("nodes", "n0", b"1")), "no put goes through")  # type: ignore[misc]
            until(works(lambda store=store: store.put_listed("nodes", "n0", b"2")), "no put goes through")  # type: ignore[misc]
            frozen.thaw()
            frozen.wait()
            assert store.list_all("nodes") == {"n0": b"2"}
            store.close()


def test_a_cluster_loses_any_member_and_goes_on(tmp_path: pathlib.Path) -> None:
    with three_etcds(tmp_path) as members:
        urls = [member.url for member in members]
        store, watcher = opened(*urls), opened(*urls[1:], urls[0])
        told = threading.Event()
        end = watcher.watch("control", told.set)
        stands = store.compare_and_set("control", 0, b"start")
        for number, member in enumerate(members):
            member.kill()

            def advance(number: int = number) -> None:
                stood = store.read("control")
                assert stood is not None
                if stood.value != b"%d" % number:
                    store.compare_and_set("control", stood.revision, b"%d" % number)

            until(works(advance), f"the cluster stops without {member.name}")
            found: list[Cell] = []

            def look(known: int = stands.revision, found: list[Cell] = found) -> None:
                cell = watcher.newer("control", known)
                if cell is None:
                    raise UnavailableError("not yet", code="store_unavailable")
                found.append(cell)

            until(works(look), "the watcher does not see it")
            assert found[0].value == b"%d" % number
            stands = found[0]
            member.start(",".join(f"{each.name}={each.peer_url}" for each in members))
        told.clear()
        store.compare_and_set("control", stands.revision, b"end")
        assert told.wait(LONG_S)
        end()
        for each in (store, watcher):
            each.close()


def test_beats_leave_the_database_bounded(own_etcd: Etcd) -> None:
    """3 000 beats with tidying need less room than 1 500 without."""
    value = b"b" * 4096

    def bytes_used() -> int:
        return int(post(own_etcd, "/v3/maintenance/status", {})["dbSize"])

    def beat(store: EtcdStore, times: int, *, tidy_every: int) -> None:
        for number in range(times):
            store.put_listed("nodes", f"n{number % 10}", value)
            if number % tidy_every == tidy_every - 1:
                store.tidy()

    store = opened(own_etcd.url)
    beat(store, 600, tidy_every=100)
    settled = bytes_used()
    beat(store, 2400, tidy_every=100)
    assert bytes_used() <= 2 * settled
    assert len(store.list_all("nodes")) == 10
    loose = opened(own_etcd.url, compact=False)
    beat(loose, 1500, tidy_every=100)
    assert bytes_used() > 2 * settled
    for each in (store, loose):
        each.close()


def test_two_who_tidy_do_not_disturb_each_other(own_etcd: Etcd) -> None:
    one, two = opened(own_etcd.url), opened(own_etcd.url)
    for number in range(6):
        one.put_listed("nodes", "n0", b"%d" % number)
        one.tidy()
        two.tidy()
        two.put_listed("nodes", "n1", b"%d" % number)
    assert one.list_all("nodes") == {"n0": b"5", "n1": b"5"}
    for each in (one, two):
        each.close()


def test_a_name_server_that_is_away_holds_no_call_up(own_etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(f"http://localhost:{own_etcd.port}")
    stands = store.compare_and_set("control", 0, b"x")
    asked_by: list[str] = []
    real = socket.getaddrinfo

    def away(host: str, *arguments: Any, **named: Any) -> Any:
        if host == "localhost":
            asked_by.append(threading.current_thread().name)
            raise socket.gaierror(socket.EAI_AGAIN, "the name server is away")
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", away)
    own_etcd.kill()
    with pytest.raises(UnavailableError):
        store.read("control")
    own_etcd.start()
    until(works(lambda: store.read("control")), "it does not come back")
    assert store.read("control") == stands
    until(lambda: bool(asked_by), "nobody asked whether the address has changed")
    assert set(asked_by) == {"holdfast-resolve"}
    store.close()


def test_a_client_closes_while_its_watch_cannot_connect(own_etcd: Etcd) -> None:
    store = opened(own_etcd.url)
    store.watch("control", threading.Event().set)
    own_etcd.kill()
    with contextlib.suppress(UnavailableError):
        store.read("control")
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "holdfast-etcd-watch"]
