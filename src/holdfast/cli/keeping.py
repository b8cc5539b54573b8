"""`holdfast pin` and `unpin`: versions that are kept by hand."""

from __future__ import annotations

import pathlib

from holdfast.channel.channel import Channel
from holdfast.channel.status import survey
from holdfast.cli.options import COMMON, Common, resolve
from holdfast.cli.output import DONE, Out, text
from holdfast.cli.schema import Pinned
from holdfast.core.names import Version, require_version
from holdfast.errors import ConflictError

PINS = "pins"


def pin(channel: pathlib.Path, version: str, /, *, common: Common = COMMON) -> int:
    """Keep a version until it is unpinned. Exit code 4 if its removal was announced before.

    Args:
        channel: the channel's directory.
        version: a version's name, a step of the lineage, or "newest".
    """
    opened = common.channel(channel)
    found = resolve(opened, version)
    changed = found not in opened.observer().pins()
    opened.store.create(f"{PINS}/{found}", b"")
    _check_announcements(opened, found)
    done = Pinned(channel=opened.name, version=str(found), pinned=True, changed=changed)
    said = f"{found} is pinned" if changed else f"{found} was pinned already"
    Out(common.json).data(done, lambda screen: screen.print(text(said)))
    return DONE


def _check_announcements(channel: Channel, version: Version) -> None:
    """Pin, then look: a sweeper looks for pins only after it has announced, so one of the two sees the other.

    Raises:
        ConflictError: code "announced" or "sweeper_unreadable"; the pin stands, and the sweeper may yet have seen it.
    """
    seen = survey(channel)
    announced = seen.tombstoned_by(version)
    if announced or version not in seen.versions:
        raise ConflictError(
            f"{version} is pinned, but its removal was announced before by sweeper {', '.join(announced) or '(gone)'}",
            code="announced",
            hint="pin it again in a moment: if it is still there then, the sweeper has seen the pin",
            version=str(version),
            sweepers=announced,
        )
    unreadable = [key for key, found in sorted(seen.sweepers.items()) if found.record is None]
    if unreadable:
        raise ConflictError(
            f"{version} is pinned, but the file of sweeper {unreadable[0]} cannot be read: it may announce anything",
            code="sweeper_unreadable",
            hint="see `holdfast status CHANNEL`, and pin it again",
            version=str(version),
        )


def unpin(channel: pathlib.Path, version: str, /, *, common: Common = COMMON) -> int:
    """Let a pinned version go by the usual rules.

    Args:
        channel: the channel's directory.
        version: a version's name, a step of the lineage, or "newest".
    """
    opened = common.channel(channel)
    pins = opened.observer().pins()
    named = [one for one in pins if str(one) == version]  # it may be gone, and only its pin is left
    found = named[0] if named else resolve(opened, version)
    changed = found in pins
    opened.store.delete(f"{PINS}/{require_version(str(found))}")
    done = Pinned(channel=opened.name, version=str(found), pinned=False, changed=changed)
    said = f"{found} is not pinned any more" if changed else f"{found} was not pinned"
    Out(common.json).data(done, lambda screen: screen.print(text(said)))
    return DONE
