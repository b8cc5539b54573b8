"""Options that commands share, and what they mean: a channel, one of its versions."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from holdfast.channel.channel import Channel
from holdfast.core.lineage import candidates
from holdfast.core.names import Version, parse_version
from holdfast.errors import UsageError

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command on a channel."""

    json: Flag = False
    "Print JSON on stdout; errors too."
    claims: pathlib.Path | None = None
    "Where consumers/ and sweepers/ lie, if not in the channel."
    lease: float | None = None
    "Seconds of silence after which a participant counts as gone (as the trainer's `lease_s=`)."

    def channel(self, path: pathlib.Path) -> Channel:
        """The channel at `path`, which is there and of a format that this Holdfast reads; nothing is written."""
        channel = Channel(path, claims=self.claims, lease_s=self.lease)
        channel.open()
        return channel


COMMON = Common()


def resolve(channel: Channel, text: str) -> Version:
    """The version that `text` means: its name, a step of the lineage, or "newest". It is there now.

    Raises:
        UsageError: code "no_such_version", "nothing_published".
    """
    observer = channel.observer()
    versions = observer.versions()
    line = candidates(observer.lineage(), versions)
    if text == "newest":
        if not line:
            raise UsageError(
                f"{channel.name}: nothing is published in the present lineage",
                code="nothing_published",
                hint="`holdfast ls CHANNEL` lists what is there",
            )
        return line[0]
    named = parse_version(text)
    if named in versions:
        assert named is not None
        return named
    of_step = [version for version in line if text.isdecimal() and version.step == int(text)]
    if of_step:
        return of_step[0]
    raise UsageError(
        f"{text!r} is no version of {channel.name}: it was swept, or never there",
        code="no_such_version",
        hint="`holdfast ls CHANNEL` lists what is there; give a name, a step of the lineage, or newest",
        version=text,
    )
