"""`holdfast ls` and `show`: what lies in a channel."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from holdfast.channel.channel import Channel
from holdfast.channel.checking import read_manifest
from holdfast.channel.status import Survey, survey
from holdfast.cli.options import COMMON, Common, resolve
from holdfast.cli.output import (
    DONE,
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
)
from holdfast.core.names import Version
from holdfast.errors import HoldfastError, IntegrityError, NotVisibleError

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
        problem = problem_of(error)
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


def problem_of(error: HoldfastError) -> Problem:
    return Problem(code=error.code, message=message(error))
