"""`holdfast publish`: a directory becomes a version, by the same rules as a trainer's."""

from __future__ import annotations

import json
import pathlib
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from holdfast.channel.channel import Channel
from holdfast.channel.claiming import process_term
from holdfast.channel.payload import Payload, directory_payload
from holdfast.channel.publisher import Publisher
from holdfast.channel.sources import local_error
from holdfast.cli.options import COMMON, Common, Flag, resolve
from holdfast.cli.output import DONE, Out, facts, num_bytes
from holdfast.cli.schema import Published
from holdfast.core import publish as protocol
from holdfast.core.lineage import candidates
from holdfast.core.names import Version
from holdfast.core.publish import next_version
from holdfast.core.records import Term
from holdfast.core.retention import Retention
from holdfast.errors import HoldfastError, NotVisibleError, UsageError

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
CONFIG_BYTES_MAX = 16 * 2**20
_OWN_JOB = re.compile(r"-\d+-[0-9a-f]{8}$", re.ASCII)  # of a process without a launcher: it never comes back


def publish(
    channel: pathlib.Path,
    directory: pathlib.Path,
    /,
    *,
    step: int,
    kind: Literal["adapter", "full", "directory"] | None = None,
    metadata: Annotated[list[str] | None, Parameter(negative="")] = None,
    resume_from: str = "newest",
    take_over: Flag = False,
    job: str | None = None,
    round_: Annotated[int, Parameter(name="--round")] = 0,
    wait: float | None = None,
    keep_recent: int | None = None,
    keep_every: int | None = None,
    common: Common = COMMON,
) -> int:
    """Publish the files below a local directory as a new version. Makes the channel where there is none.

    This claims the channel, as a trainer does: a trainer of another job that published here before cannot go on.
    Nothing is swept unless --keep-recent or --keep-every says what to keep.

    Args:
        channel: the channel's directory.
        directory: the files to publish; symlinks are refused.
        step: optimizer step; not below the step of the version that it starts from.
        kind: what it is; default: what the files look like.
        metadata: KEY=VALUE, for consumers; a VALUE that is JSON is taken as such. May be repeated.
        resume_from: the version that it descends from: a name, a step of the lineage, "newest", or "none".
        take_over: replace a publisher that is alive.
        job: the job that publishes, as its launcher names it; default: one of this process's own.
        round_: the round of that job.
        wait: seconds to wait for a publisher that may be dead; default: two leases.
        keep_recent: sweep afterwards, and keep this many newest versions.
        keep_every: sweep afterwards, and keep the versions whose step is a multiple of this.
    """
    began_s = time.monotonic()
    next_version(protocol.Publisher(), step, "000000")  # what no publisher would take is told before one is opened
    payload = _payload(directory, kind)
    described = _metadata(metadata or [])
    policy = _policy(keep_recent, keep_every)
    term = Term(job=job, round=round_, nonce=secrets.token_hex(8)) if job is not None else process_term()
    out = Out(common.json)
    opened = Channel(channel, claims=common.claims, lease_s=common.lease)
    start = _start(opened, resume_from, step)
    before = _latest_job(opened)
    publisher = opened.publisher(policy, resume_from=start, term=term, take_over=take_over, wait_s=wait, sweep=False)
    with ExitStack() as stack:
        with out.waiting("claiming the channel"), _rights():
            stack.enter_context(publisher)
        if before not in (None, term.job) and not _OWN_JOB.search(str(before)):
            out.say(f"cycle {publisher.cycle} replaces job {before}, which cannot publish here any more")
        with out.progress(f"step {step}", payload.num_bytes) as progress:
            version = publisher.publish_payload(step, payload, metadata=described, progress=progress)
        removed = _sweep(out, opened, policy) if policy is not None else []
        done = _published(opened, publisher, version, payload, before if before != term.job else None, removed, began_s)
    out.data(done, lambda screen: screen.print(facts(_rows(done))))
    return DONE


@contextmanager
def _rights() -> Iterator[None]:
    """A start that cannot be held means one thing here: no right to write. The staging that is advised is no way."""
    try:
        yield
    except UsageError as error:
        if error.code == "cannot_hold" and isinstance(error.__cause__, HoldfastError):
            raise error.__cause__ from None
        raise


def _published(
    channel: Channel,
    publisher: Publisher,
    version: Version,
    payload: Payload,
    replaced: str | None,
    removed: list[str],
    began_s: float,
) -> Published:
    return Published(
        channel=channel.name,
        version=str(version),
        step=version.step,
        cycle=version.cycle,
        kind=payload.kind,
        bytes=payload.num_bytes,
        path=str(channel.store.local_path(f"versions/{version}")),
        starts_from=str(publisher.starts_from) if publisher.starts_from is not None else None,
        replaced_job=replaced,
        removed=removed,
        seconds=round(time.monotonic() - began_s, 3),
    )


def _rows(done: Published) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("published", done.version),
        ("path", done.path),
        ("kind", f"{done.kind}, {num_bytes(done.bytes)} in {done.seconds:.1f} s"),
        ("starts from", done.starts_from or "nothing"),
    ]
    return rows + [("removed", version) for version in done.removed]


def _payload(directory: pathlib.Path, kind: str | None) -> Payload:
    """What lies in `directory`, checked before anything is claimed."""
    payload = directory_payload(directory)
    names = {path for path, _ in payload.files}
    weights = any(name.endswith(".safetensors") for name in names)
    guess = "adapter" if ADAPTER_CONFIG in names else "full" if weights and MODEL_CONFIG in names else "directory"
    needed = {"adapter": ADAPTER_CONFIG, "full": MODEL_CONFIG}.get(kind or guess)
    if needed is not None and needed not in names:
        raise UsageError(
            f"{directory} has no {needed}, so it is no {kind} that an engine could load",
            code="wrong_kind",
            hint="check the directory, or give --kind directory",
        )
    requires = _requires(directory / ADAPTER_CONFIG) if (kind or guess) == "adapter" else {}
    return msgspec.structs.replace(payload, kind=kind or guess, requires=requires)


def _requires(config: pathlib.Path) -> dict[str, Any]:
    """What adapter_config.json says of the base model and the rank."""
    try:
        if config.stat().st_size > CONFIG_BYTES_MAX:
            raise UsageError(f"{config} is too large for a configuration", code="bad_adapter_config")
        found = json.loads(config.read_bytes())
    except OSError as error:
        raise local_error(config, error) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{config}: {error}", code="bad_adapter_config", hint="PEFT cannot load it either") from error
    if not isinstance(found, dict):
        raise UsageError(f"{config} is not a JSON object", code="bad_adapter_config", hint="PEFT cannot load it either")
    named = {"base_model": found.get("base_model_name_or_path"), "rank": found.get("r")}
    return {key: value for key, value in named.items() if isinstance(value, str | int)}


def _metadata(pairs: list[str]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--metadata {pair!r} is not KEY=VALUE", code="usage", hint="such as --metadata loss=0.42")
        try:
            described[key] = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            described[key] = value
    return described


def _policy(keep_recent: int | None, keep_every: int | None) -> Retention | None:
    if keep_recent is None and keep_every is None:
        return None
    return Retention(keep_recent=keep_recent if keep_recent is not None else 2, keep_every=keep_every)


def _start(channel: Channel, resume_from: str, step: int) -> Version | None:
    """The version to start from. A step that cannot follow it is told before the channel is claimed."""
    if resume_from == "none":
        return None
    try:
        channel.open()
    except NotVisibleError:
        if resume_from == "newest":
            return None  # the first version of a new channel
        raise
    if resume_from == "newest" and not candidates(channel.observer().lineage(), channel.observer().versions()):
        return None
    start = resolve(channel, resume_from)
    if step < start.step:
        raise UsageError(
            f"step {step} is below step {start.step} of {start}, which it would start from",
            code="step_below_start",
            hint="give --resume-from an older version, or none for a run that starts anew",
        )
    return start


def _latest_job(channel: Channel) -> str | None:
    """The job of the highest claim."""
    observer = channel.observer()
    cycle = max(observer.cycles(), default=0)
    term = observer.claim(cycle).term if cycle else None
    return term.job if term is not None else None


def _sweep(out: Out, channel: Channel, policy: Retention) -> list[str]:
    with out.waiting("sweeping"), channel.sweeper(policy) as sweeper:
        return list(sweeper.sweep().removed)
