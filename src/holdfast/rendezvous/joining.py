"""Joining: from a node's settings to its agent: find the store, or become its host, and say who this node is."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

from holdfast import __version__
from holdfast.core.membership import Node
from holdfast.core.placement import check_groups
from holdfast.core.rosters import candidates
from holdfast.errors import UsageError
from holdfast.events import EventLog, log_to
from holdfast.rendezvous.agent import Agent
from holdfast.rendezvous.clerk import Clerk
from holdfast.rendezvous.endpoint import host_and_port
from holdfast.rendezvous.hosting import is_ours
from holdfast.rendezvous.kv import KeyValueStore
from holdfast.rendezvous.local import Local
from holdfast.rendezvous.open import etcd_endpoints, is_tcp, open_store, tcp_place
from holdfast.rendezvous.ports import local_address, node_name
from holdfast.rendezvous.settings import Settings
from holdfast.rendezvous.tcp import serve_tcp

if TYPE_CHECKING:
    from holdfast.rendezvous.metrics import AgentMetrics


def join(settings: Settings) -> Agent:
    """The agent of this node, connected to its job's store; it begins when it is first asked for a round.

    Raises:
        UsageError: the endpoint, the store or a setting is wrong; code "cannot_listen": `metrics` cannot be served.
        UnavailableError: nobody is at the endpoint.
    """
    if settings.metrics is None:
        return _join(settings, None)
    from holdfast.rendezvous.metrics import AgentMetrics  # nobody else pays for the library

    metrics = AgentMetrics(settings.metrics)  # before a store is served that others come to rely on
    try:
        return _join(settings, metrics)
    except BaseException:
        metrics.close()
        raise


def _join(settings: Settings, metrics: AgentMetrics | None) -> Agent:
    host, port = _place(settings.endpoint)
    server = _serve(host, port) if is_tcp(settings.endpoint) and is_ours(host, port) else None
    store = _open(settings)
    name = node_name(settings.node, settings.run, host=settings.host)
    node = Node(
        node=name,
        incarnation=secrets.token_hex(4),
        host=socket.gethostname(),
        address=settings.address or local_address(host, port),
        pid=os.getpid(),
        infra_rank=settings.infra_rank,
        domain=settings.domain,
        group=settings.group,
        group_size=settings.group_size,
        version=__version__,
    )
    check_groups(candidates([node.member], {node.member: node}), settings.policy)
    process = f"agent-{name}"
    events = log_to(settings.events, process) if settings.events else EventLog(None, process)
    local = Local(settings, node, secrets.token_hex(16))
    clerk = Clerk(
        store if metrics is None else metrics.count(store),
        node,
        local,
        run=settings.run,
        attempt=settings.attempt,
        policy=settings.policy,
        server=server,
        events=events,
    )
    if metrics is not None:
        metrics.tell_of(clerk, events)
    return Agent(settings.run, clerk, local, metrics)


def _place(endpoint: str) -> tuple[str, int]:
    """The store's host and port; of several, those of the first."""
    if is_tcp(endpoint):
        return tcp_place(endpoint)
    return host_and_port(etcd_endpoints(endpoint)[0].partition("://")[2])


def _serve(host: str, port: int) -> object | None:
    """The store's server in this process; None: another agent on this machine was quicker."""
    try:
        server: object = serve_tcp(host, port)[0]
        return server
    except UsageError as error:
        if error.code != "port_in_use":
            raise
        return None


def _open(settings: Settings) -> KeyValueStore:
    return open_store(
        settings.endpoint,
        settings.run,
        timeout_s=settings.join_s,
        user=settings.user,
        password_file=settings.password_file,
        ca_file=settings.ca_file,
        cert_file=settings.cert_file,
        key_file=settings.key_file,
        compact=settings.compact,
    )
