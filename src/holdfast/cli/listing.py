"""`holdfast ls`, `show` and `verify`: what lies in a channel, and whether its bytes are right."""

from __future__ import annotations

import pathlib
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from holdfast.channel.channel import Channel
from holdfast.channel.checking import STALE_CODES, read_manifest, verify_version
from holdfast.channel.status import Survey, survey
from holdfast.cli.options import COMMON, Common, resolve
from holdfast.cli.output import (
    DONE,
    SLOW_S,
    UNHEALTHY,
    Out,
    clean,
    facts,
    message,
    num_bytes,
    table,
    text,
)
from holdfast.cli.schema import (
    ListedVersion,
    Listing,
    Problem,
    Shown,
    ShownFile,
    Verified,
    VerifiedVersion,
)
from holdfast.core.names import Version
from holdfast.errors import HoldfastError, IntegrityError, NotVisibleError, UnavailableError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

WIDE_COLUMNS = 100


def ls(channel: pathlib.Path, /, *, common: Common = COMMON) -> int:
    """List the versions of a channel, newest first.

    Args:
        channel: the channel's directory.
    """
    opened = common.channel(channel)
    seen = survey(opened)
    rows = [_listed(opened, seen, version) for version in sorted(seen.versions, reverse=True)]
    listing = Listing(channel=opened.name, run=opened.record.run, versions=rows)
    Out(common.json).data(listing, lambda screen: _draw_listing(screen, listing))
    return DONE


def _listed(channel: Channel, seen: Survey, version: Version) -> ListedVersion:
    kind, size, created, problem = None, None, None, None
    try:
        manifest, _ = read_manifest(channel.store, version)
        kind, size, created = manifest.kind, manifest.num_bytes, manifest.created
    except (IntegrityError, NotVisibleError) as error:
        problem = _problem(error)
    return ListedVersion(
        version=str(version),
        step=version.step,
        cycle=version.cycle,
        kind=kind,
        bytes=size,
        created=created,
        in_lineage=version in seen.lineage,
        newest=version == seen.newest,
        pinned=version in seen.pinned,
        holders=seen.holders(version),
        tombstoned_by=seen.tombstoned_by(version),
        problem=problem,
    )


def _draw_listing(screen: Console, listing: Listing) -> None:
    wide = screen.width >= WIDE_COLUMNS
    made = table(
        *("version", "step", *(("cycle",) if wide else ()), "kind", "size", *(("created",) if wide else ()), "state"),
        right=("step", "cycle", "size"),
        fixed=("version", "created"),
    )
    for row in listing.versions:
        style = "" if row.in_lineage and row.problem is None else "dim"
        cells: list[object] = [
            row.version,
            row.step,
            row.kind or "?",
            "?" if row.bytes is None else num_bytes(row.bytes),
        ]
        if wide:
            cells[2:2] = [row.cycle]
            cells.append((row.created or "?")[:16].replace("T", " "))
        made.add_row(*(text(cell, style) for cell in cells), text(_state(row), "bold" if row.newest else style))
    screen.print(made if listing.versions else text("no versions"))


def _state(row: ListedVersion) -> str:
    words = ["newest"] if row.newest else []
    if not row.in_lineage:
        words.append("outside the lineage")
    if row.holders:
        words.append(f"held by {len(row.holders)}")
    if row.pinned:
        words.append("pinned")
    if row.tombstoned_by:
        words.append("about to go")
    if row.problem is not None:
        words.append(f"unreadable: {row.problem.code}")
    return ", ".join(words)


def show(channel: pathlib.Path, version: str = "newest", /, *, common: Common = COMMON) -> int:
    """Show one version: its manifest, its files, and who holds it.

    Args:
        channel: the channel's directory.
        version: a version's name, a step of the lineage, or "newest".
    """
    opened = common.channel(channel)
    found = resolve(opened, version)
    manifest, _ = read_manifest(opened.store, found)
    seen = survey(opened)
    shown = Shown(
        channel=opened.name,
        version=str(found),
        step=found.step,
        cycle=found.cycle,
        parent=manifest.parent,
        kind=manifest.kind,
        bytes=manifest.num_bytes,
        created=manifest.created,
        path=str(opened.store.local_path(f"versions/{found}")),
        algorithm=manifest.algorithm,
        block_bytes=manifest.block_bytes,
        requires=manifest.requires,
        metadata=manifest.metadata,
        files=[ShownFile(path=f.path, bytes=f.size, digests=list(f.blocks)) for f in manifest.files],
        in_lineage=found in seen.lineage,
        newest=found == seen.newest,
        pinned=found in seen.pinned,
        holders=seen.holders(found),
        serving=seen.serving(found),
        refused_by=seen.refused_by(found),
        tombstoned_by=seen.tombstoned_by(found),
    )
    Out(common.json).data(shown, lambda screen: _draw_version(screen, shown))
    return DONE


def _draw_version(screen: Console, shown: Shown) -> None:
    where = "in the lineage" if shown.in_lineage else "outside the lineage"
    rows: list[tuple[str, object]] = [
        ("version", shown.version),
        ("path", shown.path),
        ("step", f"{shown.step}, cycle {shown.cycle}: {'newest, ' if shown.newest else ''}{where}"),
        ("parent", shown.parent or "none"),
        ("kind", f"{shown.kind}, {num_bytes(shown.bytes)} in {len(shown.files)} files"),
        ("created", shown.created or "not said"),
        ("holders", ", ".join(shown.holders) or "none"),
        ("serving", ", ".join(shown.serving) or "nobody has said so"),
    ]
    rows += [("pinned", "yes")] if shown.pinned else []
    rows += [("about to go", f"announced by sweeper {', '.join(shown.tombstoned_by)}")] if shown.tombstoned_by else []
    rows += [("refused", f"by {who}: {reason}") for who, reason in shown.refused_by.items()]
    rows += [(f"requires.{clean(key)}", value) for key, value in shown.requires.items()]
    rows += [(f"metadata.{clean(key)}", value) for key, value in shown.metadata.items()]
    screen.print(facts(rows))
    files = table("file", "size", "digest", right=("size",))
    for file in shown.files:
        more = f" and {len(file.digests) - 1} more" if len(file.digests) > 1 else ""
        files.add_row(text(file.path), text(num_bytes(file.bytes)), text("".join(file.digests[:1]) + more))
    screen.print()
    screen.print(files)


def verify(
    channel: pathlib.Path,
    version: str | None = None,
    /,
    *,
    all_versions: Annotated[bool, Parameter(name="--all", negative="")] = False,
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
        patience = 0.0 if opened.store.capabilities.notifies else opened.party().bound_s
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
                time.sleep(min(1.0, patience_s / 10))
                continue
            else:
                ok, problem = False, _problem(error)
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
        speed = f"{num_bytes(round(row.bytes / row.seconds))}/s" if row.bytes and row.seconds > SLOW_S / 100 else ""
        cells = [
            row.version,
            "?" if row.files is None else row.files,
            "?" if row.bytes is None else num_bytes(row.bytes),
        ]
        made.add_row(*(text(cell) for cell in (*cells, speed)), text(result, "" if row.ok else "bold red"))
    screen.print(made if done.versions else text("no versions"))


def _problem(error: HoldfastError) -> Problem:
    return Problem(code=error.code, message=message(error))
