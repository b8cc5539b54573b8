"""What a new cycle starts from: held by its publisher, as a consumer holds, until the cycle's first version stands."""

from __future__ import annotations

import secrets
import socket
from typing import SupportsIndex

from holdfast.channel.channel import Channel
from holdfast.channel.consumer import Consumer
from holdfast.channel.held import HeldVersion
from holdfast.core.lineage import candidates
from holdfast.core.names import Version, require_version
from holdfast.errors import NotVisibleError, UsageError

Origin = Version | HeldVersion | str | int


class Start:
    """Holds one version for a publisher that is being opened."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._holder: Consumer | None = None
        self._version: Version | None = None

    def hold(self, origin: Origin | None) -> Version | None:
        """The version that `origin` means, held and verified; None for none.

        Raises:
            NotVisibleError: code "version_gone": it is not there (any more). Resume from another one, or from none.
            IntegrityError: code "refused": its bytes are damaged.
            UsageError: `origin` is no version's name.
        """
        if origin is None:
            return None
        version = self._version = self._resolve(origin)
        name = f"publisher-{socket.gethostname()[:40]}-{secrets.token_hex(4)}"
        self._holder = Consumer(self._channel, name, in_place=False)
        try:
            self._holder.open()
            self._holder.hold(version)
        except BaseException:
            self.release()
            raise
        return version

    def renew(self) -> None:
        """Make sure that the hold stands, read afresh: the last thing to do before a claim says what it starts from.

        Raises: as `hold`: this process was silent for a lease, and the version was swept meanwhile.
        """
        if self._holder is not None and self._version is not None and self._holder.lost_lease():
            self.release()
            self.hold(self._version)

    def release(self) -> None:
        """It needs no hold any more; idempotent."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()

    def _resolve(self, origin: Origin) -> Version:
        if isinstance(origin, HeldVersion):
            return origin.name
        if isinstance(origin, str):
            return require_version(origin)
        if isinstance(origin, Version):
            return origin
        if isinstance(origin, bool) or not isinstance(origin, SupportsIndex):
            raise UsageError(
                f"resume_from={origin!r} is neither a version nor a step",
                code="bad_version_name",
                hint="give a version's name, a HeldVersion, or a step of the lineage",
            )
        observer = self._channel.observer()
        for version in candidates(observer.lineage(), observer.versions()):
            if version.step == origin:
                return version
        raise NotVisibleError(
            f"there is no version of step {origin} in the present lineage",
            code="version_gone",
            hint="`holdfast ls CHANNEL` lists what is there",
            step=origin,
        )
