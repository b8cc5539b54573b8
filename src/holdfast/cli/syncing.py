"""`holdfast sync`: brings channels' versions into inference servers, until it is told to stop."""

from __future__ import annotations

import logging
import pathlib
import threading
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from holdfast.cli.options import Flag
from holdfast.cli.output import DONE, FAILED
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


def sync(
    *channels: str,
    url: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = (),
    engine: Literal["vllm", "sglang", "dynamo"] = "vllm",
    adapter: str | None = None,
    weights: Literal["adapter", "full"] = "adapter",
    naming: Literal["versioned", "stable"] = "versioned",
    name: str | None = None,
    stage: str | None = None,
    stage_only: Flag = False,
    stage_bytes: int | None = None,
    keep: int = 3,
    path_map: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = (),
    base_model: str | None = None,
    residents: int = 2,
    residents_total: int | None = None,
    linger: float = 1.0,
    drain: float = 600.0,
    tries: int = 5,
    canary: Flag = False,
    drive: Literal["auto", "manual"] = "auto",
    listen: str = "127.0.0.1:8600",
    token_file: pathlib.Path | None = None,
    engine_token_file: pathlib.Path | None = None,
    hook_before: str | None = None,
    hook_after: str | None = None,
    retire: float = 60.0,
    visibility_bound: float | None = None,
    lease: float | None = None,
    poll: float | None = None,
    config: pathlib.Path | None = None,
) -> int:
    """Bring the newest version of each channel into each server, safely, and say what is served. Runs until stopped.

    SIGTERM leaves what is served in place; the next one under the same --name goes on from there.

    Args:
        channels: channels' directories, or quoted patterns of channels that come and go ('runs/*/weights').
        url: an inference server's address; once for each server.
        engine: what the servers are.
        adapter: the name that clients know; with a pattern, {match} stands for what its wildcards match.
        weights: what the channel has: a LoRA adapter, or the full model.
        naming: versioned: each version under a name of its own. stable: always the same name, swapped while paused.
        name: this process's name in the channels, one per host. Default: sync-HOSTNAME.
        stage: a local directory for verified copies that the servers can read; "off": they load from the channel.
        stage_only: keep verified copies on this host and feed no server.
        stage_bytes: how much the copies of one channel may take.
        keep: with --stage-only, how many newest copies stay.
        path_map: OURS=THEIRS, where the servers see our paths elsewhere.
        base_model: what the servers' base model may be called; "any" checks nothing.
        residents: how many versions of a channel may be on a server at once.
        residents_total: how many of all channels together.
        linger: how long a version's name goes on being served after a newer one was (seconds).
        drain: how long requests of an unloaded version are waited for (seconds).
        tries: how often a version is tried that a server cannot see.
        canary: compare a completion with what the publisher put into the manifest.
        drive: auto: the newest version, at once. manual: what is applied by POST /apply.
        listen: HOST:PORT of the own HTTP; "off" for none.
        token_file: a file with the token that callers of the own HTTP must show.
        engine_token_file: a file with the token that the servers want.
        hook_before: a URL that is told before each change, and may object.
        hook_after: a URL that is told after each change.
        retire: how long a channel that a pattern found must be gone before it has ended (seconds).
        visibility_bound: how late things may become visible on this mount (seconds).
        lease: after which silence others take this process for dead (seconds).
        poll: longest time between two looks at a channel (seconds).
        config: a TOML file that says all of this instead (docs/sync.md).
    """
    if config is not None:
        if channels or url:
            raise UsageError("--config says it all", code="usage", hint="give flags or --config, not both")
        settings = load_config(config)
    else:
        servers = tuple(
            ServerConfig(
                url=one,
                engine=engine,
                token_file=None if engine_token_file is None else str(engine_token_file),
                path_map=path_map,
                residents=residents,
                residents_total=residents_total,
                linger_s=linger,
                drain_s=drain,
                tries=tries,
                canary=canary,
            )
            for one in url
        )
        given = SyncConfig(
            channels=tuple(
                ChannelConfig(path=one, adapter=adapter, weights=weights, naming=naming, base_model=base_model)
                for one in channels
            ),
            servers=servers,
            stage=stage,
            stage_only=stage_only,
            keep=keep,
            stage_bytes=stage_bytes,
            drive=drive,
            listen=None if listen == "off" else listen,
            token_file=None if token_file is None else str(token_file),
            hooks=HooksConfig(before=hook_before, after=hook_after),
            retire_s=retire,
            visibility_bound_s=visibility_bound,
            lease_s=lease,
            poll_s=poll,
        )
        settings = check_config(given if name is None else msgspec.structs.replace(given, name=name))
    return run(settings)


def run(config: SyncConfig) -> int:
    """Run until a signal, or until there is nothing left to do."""
    logging.getLogger("holdfast.sync").setLevel(logging.INFO)
    process = Sync(config)
    try:
        process.start()
        if process.api is not None:
            logger.info("listening on %s", process.api.url)
        never = threading.Event()
        while not process.failed:
            never.wait(LOOK_S)
        logger.error("%s", process.failed)
        return FAILED
    except SystemExit:  # SIGTERM: what is served stays
        return DONE
    finally:
        process.stop()
