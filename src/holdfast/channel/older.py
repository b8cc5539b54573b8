"""Readers that know only `step_N/STABLE`: links for them, and what they write.

`broadcasts/c000003/step_120` is a symlink to the version, never repointed. Such a reader is protected by nothing but
`min_age_s`. What it writes into a file whose name begins with LOADED_STEP counts as an acknowledgement, within the
current cycle only.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.channel.channel import Channel
from holdfast.core.names import Version, parse_version
from holdfast.errors import ConflictError, IntegrityError, NotVisibleError

LOADED_STEP = "LOADED_STEP"
_LOADED_BYTES_MAX = 64


class Older:
    """The legacy directory of `channel`. Does nothing where the channel has none."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._dangling: frozenset[str] = frozenset()
        self._made: str | None = None

    def directory(self, cycle: int) -> str:
        return f"{self._channel.record.legacy}/c{cycle:06d}"

    def link(self, version: Version) -> str | None:
        """Leave a link for `version`; why there is none, or None if there is.

        A second version of one step gets no link: readers may have opened the first one's.
        """
        if not self._channel.record.legacy:
            return "the channel has no legacy directory"
        directory = self.directory(version.cycle)
        if self._made != directory:
            self._channel.store.make_directory(directory, 0o755)
            self._made = directory
        try:
            self._channel.store.link(f"{directory}/step_{version.step}", str(version))
        except ConflictError as error:
            return str(error)
        return None

    def loaded(self, cycle: int, versions: frozenset[Version]) -> frozenset[Version]:
        """The versions of `cycle` that older readers say they have loaded."""
        steps = set(self.readers(cycle).values())
        return frozenset(version for version in versions if version.cycle == cycle and version.step in steps)

    def readers(self, cycle: int) -> dict[str, int]:
        """The step that each file LOADED_STEP… of `cycle` names."""
        if not self._channel.record.legacy or not cycle:
            return {}
        directory = self.directory(cycle)
        shown = [entry.name for entry in self._channel.store.list(self._channel.record.legacy)]
        if directory.rpartition("/")[2] not in shown:
            return {}  # asked for by name before it is there, it would stay missing on an NFS client
        steps: dict[str, int] = {}
        for entry in self._channel.store.list(directory):
            if entry.kind == "file" and entry.name.startswith(LOADED_STEP):
                try:
                    text = self._channel.store.read(f"{directory}/{entry.name}", limit_bytes=_LOADED_BYTES_MAX)
                    steps[entry.name] = int(text.decode("ascii", "replace").strip() or "-1")
                except (NotVisibleError, IntegrityError, ValueError):
                    continue
        return steps

    def tidy(self, versions: Callable[[], frozenset[Version]]) -> None:
        """Remove links whose version is gone, once two looks in a row found them so."""
        legacy = self._channel.record.legacy
        if not legacy:
            return
        targets: dict[str, Version | None] = {}
        for directory in self._channel.store.list(legacy):
            for entry in self._channel.store.list(f"{legacy}/{directory.name}"):
                if entry.kind == "link" and entry.name.startswith("step_"):
                    path = f"{legacy}/{directory.name}/{entry.name}"
                    targets[path] = parse_version(self._channel.store.link_target(path) or "")
        there = versions()  # after the links, so that a version just published is in it
        dangling = frozenset(path for path, version in targets.items() if version is not None and version not in there)
        for path in dangling & self._dangling:
            self._channel.store.delete(path)
        self._dangling = dangling - self._dangling
