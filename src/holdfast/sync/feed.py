"""One channel on its way into servers: its consumer, the copies at hand, and who still needs them.

One thread takes versions from the channel; drivers (one per server) ask what is desired, load it from the copy's path,
and report what became of it. Another thread settles what follows: a copy goes when the channel has newer ones and no
server may still read it, and what all servers serve is acknowledged. Whoever only asks never waits for the storage.
"""

from __future__ import annotations

import logging
import pathlib
import threading
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from holdfast.channel.channel import Channel
from holdfast.channel.held import HeldVersion
from holdfast.core.manifest import Manifest
from holdfast.core.names import Version, require_version
from holdfast.core.servers import Server, Status
from holdfast.errors import ConflictError, HoldfastError, NotVisibleError, UnavailableError, UsageError
from holdfast.sync.config import ChannelConfig, SyncConfig
from holdfast.sync.metrics import ChannelNow

logger = logging.getLogger(__name__)

TAKE_S = 1.0
TAKEN_MAX = 1000  # remembered, to say by how many versions a server is behind
_SILENT = (Status.UNKNOWN, Status.GONE, Status.QUARANTINED)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What there is for a server, as of now. Fields as in `World`."""

    desired: Version | None
    copies: frozenset[Version]
    outside: frozenset[Version]
    retired: bool


class Feed:
    """One channel, followed until `stop`.

    Args:
        config: the process's.
        channel: this channel's part of it.
        path: the channel's directory.
        adapter: the name that clients know.
        wake: called when there is something new for the drivers.
    """

    def __init__(
        self, config: SyncConfig, channel: ChannelConfig, path: pathlib.Path, adapter: str, wake: Callable[[], None]
    ) -> None:
        self.settings = channel
        self.path = path
        self.adapter = adapter
        self.failed = ""
        self._over = False
        self._config = config
        self._wake = wake
        opened = Channel(
            path, claims=channel.claims, visibility_bound_s=config.visibility_bound_s, lease_s=config.lease_s
        )
        self.events = opened.event_log(f"sync-{config.name}")
        self._observer = opened.observer()
        self._consumer = opened.consumer(
            config.name,
            stage=None if config.stage_path is None else config.stage_path / adapter,
            on_close="keep",
            patience_s=config.patience_s,
            poll_s=config.poll_s,
            stage_bytes=config.stage_bytes,
        )
        self._lock = threading.RLock()
        self._held: dict[Version, HeldVersion] = {}
        self._newest: Version | None = None
        self._taken: deque[Version] = deque(maxlen=TAKEN_MAX)
        self._desired: Version | None = None
        self._outside: frozenset[Version] = frozenset()
        self._retired = False
        self._acknowledged: Version | None = None
        self._reports: dict[str, Server] = {}
        self._stopping = threading.Event()
        self._due = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"holdfast-{word}-{adapter}", daemon=True)
            for word, work in (("feed", self._run), ("settle", self._run_settling))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop following; what is served stays as it is, and so do the copies and holds."""
        self._stopping.set()
        self._due.set()
        self._consumer.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self.events.emit("closed", "told to stop; what is served stays", sync=self._config.name)
        self.events.close()

    def leave(self) -> None:
        """After the channel has ended: let go of everything, then stop."""
        with self._lock:
            held, self._held = list(self._held.values()), {}
        for one in held:
            one.release()
        self.stop()

    def retire(self) -> None:
        """The channel has ended: nothing of it is to stay on the servers."""
        with self._lock:
            self._retired = True
            self._desired = None
        self._wake()

    @property
    def over(self) -> bool:
        """It will not go on: another process has its name."""
        return self._over

    @property
    def retired(self) -> bool:
        """It has ended, and no server has anything of it any more."""
        with self._lock:
            return self._retired and not any(state.needs for state in self._reports.values())

    # What drivers ask

    def offer(self) -> Offer:
        with self._lock:
            return Offer(
                desired=self._desired, copies=frozenset(self._held), outside=self._outside, retired=self._retired
            )

    def place(self, version: Version) -> pathlib.Path | None:
        """The directory of a version at hand, which no other version ever had; None if it is not at hand."""
        with self._lock:
            held = self._held.get(version)
            return held.path if held is not None and not held.lost else None

    def manifest(self, version: Version) -> Manifest | None:
        with self._lock:
            held = self._held.get(version)
            return held.manifest if held is not None else None

    def report(self, server: str, state: Server) -> None:
        """What a server is like now."""
        with self._lock:
            self._reports[server] = state
        self._due.set()

    def forget(self, server: str) -> None:
        with self._lock:
            self._reports.pop(server, None)
        self._due.set()

    # What people ask

    @property
    def desired(self) -> Version | None:
        with self._lock:
            return self._desired

    @property
    def newest(self) -> Version | None:
        with self._lock:
            return self._newest

    @property
    def status(self) -> str:
        """What the channel's side waits for, in words; "" while it waits for nothing."""
        return self.failed or self._consumer.status

    def now(self) -> ChannelNow:
        """How it is, for metrics."""
        with self._lock:
            return ChannelNow(
                adapter=self.adapter,
                newest=self._newest,
                taken=tuple(self._taken),
                held=len(self._held),
                failed=bool(self.failed),
                outside=self._outside,
                servers=dict(self._reports),
            )

    def apply(self, version: str) -> Version:
        """Make `version` ("newest", or its name) the desired one, as an orchestrator says.

        Raises:
            UsageError: code "bad_version_name", "not_at_hand": there is no such version in the channel.
            HoldfastError: as `Consumer.hold`.
        """
        with self._lock:
            name = self._newest if version == "newest" else require_version(version)
            known = name in self._held
        if name is None:
            raise UsageError("the channel has no version yet", code="not_at_hand", hint="wait for the first one")
        held = None if known else self._consumer.hold(name)
        with self._lock:
            if held is not None:
                self._held[name] = held
            self._desired = name
        self._wake()
        return name

    # The thread

    def _run(self) -> None:
        opened = False
        while not self._stopping.is_set():
            try:
                if not opened:
                    self._consumer.open()
                    opened = self._adopt()
                held = self._consumer.take(timeout_s=TAKE_S)
                if held is not None:
                    self._take(held)
                self._look()
                self.failed = ""
            except UnavailableError as error:
                self._pause(str(error))
            except HoldfastError as error:
                if self._stopping.is_set():
                    return
                if isinstance(error, ConflictError) and error.code == "superseded_consumer":
                    self.failed, self._over = str(error), True
                    logger.error("%s: %s", self.path, error)
                    return
                self._pause(str(error))

    def _pause(self, reason: str) -> None:
        if self.failed != reason:
            logger.warning("%s: %s", self.path, reason)
        self.failed = reason
        self._stopping.wait(TAKE_S)

    def _adopt(self) -> bool:
        """Go on with what an earlier process of this name left; the newest of it is served until there is a newer."""
        with self._lock:
            for held in self._consumer.held:
                self._held[held.name] = held
            if self._held and self._desired is None and not self._retired:
                self._newest = self._desired = max(self._held)
        self._wake()
        return True

    def _take(self, held: HeldVersion) -> None:
        with self._lock:
            self._held[held.name] = held
            self._newest = held.name
            self._taken.append(held.name)
            if self._retired:
                return
            if self._config.drive == "auto" or self._desired is None:
                self._desired = held.name
        self._due.set()
        self._look()
        self._wake()

    def _look(self) -> None:
        """What lies outside of the lineage now; while the storage is away, as before."""
        try:
            lineage = self._observer.lineage()
        except (UnavailableError, NotVisibleError):
            return
        with self._lock:
            reports = self._reports.values()
            known = frozenset(self._held).union(*(state.needs for state in reports))
            known |= frozenset(state.serving for state in reports if state.serving is not None)
            outside = (
                frozenset(version for version in known if version not in lineage) if lineage.spans else frozenset()
            )
            changed, self._outside = outside != self._outside, outside
        if changed:
            self._due.set()
            self._wake()

    # Settling: decide under the lock, then do it without, since the storage may be away

    def _run_settling(self) -> None:
        while not self._stopping.is_set():
            self._due.wait(TAKE_S)
            self._due.clear()
            if self._stopping.is_set():
                return
            for held in self._dropped():
                held.release()
            self._acknowledge()
            self._reject_if_all_refuse()

    def _dropped(self) -> list[HeldVersion]:
        """The copies that nobody needs any more; they are not at hand from here on."""
        with self._lock:
            if not self._config.servers:
                needed = frozenset(sorted(self._held, reverse=True)[: self._config.keep])
            elif self._reports and all(state.status is not Status.UNKNOWN for state in self._reports.values()):
                needed = frozenset[Version]().union(*(state.needs for state in self._reports.values()))
            else:
                return []
            unneeded = self._held.keys() - needed - {self._desired, self._newest}
            return [self._held.pop(version) for version in sorted(unneeded)]

    def _acknowledge(self) -> None:
        """Say which version is live: the desired one, once all servers that can be asked serve it and nothing else."""
        with self._lock:
            version = self._desired
            held = self._held.get(version) if version is not None else None
            live = [state for state in self._reports.values() if state.status not in _SILENT]
            served = live and all(state.acknowledged == state.serving == version for state in live)
            if held is None or version == self._acknowledged or not (served or not self._config.servers):
                return
        try:
            held.acknowledge()
        except UnavailableError as error:
            logger.warning("%s: %s is served, which cannot be told yet: %s", self.path, version, error)
            return
        except ConflictError as error:
            logger.warning("%s: %s", self.path, error)
            if held.lost:
                with self._lock:
                    self._held.pop(held.name, None)
            return
        with self._lock:
            self._acknowledged = version

    def _reject_if_all_refuse(self) -> None:
        """Say in the channel that no server here can use it."""
        with self._lock:
            version = self._desired
            held = self._held.get(version) if version is not None else None
            reasons = [_reason(state, version) for state in self._reports.values()] if version is not None else []
            if version is None or held is None or not reasons or not all(reasons):
                return
            self._held.pop(version)
            serving = [state.serving for state in self._reports.values() if state.serving is not None]
            if self._newest == version:
                self._newest = max(self._held, default=None)
            self._desired = max(serving, default=self._newest)
        held.reject(reasons[0])
        self._wake()


def _reason(state: Server, version: Version) -> str:
    refused: Mapping[Version, str] = dict(state.refused)
    return refused.get(version, "")
