"""Which channels there are: those that are named, and those that a pattern finds as they come and go.

A channel that is missing is not a channel that has ended: the storage may be away, or its mount may be empty. It has
ended if its parent directory can be listed, is on the device where the channel was found, and has not had it for
`retire_s` seconds.
"""

from __future__ import annotations

import os
import pathlib
import re
import time
from collections.abc import Iterator

import msgspec

from holdfast.channel.channel import CHANNEL
from holdfast.core.names import check_participant
from holdfast.errors import UsageError
from holdfast.sync.config import ADAPTER_DEFAULT, GLOB, ChannelConfig

_FOUND_MAX = 1000


class Found(msgspec.Struct, frozen=True):
    """One channel that is there."""

    config: ChannelConfig
    path: pathlib.Path
    adapter: str


class _Seen(msgspec.Struct):
    device: int
    missing_since_s: float | None = None


class Discovery:
    """Looks for the channels of `channels` again and again."""

    def __init__(self, channels: tuple[ChannelConfig, ...], retire_s: float) -> None:
        self._channels = channels
        self._retire_s = retire_s
        self._seen: dict[pathlib.Path, _Seen] = {}

    def named(self) -> list[Found]:
        """The channels that are named; they are followed whether they are there yet or not."""
        return [
            Found(channel, pathlib.Path(channel.path).absolute(), channel.adapter or ADAPTER_DEFAULT)
            for channel in self._channels
            if not channel.is_pattern
        ]

    def look(self) -> list[Found]:
        """The channels that the patterns find now, in the order of their paths."""
        found: dict[pathlib.Path, Found] = {}
        for channel in self._channels:
            if not channel.is_pattern:
                continue
            for path, match in sorted(_expand(pathlib.Path(channel.path).absolute())):
                adapter = (channel.adapter or "{match}").replace("{match}", match)
                if _is_name(adapter) and len(found) < _FOUND_MAX:
                    claims = channel.claims and channel.claims.replace("{match}", match)
                    found.setdefault(path, Found(msgspec.structs.replace(channel, claims=claims), path, adapter))
        for path in found:
            device = _device(path)
            if device is not None:
                self._seen[path] = _Seen(device)
        return list(found.values())

    def ended(self, found: list[Found]) -> list[pathlib.Path]:
        """The channels that were found before and have ended."""
        there = {one.path for one in found}
        now_s = time.monotonic()
        ended = []
        for path, seen in self._seen.items():
            if path in there or not _is_gone(path, seen.device):
                seen.missing_since_s = None
            elif seen.missing_since_s is None:
                seen.missing_since_s = now_s
            elif now_s - seen.missing_since_s >= self._retire_s:
                ended.append(path)
        for path in ended:
            del self._seen[path]
        return ended


def _expand(pattern: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Channels that fit the pattern, each with what its wildcards stand for."""
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if not GLOB.isdisjoint(part))
    base = pathlib.Path(*parts[:fixed])
    for path in base.glob("/".join(parts[fixed:])):
        try:
            if not any(entry.name == CHANNEL for entry in os.scandir(path)):
                continue
        except OSError:
            continue
        matched = [part for part, wanted in zip(path.parts, parts, strict=True) if not GLOB.isdisjoint(wanted)]
        yield path, re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(matched))


def _is_gone(path: pathlib.Path, device: int) -> bool:
    """Whether the nearest directory above it that is there has no such entry, and is where the channel was."""
    for parent in path.parents:
        try:
            names = {entry.name for entry in os.scandir(parent)}
            same = os.stat(parent).st_dev == device
        except FileNotFoundError:
            continue
        except OSError:
            return False
        return same and path.relative_to(parent).parts[0] not in names
    return False


def _device(path: pathlib.Path) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


def _is_name(adapter: str) -> bool:
    try:
        check_participant(adapter)
    except UsageError:
        return False
    return True
