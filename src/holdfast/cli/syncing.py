"""`holdfast sync`: brings channels' versions into inference servers, until it is told to stop."""

from __future__ import annotations

import logging
import pathlib
import sys
import threading
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from holdfast.cli.options import Flag
from holdfast.cli.output import DONE, FAILED, to_json
from holdfast.cli.schema import Syncing
from holdfast.errors import UsageError
from holdfast.sync.config import (
    ChannelConfig,
    HooksConfig,
    ServerConfig,
    SyncConfig,
    check_config,
    load_config,
)
from holdfast.sync.process import Sync

logger = logging.getLogger("holdfast.sync")

LOOK_S = 0.5
Many = Annotated[tuple[str, ...], Parameter(consume_multiple=False, negative="", show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Servers:
    """Which servers, and how they are fed."""

    url: Many = ()
    "An inference server's address; once for each server."
    engine: Literal["vllm", "sglang", "dynamo"] = "vllm"
    "What the servers are."
    engine_token_file: pathlib.Path | None = None
    "A file with the token that the servers want."
    path_map: Many = ()
    "OURS=THEIRS, where the servers see our paths elsewhere."
    residents: int = 2
    "How many versions of a channel may be on a server at once."
    residents_total: int | None = None
    "How many of all channels together."
    linger: float = 1.0
    "How long a version's name goes on being served after a newer one was (seconds)."
    drain: float = 600.0
    "How long requests of an unloaded version are waited for (seconds)."
    tries: int = 5
    "How often a version is tried that a server cannot see."
    canary: Flag = False
    "Compare a completion with what the publisher put into the manifest."

    def settings(self) -> tuple[ServerConfig, ...]:
        token_file = None if self.engine_token_file is None else str(self.engine_token_file)
        return tuple(
            ServerConfig(
                url=url,
                engine=self.engine,
                token_file=token_file,
                path_map=self.path_map,
                residents=self.residents,
                residents_total=self.residents_total,
                linger_s=self.linger,
                drain_s=self.drain,
                tries=self.tries,
                canary=self.canary,
            )
            for url in self.url
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Channels:
    """What is in the channels, and how they are followed."""

    adapter: str | None = None
    "The name that clients know; with a pattern, {match} stands for what its wildcards match."
    weights: Literal["adapter", "full"] = "adapter"
    "What the channel has: a LoRA adapter, or the full model."
    naming: Literal["versioned", "stable"] = "versioned"
    "versioned: each version under a name of its own. stable: always the same name, swapped while paused."
    base_model: str | None = None
    "What the servers' base model may be called; any: check nothing."
    claims: str | None = None
    "Where the channel's consumers/ and sweepers/ lie, if it is read-only here; the trainer has to have the same."
    retire: float = 60.0
    "How long a channel that a pattern found must be gone before it has ended (seconds)."
    visibility_bound: float | None = None
    "How late things may become visible on this mount (seconds)."
    lease: float | None = None
    "After which silence others take this process for dead (seconds)."
    poll: float | None = None
    "Longest time between two looks at a channel (seconds)."
    patience: float | None = None
    "How long a version that can't be read is looked at again (seconds). Default: by the visibility bound, 1 to 90."

    def settings(self, paths: tuple[str, ...]) -> tuple[ChannelConfig, ...]:
        return tuple(
            ChannelConfig(
                path=path,
                adapter=self.adapter,
                weights=self.weights,
                naming=self.naming,
                base_model=self.base_model,
                claims=self.claims,
            )
            for path in paths
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Process:
    """The process itself."""

    name: str | None = None
    "This process's name in the channels, one per host. Default: sync-HOSTNAME."
    stage: str | None = None
    "A local directory for verified copies that the servers can read; off: they load from the channel."
    stage_only: Flag = False
    "Keep verified copies on this host and feed no server."
    stage_bytes: int | None = None
    "How much the copies of one channel may take."
    keep: int = 3
    "With --stage-only, how many newest copies stay."
    drive: Literal["auto", "manual"] = "auto"
    "auto: the newest version, at once. manual: what is applied by POST /apply."
    listen: str = "127.0.0.1:8600"
    "HOST:PORT of the own HTTP; off: none."
    token_file: pathlib.Path | None = None
    "A file with the token that callers of the own HTTP must show."
    hook_before: str | None = None
    "A URL that is told before each change, and may object."
    hook_after: str | None = None
    "A URL that is told after each change."
    config: pathlib.Path | None = None
    "A TOML file that says all of this instead."
    json: Flag = False
    "Print the line on stdout as JSON; errors too."


SERVERS, CHANNELS, PROCESS = Servers(), Channels(), Process()


def sync(
    *channels: str,
    servers: Servers = SERVERS,
    follow: Channels = CHANNELS,
    process: Process = PROCESS,
) -> int:
    """Bring the newest version of each channel into each server, safely, and say what is served. Runs until stopped.

    SIGTERM leaves what is served in place; the next one under the same --name goes on from there.

    Args:
        channels: channels' directories, or quoted patterns of channels that come and go ('runs/*/weights').
    """
    if process.config is None:
        return run(check_config(_told(channels, servers, follow, process)), as_json=process.json)
    if channels or servers.url:
        raise UsageError("--config says it all", code="usage", hint="give flags or --config, not both")
    return run(load_config(process.config), as_json=process.json)


def _told(channels: tuple[str, ...], servers: Servers, follow: Channels, process: Process) -> SyncConfig:
    """What the flags say."""
    config = SyncConfig(
        channels=follow.settings(channels),
        servers=servers.settings(),
        stage=process.stage,
        stage_only=process.stage_only,
        keep=process.keep,
        stage_bytes=process.stage_bytes,
        drive=process.drive,
        listen=None if process.listen == "off" else process.listen,
        token_file=None if process.token_file is None else str(process.token_file),
        hooks=HooksConfig(before=process.hook_before, after=process.hook_after),
        retire_s=follow.retire,
        visibility_bound_s=follow.visibility_bound,
        lease_s=follow.lease,
        poll_s=follow.poll,
        patience_s=follow.patience,
    )
    return config if process.name is None else msgspec.structs.replace(config, name=process.name)


def run(config: SyncConfig, *, as_json: bool = False) -> int:
    """Run until a signal, or until there is nothing left to do. Says on stdout where its own HTTP is."""
    logging.getLogger("holdfast.sync").setLevel(logging.INFO)
    process = Sync(config)
    try:
        process.start()
        url = process.api.url if process.api is not None else None
        sys.stdout.write((to_json(Syncing(url=url, name=config.name)) if as_json else f"listening on {url}") + "\n")
        sys.stdout.flush()
        logger.info("listening on %s", url or "nothing")
        never = threading.Event()
        while not process.failed:
            never.wait(LOOK_S)
        logger.error("%s", process.failed)
        return FAILED
    except SystemExit:  # SIGTERM: what is served stays
        return DONE
    finally:
        process.stop()
