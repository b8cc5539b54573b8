"""Settings: what a node brings to a job, read from torchrun's rendezvous options and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from holdfast.core.membership import NO_DOMAIN, NO_INFRA_RANK, Policy, check_name, check_policy
from holdfast.errors import UsageError

DEFAULT_PORT = 29512
DEFAULT_ENDPOINT = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_RUN = "default"
PORT_MAX = 65535
DEFAULTS = Policy()
VARIABLES = "HOLDFAST_RDZV_"  # not those that workers find: a job may be started from within a worker of another

T = TypeVar("T")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One node's settings.

    Attributes:
        endpoint: where the store is: HOST:PORT or tcp://… (TCPStore), etcd://… or etcds://….
        run, attempt: which job. attempt None: told by nobody.
        policy: the job's rules; those of the first node count.
        node: this node's name; None: made from `host`, or the host's own name.
        infra_rank, domain, group, group_size: its place; see `core.membership.Node`.
        address: where workers reach this node; None: found out.
        port_range: ports for the workers' store, both ends included; None: any.
        health_check: a shell command that must succeed before this node joins a round.
        stop_grace_s: how long workers may take to end before they are killed (seconds).
        join_s: how long the store is waited for at the start (seconds).
        events: a file for this process's events, or a directory in which it makes one.
        metrics: HOST:PORT to serve this agent's metrics at.
        user, password_file, ca_file, cert_file, key_file: for etcd.
        compact: whether etcd's history may be let go of.
    """

    endpoint: str = DEFAULT_ENDPOINT
    run: str = DEFAULT_RUN
    attempt: str | None = None
    policy: Policy = Policy()
    node: str | None = None
    host: str | None = None
    infra_rank: int = NO_INFRA_RANK
    domain: str = NO_DOMAIN
    group: str = ""
    group_size: int = 1
    address: str | None = None
    port_range: tuple[int, int] | None = None
    health_check: str | None = None
    stop_grace_s: float = 10.0
    join_s: float = 60.0
    events: str | None = None
    metrics: str | None = None
    user: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    compact: bool = True


# What may be said by --rdzv-conf name=value, and by the environment as HOLDFAST_RDZV_NAME.
WORDS = (
    *("attempt", "node", "infra_rank", "domain", "replacement_group", "address", "port_range", "health_check"),
    *("spares", "segment", "lease", "last_call", "stop", "timeout", "restart_budget", "node_budget"),
    *("stop_grace", "join", "events", "metrics"),
    *("user", "password_file", "ca_file", "cert_file", "key_file", "compact"),
)
TORCH_WORDS = frozenset({"read_timeout", "is_host", "join_timeout", "last_call_timeout", "close_timeout", "rank"})


def read_settings(
    *,
    endpoint: str,
    run: str,
    min_nodes: int,
    max_nodes: int,
    local_addr: str | None,
    config: Mapping[str, object],
    environment: Mapping[str, str],
) -> Settings:
    """The settings that torchrun's options and the environment give.

    Raises:
        UsageError: code "bad_setting", "bad_policy" or "bad_name": says which one, and what it may be.
    """
    unknown = sorted(set(config) - set(WORDS) - TORCH_WORDS)
    if unknown:
        raise UsageError(
            f"--rdzv-conf has no {unknown[0]!r}", code="bad_setting", hint=f"it may have: {', '.join(sorted(WORDS))}"
        )
    said: dict[str, str] = {
        word: environment[name] for word in WORDS if (name := f"{VARIABLES}{word.upper()}") in environment
    }
    said |= {word: str(value) for word, value in config.items() if word in WORDS and value is not None}
    words = _Words(said)
    group, group_size = _group(words.text("replacement_group"))
    node = words.text("node")
    return Settings(
        endpoint=endpoint or DEFAULT_ENDPOINT,
        run=check_name(run if run and run != "none" else DEFAULT_RUN),
        attempt=_attempt(words.text("attempt"), environment),
        policy=check_policy(_policy(words, min_nodes, max_nodes)),
        node=check_name(node) if node else None,
        host=environment.get("SLURMD_NODENAME"),
        infra_rank=words.whole("infra_rank", _infra_rank(environment)),
        domain=check_name(words.text("domain") or NO_DOMAIN),
        group=group,
        group_size=group_size,
        address=words.text("address") or local_addr,
        port_range=_port_range(words.text("port_range")),
        health_check=words.text("health_check"),
        stop_grace_s=words.seconds("stop_grace", 10.0),
        join_s=words.seconds("join", 60.0),
        events=words.text("events"),
        metrics=words.text("metrics"),
        user=words.text("user"),
        password_file=words.text("password_file"),
        ca_file=words.text("ca_file"),
        cert_file=words.text("cert_file"),
        key_file=words.text("key_file"),
        compact=words.switch("compact", default=True),
    )


def _policy(words: _Words, min_nodes: int, max_nodes: int) -> Policy:
    return Policy(
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        spares=words.whole("spares", 0),
        segment=words.whole("segment", 1),
        lease_s=words.seconds("lease", 0.0),
        last_call_s=words.seconds("last_call", DEFAULTS.last_call_s),
        stop_s=words.seconds("stop", DEFAULTS.stop_s),
        wait_s=words.seconds("timeout", DEFAULTS.wait_s),
        restart_budget=words.whole("restart_budget", DEFAULTS.restart_budget),
        node_budget=words.whole("node_budget", DEFAULTS.node_budget),
    )


class _Words:
    """Settings as words, each read as what it should be."""

    def __init__(self, said: Mapping[str, str]) -> None:
        self._said = said

    def text(self, word: str) -> str | None:
        value = self._said.get(word)
        return value or None

    def whole(self, word: str, default: int) -> int:
        return self._as(word, int, default, "a whole number")

    def seconds(self, word: str, default: float) -> float:
        return self._as(word, float, default, "a number of seconds")

    def switch(self, word: str, *, default: bool) -> bool:
        value = (self.text(word) or str(default)).lower()
        if value not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"{word} is {value!r}", code="bad_setting", hint="give yes or no")
        return value in ("true", "1", "yes")

    def _as(self, word: str, kind: Callable[[str], T], default: T, what: str) -> T:
        text = self.text(word)
        if text is None:
            return default
        try:
            return kind(text)
        except ValueError as error:
            raise UsageError(f"{word} is {text!r}", code="bad_setting", hint=f"give {what}") from error


def _group(text: str | None) -> tuple[str, int]:
    """`rack-3:4` is a replacement group with an id and a size."""
    if text is None:
        return "", 1
    name, _, size = text.rpartition(":")
    if not name or not size.isdigit() or int(size) < 1:
        raise UsageError(
            f"replacement group {text!r} has no id, or no size",
            code="bad_setting",
            hint="give ID:SIZE, such as rack-3:4; every node of one group gives the same",
        )
    return check_name(name), int(size)


def _port_range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition("-")
    if not low.isdigit() or not high.isdigit() or not 0 < int(low) <= int(high) <= PORT_MAX:
        raise UsageError(
            f"{text!r} is no range of ports", code="bad_setting", hint="give LOW-HIGH, such as 29600-29699"
        )
    return int(low), int(high)


def _attempt(text: str | None, environment: Mapping[str, str]) -> str | None:
    """As told; else what the scheduler says, so that a requeued job starts clean."""
    if text is not None:
        return check_name(text)
    if "SLURM_JOB_ID" in environment:
        return check_name(f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_RESTART_COUNT') or '0'}")
    return None


def _infra_rank(environment: Mapping[str, str]) -> int:
    for name in ("SLURM_PROCID", "GROUP_RANK"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return NO_INFRA_RANK
