"""What a sync process is told: from flags, or from a TOML file with the same names. Unknown keys are errors."""

from __future__ import annotations

import difflib
import os
import pathlib
import socket
import tomllib
from typing import Any, Literal

import msgspec

from holdfast.core.names import check_participant
from holdfast.core.servers import Policy, Way
from holdfast.engines.http import check_url
from holdfast.errors import UsageError

OFF = "off"
ADAPTER_DEFAULT = "policy"
GLOB = frozenset("*?[")


class ChannelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One channel, or a pattern of channels that come and go (`runs/*/weights`).

    Attributes:
        path: its directory, or a pattern with *, ? or [...].
        adapter: the name that clients know. `{match}` is what the pattern's wildcards stand for.
        weights: "adapter", or "full" for the whole model.
        naming: "versioned" (a name per version) or "stable" (always the same name).
        base_model: what the servers' base model may be called beside what the manifest requires; "any" checks nothing.
        claims: where consumers/ and sweepers/ lie, if not in the channel; the trainer has the same. `{match}` as above.
    """

    path: str
    adapter: str | None = None
    weights: Literal["adapter", "full"] = "adapter"
    naming: Literal["versioned", "stable"] = "versioned"
    base_model: str | None = None
    claims: str | None = None

    @property
    def is_pattern(self) -> bool:
        return not GLOB.isdisjoint(self.path)

    @property
    def way(self) -> Way:
        if self.weights == "full":
            return Way.WEIGHTS
        return Way.STABLE if self.naming == "stable" else Way.VERSIONED


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One inference server.

    Attributes:
        url: its base, "http://host:port".
        engine: "vllm", "sglang" or "dynamo".
        token_file: a file with the bearer token that it wants; read at each call.
        path_map: "OURS=THEIRS" pairs: where the server sees our paths.
        residents: how many versions of one channel may be on it at once (at least 2 with naming "versioned").
        residents_total: how many of all channels together; None: no limit.
        linger_s: how long a name goes on being served after a newer one was (seconds).
        drain_s: how long requests of an unloaded version are waited for (seconds).
        tries: how often a version is tried that the server can't see.
        canary: compare a completion with what the manifest's metadata says under "canary".
    """

    url: str
    engine: str = "vllm"
    token_file: str | None = None
    path_map: tuple[str, ...] = ()
    residents: int = 2
    residents_total: int | None = None
    linger_s: float = 1.0
    drain_s: float = 600.0
    tries: int = 5
    canary: bool = False

    def policy(self, channel: ChannelConfig, adapter: str, *, hooks: bool) -> Policy:
        return Policy(
            way=channel.way,
            adapter=adapter,
            residents=self.residents,
            linger_s=self.linger_s,
            drain_s=self.drain_s,
            tries=self.tries,
            canary=self.canary,
            hooks=hooks,
        )

    def mapped(self, path: pathlib.Path) -> str:
        """`path` as the server sees it."""
        text = str(path)
        for pair in self.path_map:
            ours, _, theirs = pair.partition("=")
            if text == ours or text.startswith(ours.rstrip("/") + "/"):
                return theirs.rstrip("/") + text[len(ours.rstrip("/")) :]
        return text


class HooksConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Webhooks: URLs that are told of a change. `before` may object by any status but 2xx: then it waits."""

    before: str | None = None
    after: str | None = None
    token_file: str | None = None
    timeout_s: float = 30.0


class SyncConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sync process.

    Attributes:
        channels, servers: every channel is brought into every server.
        name: the consumer's name in each channel; one per host.
        stage: a directory on a local disk for verified copies, which the servers can read; default: one of this user's
            in /var/tmp. "off": servers load from the channel itself.
        stage_only: only keep copies (for hosts of an engine whose workers span hosts); no servers.
        keep: with stage_only, how many newest copies of a channel are kept.
        stage_bytes: how much the copies of one channel may take; None: what the disk has.
        drive: "auto": the newest version, at once. "manual": what is applied by POST /apply.
        listen: HOST:PORT of the own HTTP; None: none.
        token_file: a file with the token that callers of the own HTTP must have.
        discover_s: time between two looks for channels that come and go (seconds).
        retire_s: for how long a discovered channel must be gone before it counts as ended (seconds).
        visibility_bound_s, lease_s, patience_s: as for a consumer.
    """

    channels: tuple[ChannelConfig, ...]
    servers: tuple[ServerConfig, ...] = ()
    name: str = msgspec.field(default_factory=lambda: f"sync-{socket.gethostname()[:80]}")
    stage: str | None = None
    stage_only: bool = False
    keep: int = 3
    stage_bytes: int | None = None
    drive: Literal["auto", "manual"] = "auto"
    listen: str | None = "127.0.0.1:8600"
    token_file: str | None = None
    hooks: HooksConfig = HooksConfig()
    discover_s: float = 2.0
    retire_s: float = 60.0
    visibility_bound_s: float | None = None
    lease_s: float | None = None
    patience_s: float | None = None
    poll_s: float | None = None

    @property
    def stage_path(self) -> pathlib.Path | None:
        if self.stage == OFF:
            return None
        return pathlib.Path(self.stage if self.stage is not None else f"/var/tmp/holdfast-{os.getuid()}").absolute()


def load_config(path: pathlib.Path) -> SyncConfig:
    """The configuration in a TOML file.

    Raises:
        UsageError: code "bad_config": it can't be read, is no TOML, or has a key or value that means nothing.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}", code="bad_config", hint="give a TOML file that can be read") from error
    return check_config(convert(raw, SyncConfig, str(path)))


def convert(raw: dict[str, Any], kind: type[SyncConfig], where: str) -> SyncConfig:
    """`raw` as a configuration; a misspelt key is told with the one that was meant."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        raise UsageError(f"{where}: {text}", code="bad_config", hint=_meant(text)) from error


def _meant(text: str) -> str:
    """A hint for an error about an unknown key: the known keys that look like it."""
    known = {name for kind in (SyncConfig, ChannelConfig, ServerConfig, HooksConfig) for name in kind.__struct_fields__}
    parts = text.split("`")
    if "unknown field" not in text or len(parts) < 2:
        return "docs/sync.md lists what it may say"
    near = difflib.get_close_matches(parts[1], sorted(known), n=1)
    return f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(sorted(known))}"


def check_config(config: SyncConfig) -> SyncConfig:
    """`config` if it makes sense. UsageError code "bad_config": what does not, and what to say instead."""
    check_participant(config.name)
    for channel in config.channels:
        if channel.adapter is not None:
            check_participant(channel.adapter.replace("{match}", "m"))
    problem, hint = _problem(config)
    if problem:
        raise UsageError(problem, code="bad_config", hint=hint)
    for server in config.servers:
        check_url(server.url)
    for url in (config.hooks.before, config.hooks.after):
        if url is not None:
            check_url(url)
    return config


def _problem(config: SyncConfig) -> tuple[str, str]:
    if not config.channels:
        return "there is no channel to follow", "give a channel's directory"
    if config.stage_only and (config.servers or config.stage == OFF):
        return "stage_only keeps copies and feeds no server", "give stage=DIRECTORY, and no server"
    if not config.stage_only and not config.servers:
        return "there is no server to feed", "give --url, or --stage-only"
    urls = [server.url.rstrip("/") for server in config.servers]
    if len(set(urls)) < len(urls):
        return "one server is given twice", "give each server once"
    adapters = [channel.adapter or ADAPTER_DEFAULT for channel in config.channels if not channel.is_pattern]
    twice = sorted({adapter for adapter in adapters if adapters.count(adapter) > 1})
    if twice:
        return f"two channels would be served as {twice[0]!r}", "give each channel an adapter name of its own"
    if sum(channel.weights == "full" for channel in config.channels) > 1 or any(
        channel.weights == "full" and channel.is_pattern for channel in config.channels
    ):
        return "a server has full weights of one channel only", "give one channel with weights = full"
    claims = [channel.claims for channel in config.channels if channel.claims is not None]
    if len(set(claims)) < len(claims) or any(
        channel.claims and "{match}" not in channel.claims for channel in config.channels if channel.is_pattern
    ):
        return "two channels would have one place for claims", "give each its own; {match} stands for the pattern's"
    return _bad_server(config)


def _bad_server(config: SyncConfig) -> tuple[str, str]:
    for server in config.servers:
        if server.residents < 2 and any(channel.way is Way.VERSIONED for channel in config.channels):
            return f"residents = {server.residents}", "give at least 2: one is loaded while the other one serves"
        bad = [pair for pair in server.path_map if not all(pair.partition("="))]
        if bad:
            return f"path_map {bad[0]!r}", "write OURS=THEIRS"
    return "", ""


def read_token(path: str | None) -> str | None:
    """The token in a file, read afresh. UsageError code "no_token": there is none to be read."""
    if path is None:
        return None
    try:
        token = pathlib.Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", code="no_token", hint="write the token into this file") from error
    if not token or not token.isprintable() or not token.isascii():
        raise UsageError(f"{path} has no token", code="no_token", hint="write the token into this file, on one line")
    return token
