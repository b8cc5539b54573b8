"""A store by its endpoint, as people write it."""

from __future__ import annotations

from holdfast.errors import UsageError
from holdfast.rendezvous.endpoint import host_and_port
from holdfast.rendezvous.etcd import EtcdOptions, open_etcd
from holdfast.rendezvous.kv import KeyValueStore
from holdfast.rendezvous.tcp import PATIENCE, connect_tcp
from holdfast.rendezvous.tcp_store import Patience

FORMS = "write HOST:PORT or tcp://HOST:PORT for the embedded store, etcd://HOST:PORT,… or etcds://HOST:PORT,… for etcd"
_SCHEMES = {"etcd": "http", "etcds": "https"}


def is_tcp(endpoint: str) -> bool:
    """It names the embedded store, which some process of the job has to serve."""
    scheme, _, place = endpoint.rpartition("://")
    return bool(place) and scheme in ("", "tcp")


def tcp_place(endpoint: str) -> tuple[str, int]:
    """Host and port of an embedded store. UsageError code "bad_endpoint"."""
    if not is_tcp(endpoint):
        raise UsageError(f"{endpoint!r} is no endpoint of an embedded store", code="bad_endpoint", hint=FORMS)
    try:
        return host_and_port(endpoint.rpartition("://")[2])
    except UsageError as error:
        raise UsageError(f"{endpoint!r} is no endpoint", code="bad_endpoint", hint=FORMS) from error


def etcd_endpoints(endpoint: str) -> tuple[str, ...]:
    """The base URLs behind "etcd://a:2379,b:2379". UsageError code "bad_endpoint"."""
    scheme, _, places = endpoint.partition("://")
    try:
        if scheme not in _SCHEMES:
            raise UsageError("neither etcd:// nor etcds://", code="bad_endpoint")
        pairs = [host_and_port(place.strip()) for place in places.split(",")]
    except UsageError as error:
        raise UsageError(f"{endpoint!r} is no endpoint of etcd", code="bad_endpoint", hint=FORMS) from error
    return tuple(
        f"{_SCHEMES[scheme]}://[{host}]:{port}" if ":" in host else f"{_SCHEMES[scheme]}://{host}:{port}"
        for host, port in pairs
    )


def open_store(
    endpoint: str,
    prefix: str,
    *,
    timeout_s: float,
    user: str | None = None,
    password_file: str | None = None,
    ca_file: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    compact: bool = True,
    patience: Patience = PATIENCE,
) -> KeyValueStore:
    """A client of the store at `endpoint`; its keys lie below `prefix`.

    Args:
        endpoint: "HOST:PORT", "tcp://HOST:PORT", "etcd://HOST:PORT,HOST:PORT" or "etcds://…" (TLS).
        timeout_s: how long to ask again while nobody answers there (seconds).
        patience: with an embedded store.
        user … compact: as in `EtcdOptions`, for etcd alone.

    Raises:
        UsageError: code "bad_endpoint", and those of `connect_tcp` and `open_etcd`.
        UnavailableError: code "store_unavailable": nobody answered in time.
    """
    if is_tcp(endpoint):
        if user is not None or password_file is not None or ca_file is not None or cert_file is not None:
            raise UsageError(
                "the embedded store knows neither users nor certificates",
                code="bad_endpoint",
                hint="leave them out, or use etcd",
            )
        host, port = tcp_place(endpoint)
        return connect_tcp(host, port, prefix, timeout_s, patience=patience)
    options = EtcdOptions(
        endpoints=etcd_endpoints(endpoint),
        user=user,
        password_file=password_file,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        compact=compact,
    )
    return open_etcd(options, prefix, timeout_s=timeout_s)
