"""Who may use an etcd, and what is no etcd: endpoints, TLS, users, versions."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpcore2
import pytest

from holdfast.errors import HoldfastError, UnavailableError, UsageError
from holdfast.rendezvous.etcd import EtcdOptions, EtcdStore, open_etcd
from holdfast.rendezvous.open import open_store
from tests.etcd.certificates import Authority
from tests.support.etcds import Etcd, free_ports, one_etcd, until

pytestmark = pytest.mark.etcd
LONG_S = 30.0


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(HoldfastError) as caught:
        call()
    assert str(caught.value)
    return caught.value.code


def post(etcd: Etcd, path: str, body: object, token: str = "") -> dict[str, Any]:
    headers = {"Authorization": token} if token else {}
    with httpcore2.ConnectionPool() as pool:
        answer = pool.request("POST", etcd.url + path, headers=headers, content=json.dumps(body).encode())
    said = json.loads(answer.content)
    assert answer.status == 200, said
    assert isinstance(said, dict)
    return said


@contextlib.contextmanager
def says(version: str) -> Iterator[str]:
    """A server that answers as an etcd of that version would be asked for it. Yields its endpoint."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"etcdserver": version, "etcdcluster": "3.5.0"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2", "3.3.27", "2.3.8"])
def test_versions_that_lose_what_they_were_given_are_refused(version: str, shared_etcd: Etcd) -> None:
    with says(version) as place:
        for endpoint in (f"etcd://{place}", f"etcd://127.0.0.1:{shared_etcd.port},{place}"):
            with pytest.raises(UsageError) as caught:
                open_store(endpoint, "job", timeout_s=LONG_S)
            assert caught.value.code == "etcd_version"
            assert version in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "etcd://",
        "etcd://host",
        "etcd://host:port",
        "etcd://a:1,,b:2",
        "etcd://u:p@host:1",
        "etcd3://host:1",
        "etcds://:1",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(text, "job", timeout_s=0)
    assert caught.value.code == "bad_endpoint"
    assert "etcd://" in caught.value.hint


def test_hosts_that_nobody_knows(shared_etcd: Etcd) -> None:
    assert code_of(lambda: open_store("etcd://no-such-host.invalid:2379", "job", timeout_s=LONG_S)) == "bad_endpoint"
    one_is_known = f"etcd://no-such-host.invalid:2379,127.0.0.1:{shared_etcd.port}"
    assert open_store(one_is_known, "unknown-hosts", timeout_s=LONG_S).read("control") is None


def test_nobody_there_is_unavailable() -> None:
    port = free_ports(1)[0]
    assert code_of(lambda: open_store(f"etcd://127.0.0.1:{port}", "job", timeout_s=0.5)) == "store_unavailable"


def test_a_port_that_keeps_silent_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"etcd://127.0.0.1:{silent.getsockname()[1]}"
        assert code_of(lambda: open_store(endpoint, "job", timeout_s=0.5)) == "store_unavailable"


def test_a_web_server_is_no_etcd(tmp_path: pathlib.Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"127.0.0.1:{server.server_address[1]}"
        assert code_of(lambda: open_store(f"etcd://{endpoint}", "job", timeout_s=LONG_S)) == "not_a_store"
        assert code_of(lambda: open_store(f"etcds://{endpoint}", "job", timeout_s=LONG_S)) == "not_a_store"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls_etcd(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """It wants to see a certificate of ours."""
    file, key = authority.certificate("server")
    more = ("--cert-file", file, "--key-file", key, "--client-cert-auth", "--trusted-ca-file", str(authority.ca))
    with one_etcd(tmp_path_factory.mktemp("tls-etcd"), more=more, scheme="https") as etcd:
        yield etcd


def test_tls_with_certificates_on_both_sides(authority: Authority, tls_etcd: Etcd) -> None:
    file, key = authority.certificate("agent")
    store = open_store(
        *(f"etcds://127.0.0.1:{tls_etcd.port}", "job"),
        timeout_s=LONG_S,
        ca_file=str(authority.ca),
        cert_file=file,
        key_file=key,
    )
    told = threading.Event()
    end = store.watch("control", told.set)
    cell = store.compare_and_set("control", 0, b"x")
    assert store.read("control") == cell
    assert told.wait(LONG_S)
    end()
    store.close()


def test_certificates_that_are_not_trusted(authority: Authority, tls_etcd: Etcd, tmp_path: pathlib.Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    file, key = authority.certificate("agent")
    strange_file, strange_key = stranger.certificate("stranger-agent")
    endpoint = (f"https://127.0.0.1:{tls_etcd.port}",)
    wrong = [
        EtcdOptions(endpoints=endpoint, cert_file=file, key_file=key),
        EtcdOptions(endpoints=endpoint, ca_file=str(stranger.ca), cert_file=file, key_file=key),
        EtcdOptions(endpoints=endpoint, ca_file=str(authority.ca)),
        EtcdOptions(endpoints=endpoint, ca_file=str(authority.ca), cert_file=strange_file, key_file=strange_key),
        EtcdOptions(endpoints=endpoint, ca_file=str(tmp_path / "none.pem")),
        EtcdOptions(endpoints=endpoint, ca_file=str(authority.ca), cert_file=file, key_file=strange_key),
    ]
    for options in wrong:
        assert code_of(lambda options=options: open_etcd(options, "job", timeout_s=LONG_S)) == "bad_certificate"  # type: ignore[misc]


def test_tls_asked_plainly_is_no_etcd(tls_etcd: Etcd) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(f"etcd://127.0.0.1:{tls_etcd.port}", "job", timeout_s=LONG_S)
    assert caught.value.code == "not_a_store"
    assert "etcds://" in caught.value.hint


# --- users


class Guarded:
    """An etcd where `agent` may use what lies below "job", by a password in `password_file`."""

    def __init__(self, etcd: Etcd, directory: pathlib.Path) -> None:
        self.etcd = etcd
        self.password_file = directory / "password"
        self.password_file.write_text("secret\n")
        for name in ("root", "agent"):
            post(etcd, "/v3/auth/user/add", {"name": name, "password": "secret"})
            post(etcd, "/v3/auth/role/add", {"name": name})
            post(etcd, "/v3/auth/user/grant", {"user": name, "role": name})
        start, end = base64.b64encode(b"job").decode(), base64.b64encode(b"joc").decode()
        permission = {"permType": "READWRITE", "key": start, "range_end": end}
        post(etcd, "/v3/auth/role/grant", {"name": "agent", "perm": permission})
        post(etcd, "/v3/auth/enable", {})

    def open(self, user: str | None = "agent", prefix: str = "job") -> EtcdStore:
        file = None if user is None else str(self.password_file)
        options = EtcdOptions(endpoints=(self.etcd.url,), user=user, password_file=file)
        return open_etcd(options, prefix, timeout_s=LONG_S)

    def as_root(self, path: str, body: object) -> None:
        token = post(self.etcd, "/v3/auth/authenticate", {"name": "root", "password": "secret"})["token"]
        post(self.etcd, path, body, token)


@pytest.fixture
def guarded(tmp_path: pathlib.Path) -> Iterator[Guarded]:
    with one_etcd(tmp_path, more=("--auth-token-ttl", "2")) as etcd:
        yield Guarded(etcd, tmp_path)


def test_a_user_with_rights_may_do_all_of_it(guarded: Guarded) -> None:
    store = guarded.open()
    told = threading.Event()
    end = store.watch("control", told.set)
    store.compare_and_set("control", 0, b"x")
    assert told.wait(LONG_S)
    store.put({"key": b"value"})
    store.put_listed("nodes", "n0", b"value")
    assert store.list_all("nodes") == {"n0": b"value"}
    store.delete(["key"])
    store.drop("nodes")
    store.tidy()
    store.tidy()
    end()
    store.close()


def test_who_has_no_rights_is_told(guarded: Guarded, tmp_path: pathlib.Path) -> None:
    assert code_of(lambda: guarded.open(user=None)) == "store_rights"
    assert code_of(lambda: guarded.open(user="nobody")) == "store_rights"
    assert code_of(lambda: guarded.open(prefix="another")) == "store_rights"
    store = guarded.open()
    guarded.password_file.write_text("wrong\n")
    assert code_of(guarded.open) == "store_rights"
    guarded.password_file.unlink()
    assert code_of(guarded.open) == "bad_password_file"
    store.put({"key": b"value"})
    guarded.as_root("/v3/auth/user/revoke", {"name": "agent", "role": "agent"})
    assert code_of(lambda: store.put({"key": b"value"})) == "store_rights"
    assert code_of(lambda: store.compare_and_set("control", 0, b"")) == "store_rights"


def test_a_token_that_has_expired_is_renewed(guarded: Guarded) -> None:
    """Its time to live is 2 s here, counted from its last use; that it is over is seen in a call of our own with it."""
    store = guarded.open()
    stands = store.compare_and_set("control", 0, b"0")
    guarded.etcd.restart()  # which forgets every token
    store.put_listed("nodes", "n0", b"value")
    assert store.list_all("nodes") == {"n0": b"value"}
    token = post(guarded.etcd, "/v3/auth/authenticate", {"name": "agent", "password": "secret"})["token"]
    pause = threading.Event()

    def expired() -> bool:
        pause.wait(4)  # each look at it would lengthen its life
        with contextlib.suppress(AssertionError):
            post(guarded.etcd, "/v3/kv/range", {"key": base64.b64encode(b"job").decode()}, token)
            return False
        return True

    until(expired, "the token does not expire")
    stands = store.compare_and_set("control", stands.revision, b"1")
    assert stands.value == b"1"
    guarded.etcd.restart()
    with contextlib.suppress(UnavailableError):  # the line broke
        stands = store.compare_and_set("control", stands.revision, b"2")
    found = store.read("control")
    assert found is not None
    assert store.compare_and_set("control", found.revision, b"3").value == b"3"


def test_a_password_that_was_changed_is_read_anew(guarded: Guarded) -> None:
    store = guarded.open()
    guarded.as_root("/v3/auth/user/changepw", {"name": "agent", "password": "new"})
    guarded.password_file.write_text("new\n")
    store.put({"key": b"value"})
    assert store.get(["key"]) == {"key": b"value"}


def test_a_user_where_none_is_needed(shared_etcd: Etcd, tmp_path: pathlib.Path) -> None:
    (tmp_path / "password").write_text("secret")
    options = EtcdOptions(endpoints=(shared_etcd.url,), user="agent", password_file=str(tmp_path / "password"))
    assert open_etcd(options, "no-user-needed", timeout_s=LONG_S).read("control") is None
