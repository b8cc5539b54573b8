"""`holdfast verify`: whether a version's bytes are what its manifest promises."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from holdfast.channel.channel import Channel
from holdfast.channel.checking import STALE_CODES, read_manifest, verify_version
from holdfast.cli.listing import problem_of
from holdfast.cli.options import COMMON, Common, resolve
from holdfast.cli.output import DONE, UNHEALTHY, Out, num_bytes, table, text
from holdfast.cli.schema import Problem, Verified, VerifiedVersion
from holdfast.core.names import Version
from holdfast.errors import HoldfastError, IntegrityError, NotVisibleError, UnavailableError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

TIMED_S = 0.2  # what took less says nothing of the speed


def verify(
    channel: pathlib.Path,
    version: str | None = None,
    /,
    *,
    all_versions: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    patience: float | None = None,
    common: Common = COMMON,
) -> int:
    """Read versions whole and check every size and digest. Exit code 3 if any is wrong.

    Args:
        channel: the channel's directory.
        version: a version's name, a step of the lineage, or "newest", which is the default.
        all_versions: every version, those outside the lineage too.
        patience: seconds for which what is missing or short may be only not visible yet; default: none on a local
            file system, the visibility bound on a network.
    """
    if all_versions and version is not None:
        raise UsageError(f"--all and {version!r} were given", code="usage", hint="give a version, or --all")
    opened = common.channel(channel)
    if patience is None:
        patience = 0.0 if opened.store.capabilities.local else opened.party().bound_s
    versions = sorted(opened.observer().versions()) if all_versions else [resolve(opened, version or "newest")]
    out = Out(common.json)
    done = Verified(channel=opened.name, versions=[_verified(out, opened, each, patience) for each in versions])
    out.data(done, lambda screen: _draw_verified(screen, done))
    return UNHEALTHY if any(row.ok is False for row in done.versions) else DONE


def _verified(out: Out, channel: Channel, version: Version, patience_s: float) -> VerifiedVersion:
    """Check one version, again while it may be only not visible yet."""
    began_s = time.monotonic()
    row = VerifiedVersion(version=str(version), ok=None, files=None, bytes=None, seconds=0.0, problem=None)
    while True:
        try:
            manifest, _ = read_manifest(channel.store, version)
            size, files = manifest.num_bytes, len(manifest.files)
            row = msgspec.structs.replace(row, files=files, bytes=size)
            with out.progress(f"{version}", size) as progress:
                verify_version(channel.store, version, progress)
            ok, problem = True, None
        except (IntegrityError, NotVisibleError) as error:
            if version not in channel.observer().versions():
                ok, problem = None, Problem(code="swept", message="it was swept meanwhile")
            elif _may_change(error) and time.monotonic() - began_s < patience_s:
                threading.Event().wait(min(1.0, patience_s / 10))
                continue
            else:
                ok, problem = False, problem_of(error)
        seconds = round(time.monotonic() - began_s, 3)
        return msgspec.structs.replace(row, ok=ok, problem=problem, seconds=seconds)


def _may_change(error: HoldfastError) -> bool:
    return isinstance(error, UnavailableError) or error.code in STALE_CODES


def _draw_verified(screen: Console, done: Verified) -> None:
    made = table("version", "files", "size", "speed", "result", right=("files", "size", "speed"), fixed=("version",))
    for row in done.versions:
        result = "right" if row.ok else "gone" if row.ok is None else "WRONG"
        if row.problem is not None:
            result += f": {row.problem.message}"
        speed = f"{num_bytes(round(row.bytes / row.seconds))}/s" if row.bytes and row.seconds > TIMED_S else ""
        cells = [
            row.version,
            "?" if row.files is None else row.files,
            "?" if row.bytes is None else num_bytes(row.bytes),
        ]
        made.add_row(*(text(cell) for cell in (*cells, speed)), text(result, "" if row.ok else "bold red"))
    screen.print(made if done.versions else text("no versions"))
