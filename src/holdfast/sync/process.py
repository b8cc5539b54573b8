"""A sync process: its channels, its servers, its own HTTP; from `start` to `stop`."""

from __future__ import annotations

import logging
import pathlib
import threading

import msgspec

from holdfast.core.names import Version
from holdfast.engines.open import open_engine
from holdfast.errors import UsageError
from holdfast.sync.api import Api
from holdfast.sync.config import SyncConfig, read_token
from holdfast.sync.discover import Discovery, Found
from holdfast.sync.driver import Driver, served, wake_all
from holdfast.sync.feed import Feed
from holdfast.sync.hooks import Hooks
from holdfast.sync.metrics import Metrics

logger = logging.getLogger(__name__)

_GOOD = ("ready", "updating")


class Sync:
    """Brings every channel of `config` into every server of it.

    SIGTERM is the caller's: `stop` leaves what is served in place, and the next process of this name goes on.
    """

    def __init__(self, config: SyncConfig) -> None:
        self._config = config
        self._metrics = Metrics(lambda: [feed.now() for feed in self._followed()])
        self._hooks = Hooks(config.hooks)
        self._drivers = [self._driver(index) for index in range(len(config.servers))]
        self._wake = wake_all(self._drivers)
        self._discovery = Discovery(config.channels, config.retire_s)
        self._lock = threading.Lock()
        self._feeds: dict[pathlib.Path, Feed] = {}
        self._clashes: set[str] = set()
        self._stopping = threading.Event()
        self._finder = threading.Thread(target=self._find, name="holdfast-discover", daemon=True)
        self.api = Api(config.listen, self, lambda: read_token(config.token_file)) if config.listen else None

    def start(self) -> None:
        """Begin to follow the channels and to feed the servers."""
        for found in self._discovery.named():
            self._add(found)
        self._finder.start()
        for driver in self._drivers:
            driver.start()
        if self.api is not None:
            self.api.start()

    def stop(self) -> None:
        """Stop; servers, copies and holds stay as they are."""
        self._stopping.set()
        if self._finder.is_alive():
            self._finder.join()
        if self.api is not None:
            self.api.stop()
        for driver in self._drivers:
            driver.stop()
        for feed in self._followed():
            feed.stop()
        self._hooks.close()

    @property
    def failed(self) -> str:
        """Why this process has nothing to do any more; "" while it has."""
        feeds = self._followed()
        reasons = [feed.failed for feed in feeds if feed.over]
        return reasons[0] if feeds and len(reasons) == len(feeds) else ""

    # What the own HTTP tells

    def served(self) -> dict[str, object]:
        return {"name": self._config.name, "servers": msgspec.to_builtins([served(driver) for driver in self._drivers])}

    def desired(self) -> dict[str, object]:
        channels = [
            {
                "channel": str(feed.path),
                "adapter": feed.adapter,
                "desired": _text(feed.desired),
                "newest": _text(feed.newest),
                "status": feed.status,
            }
            for feed in self._followed()
        ]
        return {"drive": self._config.drive, "channels": channels}

    def health(self) -> tuple[bool, dict[str, object]]:
        servers = [served(driver) for driver in self._drivers]
        bad = {server.url: f"{server.state}: {server.reason}" for server in servers if server.state not in _GOOD}
        bad |= {str(feed.path): feed.failed for feed in self._followed() if feed.failed}
        return not bad, {"status": "ok" if not bad else "degraded", "problems": bad}

    def metrics(self) -> bytes:
        return self._metrics.text()

    def apply(self, version: str, adapter: str | None) -> dict[str, object]:
        if self._config.drive != "manual":
            raise UsageError("this process drives itself", code="not_manual", hint="start it with --drive manual")
        feeds = [feed for feed in self._followed() if adapter in (None, feed.adapter)]
        if len(feeds) != 1:
            known = ", ".join(feed.adapter for feed in self._followed())
            raise UsageError(
                f"adapter {adapter!r} means {len(feeds)} channels", code="which_channel", hint=f"give one of: {known}"
            )
        return {"adapter": feeds[0].adapter, "desired": str(feeds[0].apply(version))}

    # Channels come and go

    def _find(self) -> None:
        while not self._stopping.is_set():
            found = self._discovery.look()
            for one in found:
                if one.path not in self._feeds:
                    self._add(one)
            for path in self._discovery.ended(found):
                if path in self._feeds:
                    logger.info("%s has ended", path)
                    self._feeds[path].retire()
            self._bury()
            self._stopping.wait(self._config.discover_s)

    def _add(self, found: Found) -> None:
        taken = {feed.adapter: feed.path for feed in self._followed()}
        if found.adapter in taken:
            if found.adapter not in self._clashes:
                self._clashes.add(found.adapter)
                logger.error("%s would be served as %r, as %s is", found.path, found.adapter, taken[found.adapter])
            return
        feed = Feed(self._config, found.config, found.path, found.adapter, self._wake)
        with self._lock:
            self._feeds[found.path] = feed
        logger.info("%s is followed as %r", found.path, found.adapter)
        for driver in self._drivers:
            driver.add(feed)
        feed.start()

    def _bury(self) -> None:
        """Forget channels that have ended, once no server has anything of them."""
        for feed in self._followed():
            if feed.retired:
                for driver in self._drivers:
                    driver.remove(feed)
                    self._metrics.forget(driver.url, feed.adapter)
                feed.leave()
                with self._lock:
                    del self._feeds[feed.path]

    def _followed(self) -> list[Feed]:
        with self._lock:
            return [feed for _, feed in sorted(self._feeds.items())]

    def _driver(self, index: int) -> Driver:
        server = self._config.servers[index]
        engine = open_engine(server.engine, server.url, token=lambda: read_token(server.token_file))
        return Driver(engine, server, self._hooks, self._metrics)


def _text(version: Version | None) -> str | None:
    return str(version) if version is not None else None
