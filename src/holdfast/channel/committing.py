"""Carrying out one publish, step by step, as `holdfast.core.publish` orders it."""

from __future__ import annotations

import datetime as dt
import logging
import secrets
from contextlib import closing
from typing import Any

from holdfast.channel.channel import Channel
from holdfast.channel.checking import stable_text
from holdfast.channel.observe import CURRENT, Observer
from holdfast.channel.older import Older
from holdfast.channel.payload import Payload, Progress, write_payload
from holdfast.core import publish
from holdfast.core.manifest import STABLE, File, Manifest, encode_manifest
from holdfast.core.names import Version
from holdfast.core.records import versions_in
from holdfast.errors import HoldfastError, OutcomeUnknownError
from holdfast.events import EventLog

logger = logging.getLogger(__name__)

COMMIT_TRIES = 3


class Committer:
    """The machine of one open publisher; one publish at a time (the publisher sees to it)."""

    def __init__(self, channel: Channel, observer: Observer, events: EventLog) -> None:
        self._channel = channel
        self._observer = observer
        self._events = events
        self._older = Older(channel)
        self._staged = b""
        self._staged_files: tuple[File, ...] = ()
        self._last_files: tuple[File, ...] = ()  # of the last version, which a failed publish does not change
        self.state = publish.Publisher()
        self.writing: str | None = None

    def guard(self) -> None:
        """FencedError if a higher claim is visible."""
        self.state, effects = publish.step(self.state, publish.ClaimsRead(self._highest()))
        for effect in effects:
            assert isinstance(effect, publish.Fenced)
            raise effect.error

    def publish(self, step: int, payload: Payload, metadata: dict[str, Any], progress: Progress | None) -> Version:
        """Commit `payload` as a new version at `step`; whatever fails before the commit leaves nothing visible."""
        published: Version | None = None
        events: list[publish.Event] = [publish.Publish(step, secrets.token_hex(3))]
        while events:
            self.state, effects = publish.step(self.state, events.pop(0))
            for effect in effects:
                match effect:
                    case publish.Stage(version, parent):
                        again = self._stage(version, parent, payload, metadata, progress)
                        if again is not None:
                            return again
                        events.append(publish.Staged())
                    case publish.ReadClaims():
                        events.append(publish.ClaimsRead(self._read_claims()))
                    case publish.Commit(version):
                        self._commit(version)
                        events.append(publish.Committed())
                    case publish.Point(version):
                        self._point(version)
                        events.append(publish.Pointed())
                    case publish.Published(version):
                        published = version
                    case publish.Fenced(error):
                        self._discard()
                        raise error
        assert published is not None
        return published

    def _stage(
        self,
        version: Version,
        parent: Version | None,
        payload: Payload,
        metadata: dict[str, Any],
        progress: Progress | None,
    ) -> Version | None:
        """Write everything but the manifest; or the version that has these very bytes already."""
        self.writing = f"c{version.cycle:06d}-{secrets.token_hex(4)}"
        try:
            tree = self._channel.store.begin_tree(str(version), self.writing)
            files = write_payload(tree, payload, progress=progress)
            again = self._same(version.step, files)
            if again is None:
                self._staged = encode_manifest(
                    Manifest(
                        version=str(version),
                        cycle=version.cycle,
                        step=version.step,
                        parent=str(parent) if parent is not None else None,
                        kind=payload.kind,
                        files=files,
                        requires=payload.requires,
                        metadata=metadata,
                        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                    )
                )
                with closing(tree.file(STABLE)) as stable:
                    stable.write_at(0, memoryview(stable_text(self._staged)))
        except BaseException:
            self._abandon()
            raise
        if again is not None:
            self._abandon()
        self._staged_files = files
        return again

    def _same(self, step: int, files: tuple[File, ...]) -> Version | None:
        """The last version, if it is of this step, has these bytes, is there, and nobody announced its removal."""
        last = self.state.last
        if last is None or last.step != step or files != self._last_files:
            return None
        if last not in self._observer.versions():
            return None
        for seen in self._observer.sweepers().values():
            if seen.record is None or last in versions_in(seen.record.tombstones):
                return None
        return last

    def _read_claims(self) -> int:
        try:
            return self._highest()
        except HoldfastError:
            self._abandon()
            raise

    def _commit(self, version: Version) -> None:
        assert self.writing is not None
        for tried in range(1, COMMIT_TRIES + 1):
            try:
                self._channel.store.commit_tree(str(version), self.writing, self._staged)
            except OutcomeUnknownError as error:
                if tried < COMMIT_TRIES:
                    continue
                self._unsure(version, str(error))
                raise
            except HoldfastError:
                self._abandon()
                raise
            except BaseException:  # a signal, at any moment
                self._unsure(version, "interrupted")
                raise
            self.writing = None
            self._last_files = self._staged_files
            return

    def _unsure(self, version: Version, reason: str) -> None:
        """It may be visible; what is left in staging/ if it isn't goes with the next sweep."""
        self.state, _ = publish.step(self.state, publish.Unsure())
        self.writing = None
        self._last_files = self._staged_files
        self._events.emit("publish_unknown", reason, version=version)

    def _point(self, version: Version) -> None:
        """The legacy link and CURRENT: hints, so their failure is told and not raised."""
        try:
            reason = self._older.link(version)
            if reason is not None and self._channel.record.legacy:
                self._events.emit("no_legacy_link", reason, version=version)
            self._channel.store.replace(CURRENT, f"{version}\n".encode(), durable=False)
        except HoldfastError as error:
            self._events.emit("hint_failed", str(error), version=version, code=error.code)
            logger.warning("%s is published, but CURRENT or its link is not: %s", version, error)

    def _abandon(self) -> None:
        self.state, _ = publish.step(self.state, publish.Abandoned())
        self._discard()

    def _discard(self) -> None:
        nonce, self.writing = self.writing, None
        if nonce is not None:
            try:
                self._channel.store.remove_garbage(nonce)
            except HoldfastError as error:  # the sweep finds it
                logger.info("staging/%s stays for the sweep: %s", nonce, error)

    def _highest(self) -> int:
        return max(self._observer.cycles(), default=0)
