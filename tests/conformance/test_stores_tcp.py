"""What befalls the embedded store: wrong places, a host that is frozen, gone, or another one; lines that break."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from holdfast.errors import HoldfastError, UnavailableError, UsageError
from holdfast.rendezvous.open import open_store
from holdfast.rendezvous.tcp import connect_tcp, serve_tcp
from holdfast.rendezvous.tcp_store import Patience
from holdfast.rendezvous.tcp_wire import Wire
from tests.support.channels import until
from tests.support.relay import Relay
from tests.support.tcp_server import TcpServer

LONG_S = 30.0
SHORT = Patience(call_s=1.0, stranger_s=1.0)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(HoldfastError) as caught:
        call()
    assert str(caught.value)
    return caught.value.code


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accepts, and gives each connection to `serve`. Yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    serve(server.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            serve_tcp("127.0.0.1", port)
    assert caught.value.code == "port_in_use"
    assert str(port) in caught.value.hint


def test_the_same_port_is_not_served_twice() -> None:
    with TcpServer() as server:
        assert code_of(lambda: serve_tcp("localhost", server.port)) == "port_in_use"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", socket.gethostname()])
def test_it_is_served_and_found_under_any_name_of_this_machine(host: str) -> None:
    server, port = serve_tcp(host, 0)
    store = connect_tcp(host, port, "job", LONG_S)
    assert store.compare_and_set("control", 0, b"x").value == b"x"
    store.close()
    del server


def test_nobody_there_is_unavailable_after_the_time_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert code_of(lambda: connect_tcp("127.0.0.1", port, "job", 0.5)) == "store_unavailable"


def test_agents_start_in_any_order() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(connect_tcp("127.0.0.1", port, "job", LONG_S).read("control"))
    )
    thread.start()
    with TcpServer(port):
        thread.join(LONG_S)
        assert found == [None]


def test_a_host_that_nobody_knows() -> None:
    assert code_of(lambda: connect_tcp("no-such-host.invalid", 29400, "job", LONG_S)) == "bad_endpoint"
    assert code_of(lambda: serve_tcp("no-such-host.invalid", 29400)) == "bad_endpoint"


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":29400", "host:port", "host:0", "host:99999", "http://host:1", "a:1,b:2", "tcp://"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(text, "job", timeout_s=0)
    assert caught.value.code == "bad_endpoint"
    assert "HOST:PORT" in caught.value.hint


def test_a_web_server_is_no_store() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = server.server_address[1]
        assert (
            code_of(lambda: open_store(f"127.0.0.1:{port}", "job", timeout_s=LONG_S, patience=SHORT)) == "not_a_store"
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_port_that_keeps_silent_is_no_store() -> None:
    kept: list[socket.socket] = []
    with listener(kept.append) as port:
        assert code_of(lambda: connect_tcp("127.0.0.1", port, "job", LONG_S, patience=SHORT)) == "not_a_store"
    for each in kept:
        each.close()


def test_a_port_that_hangs_up_is_no_store() -> None:
    with listener(lambda connection: connection.close()) as port:
        assert code_of(lambda: connect_tcp("127.0.0.1", port, "job", LONG_S, patience=SHORT)) == "not_a_store"


def test_a_port_that_babbles_is_no_store() -> None:
    def babble(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 10)
            connection.recv(65536)

    with listener(babble) as port:
        assert code_of(lambda: connect_tcp("127.0.0.1", port, "job", LONG_S, patience=SHORT)) == "not_a_store"


def test_anothers_tcpstore_is_not_ours() -> None:
    stock = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=5), wait_for_workers=False)
    with pytest.raises(UsageError) as caught:
        connect_tcp("127.0.0.1", stock.port, "job", LONG_S, patience=SHORT)
    assert caught.value.code == "not_a_store"
    assert "TCPStore" in str(caught.value)


def test_a_line_that_breaks_is_made_again() -> None:
    with TcpServer() as server, Relay(server.port) as relay:
        store = connect_tcp("127.0.0.1", relay.port, "job", LONG_S)
        stands = store.compare_and_set("control", 0, b"first")
        calls: list[Callable[[], object]] = [
            lambda: store.read("control"),
            lambda: store.newer("control", 0),
            lambda: store.put({"key": b"value"}),
            lambda: store.get(["key"]),
            lambda: store.put_listed("nodes", "n0", b"value"),
            lambda: store.names("nodes"),
            lambda: store.list_all("nodes"),
            lambda: store.delete(["key"]),
        ]
        for call in calls:
            relay.cut()
            call()
        relay.cut()
        assert code_of(lambda: store.compare_and_set("control", stands.revision, b"second")) == "store_unavailable"
        assert store.compare_and_set("control", stands.revision, b"second").value == b"second"
        store.close()


def test_a_store_whose_process_died_is_lost_for_good() -> None:
    with TcpServer() as server:
        store = connect_tcp("127.0.0.1", server.port, "job", LONG_S)
        store.put_listed("nodes", "n0", b"")
        server.kill()
        calls: list[Callable[[], object]] = [
            lambda: store.compare_and_set("control", 0, b""),
            lambda: store.read("control"),
            lambda: store.newer("control", 1),
            lambda: store.put_listed("nodes", "n0", b""),
            lambda: store.list_all("nodes"),
        ]
        # That the line broke is all that the first may learn.
        with contextlib.suppress(UnavailableError):
            store.read("control")
        for call in calls:
            with pytest.raises(UnavailableError) as caught:
                call()
            assert caught.value.code == "store_lost"
            assert f"127.0.0.1:{server.port}, is gone" in str(caught.value)


def test_another_store_in_its_place_is_not_the_store() -> None:
    with TcpServer() as server:
        store = connect_tcp("127.0.0.1", server.port, "job", LONG_S)
        store.compare_and_set("control", 0, b"")
        server.kill()
        with TcpServer(server.port):
            with contextlib.suppress(UnavailableError):
                store.read("control")
            assert code_of(lambda: store.read("control")) == "store_lost"
            assert connect_tcp("127.0.0.1", server.port, "job", LONG_S).read("control") is None
        assert code_of(lambda: store.compare_and_set("control", 0, b"")) == "store_lost"


def test_a_frozen_host_is_unavailable_and_comes_back() -> None:
    with TcpServer() as server:
        store = connect_tcp("127.0.0.1", server.port, "job", LONG_S, patience=SHORT)
        stands = store.compare_and_set("control", 0, b"first")
        server.freeze()
        assert code_of(lambda: store.put_listed("nodes", "n0", b"early")) == "store_unavailable"
        assert code_of(lambda: store.newer("control", 0)) == "store_unavailable"
        assert code_of(lambda: store.compare_and_set("control", 1, b"second")) == "store_unavailable"
        server.thaw()
        store.put_listed("nodes", "n0", b"late")
        assert store.list_all("nodes") == {"n0": b"late"}
        found = store.read("control")
        assert found is not None
        assert found.value in (b"first", b"second")
        assert store.compare_and_set("control", found.revision, b"third").revision > stands.revision


def test_who_is_out_of_reach_for_long_is_lost() -> None:
    with TcpServer() as server:
        store = connect_tcp("127.0.0.1", server.port, "job", LONG_S, patience=Patience(call_s=1.0, lost_after_s=1.0))
        server.freeze()
        assert code_of(lambda: store.read("control")) in ("store_unavailable", "store_lost")
        assert code_of(lambda: store.read("control")) == "store_lost"
        server.thaw()
        assert code_of(lambda: store.read("control")) == "store_lost"


@pytest.mark.timeout(30)
def test_a_change_whose_writer_died_before_the_bell_is_seen() -> None:
    server, port = serve_tcp("127.0.0.1", 0)
    store = connect_tcp("127.0.0.1", port, "job", LONG_S)
    first = store.compare_and_set("control", 0, b"first")
    assert store.newer("control", first.revision) is None
    with Relay(port) as relay:
        dying = connect_tcp("127.0.0.1", relay.port, "job", LONG_S)
        assert dying.read("control") == first
        relay.lose_answer()
        assert code_of(lambda: dying.compare_and_set("control", first.revision, b"second")) == "store_unavailable"
    assert until(lambda: store.newer("control", first.revision)).value == b"second"
    del server


def test_clients_need_no_torch_and_leave_without_a_word() -> None:
    """Their store goes away under them, and they end with threads in calls: nothing is written but their own words."""
    script = """
import sys, threading
from holdfast.errors import UnavailableError
from holdfast.rendezvous.open import open_store
store = open_store(sys.argv[1], "job", timeout_s=30)
store.compare_and_set("control", 0, b"x")
assert "torch" not in sys.modules
print("connected", flush=True)
def call():
    while True:
        try:
            store.newer("control", 1)
        except UnavailableError as error:
            codes.append(error.code)
            again.set()
codes, again = [], threading.Event()
for _ in range(3):
    threading.Thread(target=call, daemon=True).start()
sys.stdin.readline()
again.wait(20)
again.clear()
again.wait(20)
print(codes[-1], flush=True)
"""
    with TcpServer() as server:
        client = subprocess.Popen(
            [sys.executable, "-c", script, f"tcp://127.0.0.1:{server.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "connected\n"
            server.kill()
            out, err = client.communicate("go on\n", timeout=LONG_S)
        finally:
            client.kill()
            client.wait()
    assert (out, err, client.returncode) == ("store_lost\n", "", 0)


def test_a_server_leaves_without_a_word() -> None:
    script = """
from holdfast.rendezvous.tcp import connect_tcp, serve_tcp
server, port = serve_tcp("127.0.0.1", 0)
store = connect_tcp("127.0.0.1", port, "job", 30)
store.compare_and_set("control", 0, b"x")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG_S, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_server_says_nothing_of_clients_that_break_off() -> None:
    """Nor does it stop serving, whatever a stranger sends."""
    script = """
import socket, time
from holdfast.rendezvous.tcp import connect_tcp, serve_tcp
from holdfast.rendezvous.tcp_store import Patience
from holdfast.rendezvous.tcp_wire import Wire
server, port = serve_tcp("127.0.0.1", 0)
for said in (b"", b"GET / HTTP/1.1\\r\\n\\r\\n", bytes(1000), b"\\xff" * 1000):
    stranger = socket.create_connection(("127.0.0.1", port))
    stranger.sendall(said)
    stranger.close()
Wire(("127.0.0.1", port), time.monotonic() + 30).close()
print(connect_tcp("127.0.0.1", port, "job", 30).read("control"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG_S, check=False)
    assert (done.stdout, done.returncode) == ("None\n", 0)


def test_torchs_own_client_and_ours_see_the_same_store() -> None:
    server = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=5), wait_for_workers=False)
    wire = Wire(("127.0.0.1", server.port), time.monotonic() + LONG_S)
    server.set("a", "by torch")
    assert wire.get(b"/a", b"/none") == [b"by torch", b""]
    assert wire.multi_get([b"/none", b"/a"]) == [b"", b"by torch"]
    wire.set([(b"/b", b"ours"), (b"/c", b"too")], asked=b"/b")
    assert (server.get("b"), server.get("c")) == (b"ours", b"too")
    assert wire.compare_set(b"/b", b"other", b"new") == b"ours"
    assert wire.compare_set(b"/b", b"ours", b"new") == b"new"
    assert wire.compare_set(b"/d", b"", b"first") == b"first"
    assert wire.compare_set(b"/e", b"something", b"first") == b"something"
    assert not server.check(["e"])
    assert wire.add(b"/count") == 1
    wire.set_and_append(b"/f", b"f", b"/log", b"line\n", b"/count")
    wire.set_and_append(b"/f", b"f", b"/log", b"line\n", b"/count")
    assert (server.get("log"), server.add("count", 0)) == (b"line\nline\n", 3)
    wire.delete([b"/a", b"/none"])
    assert not server.check(["a"])
    wire.close()
