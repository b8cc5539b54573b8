"""What --json prints, command by command; docs/cli.md says what each field means. Fields are added, never renamed."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.core.membership import Outcome


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a version."""

    code: str
    message: str


class ListedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version in `ls`. What its manifest says is null where the manifest cannot be read; `problem` says why."""

    version: str
    step: int
    cycle: int
    kind: str | None
    bytes: int | None
    created: str | None
    in_lineage: bool
    newest: bool
    pinned: bool
    holders: list[str]
    tombstoned_by: list[str]
    problem: Problem | None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast ls`"""

    channel: str
    run: str
    versions: list[ListedVersion]


class ShownFile(msgspec.Struct, frozen=True, kw_only=True):
    """One payload file."""

    path: str
    bytes: int
    digests: list[str]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast show`"""

    channel: str
    version: str
    step: int
    cycle: int
    parent: str | None
    kind: str
    bytes: int
    created: str
    path: str
    algorithm: str
    block_bytes: int
    requires: dict[str, Any]
    metadata: dict[str, Any]
    files: list[ShownFile]
    in_lineage: bool
    newest: bool
    pinned: bool
    holders: list[str]
    serving: list[str]
    refused_by: dict[str, str]
    tombstoned_by: list[str]


class VerifiedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version in `verify`; `ok` null: it was swept meanwhile."""

    version: str
    ok: bool | None
    files: int | None
    bytes: int | None
    seconds: float
    problem: Problem | None


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast verify`"""

    channel: str
    versions: list[VerifiedVersion]


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast publish`"""

    channel: str
    version: str
    step: int
    cycle: int
    kind: str
    bytes: int
    path: str
    starts_from: str | None
    replaced_job: str | None
    removed: list[str]
    seconds: float


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast pin` and `holdfast unpin`"""

    channel: str
    version: str
    pinned: bool
    changed: bool


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One version in `sweep`."""

    version: str
    reason: str


class SweepDone(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast sweep`; with --dry-run `removed` is what would be removed."""

    channel: str
    dry_run: bool
    retention: dict[str, Any]
    removed: list[Judged]
    stays: list[Judged]
    leftovers: list[str]


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast serve`, once it takes requests."""

    url: str
    model: str


class Syncing(msgspec.Struct, frozen=True):
    """What `sync` says when it has begun: where its own HTTP is (null: it has none), and its name in the channels."""

    url: str | None
    name: str


class Controlling(msgspec.Struct, frozen=True, kw_only=True):
    """What `control` says once it serves: what agents are given, where this process listens, which member it is."""

    endpoint: str
    address: str
    name: str | None


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast drain`; `done` null: there is no answer yet."""

    run: str
    attempt: str
    node: str
    member: str
    request: str
    done: bool | None
    reason: str
    seconds: float


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """`holdfast stop`; `request` null: the job had ended before. `outcome` null: it does not stand yet."""

    run: str
    attempt: str
    request: str | None
    outcome: Outcome | None
    reason: str
    seconds: float
