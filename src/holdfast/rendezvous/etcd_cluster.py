"""An etcd cluster that the job carries itself: who its members are, whether they answer, one replaced by another."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from holdfast.errors import UnavailableError, UsageError
from holdfast.rendezvous.etcd_http import EtcdOptions, Gateway

ANSWER_S = 1.5
CHANGE_S = 8.0  # etcd's own limit for a change of its members


class Member(msgspec.Struct, frozen=True):
    """A member as the others know it. One that was never started has no `clients`; one that was added, no name yet."""

    id: str = msgspec.field(name="ID", default="")
    name: str = ""
    peers: tuple[str, ...] = msgspec.field(name="peerURLs", default=())
    clients: tuple[str, ...] = msgspec.field(name="clientURLs", default=())


class Health(msgspec.Struct, frozen=True):
    """How many members of a cluster answer (and know a leader), of how many."""

    answering: int
    members: int

    @property
    def degraded(self) -> bool:
        return self.answering < self.members

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.answering} of {self.members} etcd members answer"

    @property
    def works(self) -> bool:
        return self.answering > self.members // 2


class _Members(msgspec.Struct):
    members: tuple[Member, ...] = ()


class _Said(msgspec.Struct):
    health: str = ""


class _Status(msgspec.Struct):
    leader: str = ""


class Cluster:
    """Calls about the members, over any of these endpoints ("http://host:port") that answers."""

    def __init__(self, endpoints: Iterable[str], options: EtcdOptions | None = None) -> None:
        self.endpoints = tuple(endpoints)
        if options is None:
            options = EtcdOptions(endpoints=self.endpoints)
        self._gateway = Gateway(options, hosts_known=False)  # members start in any order

    def answers(self, endpoint: str) -> bool:
        """It is up, and knows a leader."""
        try:
            return self._gateway.ask(endpoint, "/health", _Said, limit_s=ANSWER_S).health == "true"
        except (UnavailableError, UsageError):
            return False

    def members(self) -> tuple[Member, ...] | None:
        """As the first endpoint says that answers and knows a leader; None: there is none."""
        for endpoint in self.endpoints:
            try:
                status = self._gateway.ask(endpoint, "/v3/maintenance/status", _Status, limit_s=ANSWER_S, body={})
                if status.leader:
                    return self._gateway.ask(
                        endpoint, "/v3/cluster/member/list", _Members, limit_s=ANSWER_S, body={}
                    ).members
            except (UnavailableError, UsageError):
                continue
        return None

    def remove(self, member: Member) -> None:
        """UnavailableError: the others did not agree (yet)."""
        self._change("/v3/cluster/member/remove", {"ID": member.id})

    def add(self, peer_url: str) -> None:
        """UnavailableError: the others did not agree (yet)."""
        self._change("/v3/cluster/member/add", {"peerURLs": [peer_url]})

    def _change(self, path: str, body: object) -> None:
        for endpoint in self.endpoints:
            if self.answers(endpoint):
                self._gateway.ask(endpoint, path, _Members, limit_s=CHANGE_S, body=body)
                return
        raise UnavailableError("no member of the cluster answers", code="store_unavailable")

    def close(self) -> None:
        self._gateway.close()


def health(endpoints: Iterable[str], options: EtcdOptions | None = None) -> Health:
    """How many members answer, of how many: of those that the cluster lists, or of these endpoints if nobody can say.

    Over within a few seconds, and never raises UnavailableError.
    """
    cluster = Cluster(endpoints, options)
    try:
        members = cluster.members()
        urls = set(cluster.endpoints)
        if members is not None:
            listed = [sorted(member.clients, key=lambda url: url not in urls)[:1] for member in members]
            return Health(sum(any(map(cluster.answers, known)) for known in listed), len(members))
        return Health(sum(map(cluster.answers, cluster.endpoints)), len(cluster.endpoints))
    finally:
        cluster.close()
