"""One server, driven: look, let the machine of each channel decide, act, tell; in a thread of its own.

Straight lines around `holdfast.core.reconcile`; what is done next, and why, is decided there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

import msgspec

from holdfast.core import reconcile
from holdfast.core.names import Version, parse_version
from holdfast.core.servers import (
    Acknowledge,
    Action,
    After,
    Before,
    Canary,
    Idle,
    Label,
    Load,
    Pause,
    Policy,
    Reaction,
    Reload,
    ResetCache,
    Resume,
    Server,
    Unlabel,
    Unload,
    Way,
    World,
)
from holdfast.engines.contract import UPDATING, Engine, EngineError, Sight
from holdfast.errors import UsageError
from holdfast.sync.canary import compare
from holdfast.sync.config import ServerConfig
from holdfast.sync.feed import Feed, Offer
from holdfast.sync.hooks import Hooks
from holdfast.sync.metrics import Metrics

logger = logging.getLogger(__name__)

ACTIONS_MAX = 50  # in one turn, so that no channel keeps the others waiting for ever
SLOW_LOOKS_MAX = 3
STILL_S = 60.0  # how often a state is told though it has not changed: the end of an event file tells of all servers


class Driver:
    """One server and its machines, one per channel.

    Args:
        engine: the connection to it.
        config: how it is to be fed.
    """

    def __init__(self, engine: Engine, config: ServerConfig, hooks: Hooks, metrics: Metrics) -> None:
        self.url = engine.url
        self.bases: tuple[str, ...] = ()
        self._engine = engine
        self._config = config
        self._hooks = hooks
        self._metrics = metrics
        self._lock = threading.Lock()
        self._feeds: dict[Feed, Policy] = {}
        self._states: dict[Feed, Server] = {}
        self._said_s: dict[Feed, float] = {}
        self._slow = 0
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"holdfast-{engine.url}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the action under way; the server is left as it is."""
        self._stopping.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join()
        self._engine.close()

    def wake(self) -> None:
        self._due.set()

    def add(self, feed: Feed) -> None:
        policy = self._config.policy(feed.settings, feed.adapter, hooks=self._hooks.wanted)
        with self._lock:
            self._feeds[feed] = policy
            self._states[feed] = Server()
        feed.report(self.url, Server())
        self.wake()

    def remove(self, feed: Feed) -> None:
        with self._lock:
            self._feeds.pop(feed, None)
            self._states.pop(feed, None)
            self._said_s.pop(feed, None)
        feed.forget(self.url)

    def states(self) -> dict[Feed, tuple[Policy, Server]]:
        """What each channel's machine says of this server now."""
        with self._lock:
            return {feed: (policy, self._states[feed]) for feed, policy in self._feeds.items()}

    # The thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.clear()
            with self._lock:
                feeds = list(self._feeds.items())
            wait_s = min((self._turn(feed, policy) for feed, policy in feeds), default=reconcile.LOOK_S)
            self._due.wait(wait_s)

    def _turn(self, feed: Feed, policy: Policy) -> float:
        """Bring one channel's part of the server to rest; for how long it may then be left alone (seconds)."""
        for _ in range(ACTIONS_MAX):
            if self._stopping.is_set():
                return 0.0
            if self._swapping(feed):
                return reconcile.PAUSE_S_MIN
            event = self._look(feed, policy)
            if event is None:
                return reconcile.PAUSE_S_MIN
            effects = self._step(feed, policy, event)
            while effects:
                (effect,) = effects
                if isinstance(effect, Idle):
                    return effect.wait_s
                effects = self._step(feed, policy, self._act(feed, policy, effect))
        return 0.0

    def _swapping(self, feed: Feed) -> bool:
        """Whether another channel is being swapped in place: the server is paused for it, and not to be resumed yet."""
        with self._lock:
            return any(state.changing for other, state in self._states.items() if other is not feed)

    def _step(self, feed: Feed, policy: Policy, event: reconcile.Event) -> tuple[Action | Idle, ...]:
        with self._lock:
            before = self._states.get(feed, Server())
        state, effects = reconcile.step(before, event, policy)
        with self._lock:
            if feed in self._states:
                self._states[feed] = state
        changed = (before.status, before.serving) != (state.status, state.serving)
        if changed:
            logger.info("%s %s: %s: %s", self.url, feed.adapter, state.status.value, state.reason)
        now_s = time.monotonic()
        if changed or now_s - self._said_s.setdefault(feed, now_s) >= STILL_S:
            self._said_s[feed] = now_s
            said = {"server": self.url, "adapter": feed.adapter, "state": state.status.value}
            word = "server_state" if changed else "server_still"
            feed.events.emit(word, state.reason, version=state.serving, **said)
        if before != state:
            feed.report(self.url, state)
            self._metrics.state(self.url, feed.adapter, state)
        return effects

    # Looking

    def _look(self, feed: Feed, policy: Policy) -> reconcile.Event | None:
        """What there is, as an event; None: it is only slow, and nothing can be said."""
        try:
            sight = self._engine.look(policy.way)
            self._check(feed, policy, sight)
        except EngineError as error:
            if error.code == "too_slow" and self._slow < SLOW_LOOKS_MAX:
                self._slow += 1
                return None
            if error.reaction is Reaction.FIX_SETUP:
                self._stopping.wait(reconcile.LOOK_S)
            return reconcile.Gone(str(error))
        except UsageError as error:
            return reconcile.Gone(str(error))
        self._slow = 0
        self.bases = sight.bases
        return reconcile.Looked(self._world(feed, policy, sight, feed.offer()), time.monotonic())

    def _check(self, feed: Feed, policy: Policy, sight: Sight) -> None:
        """Whether this server and this channel go together. EngineError FIX_SETUP."""
        if policy.way not in self._engine.ways:
            raise EngineError(
                f"{self._engine.kind} cannot take {policy.way.value} without failing requests",
                Reaction.FIX_SETUP,
                code="way_not_possible",
                hint="use naming = versioned",
            )
        if policy.way is Way.WEIGHTS:
            return
        path = sight.loaded.get(policy.adapter)
        foreign = policy.way is Way.STABLE and path is not None and parse_version(PurePath(path).name) is None
        if policy.adapter in sight.bases or foreign:
            raise EngineError(
                f"the server has {policy.adapter!r} already, as {path or 'its base model'}",
                Reaction.FIX_SETUP,
                code="name_taken",
                hint="give another adapter name",
            )
        self._check_base(feed, sight)

    def _check_base(self, feed: Feed, sight: Sight) -> None:
        desired = feed.offer().desired
        manifest = feed.manifest(desired) if desired is not None else None
        needs = manifest.requires.get("base_model") if manifest is not None else None
        called = feed.settings.base_model
        if called == "any" or not isinstance(needs, str) or not needs or not sight.bases:
            return
        names = {PurePath(name).name for name in sight.bases} | set(sight.bases)
        if not names & {needs, PurePath(needs).name, called}:
            raise EngineError(
                f"the adapter was made for {needs}, and the server has {', '.join(sight.bases)}",
                Reaction.FIX_SETUP,
                code="wrong_base_model",
                hint="start the server with that model; or say what it is called there by --base-model (any: no check)",
            )

    def _world(self, feed: Feed, policy: Policy, sight: Sight, offer: Offer) -> World:
        loaded: dict[str, Version | None] = {}
        for name, path in sight.loaded.items():
            version = _version_of(name, path, policy)
            if version is None:
                continue
            place = feed.place(version)
            # A server that lists no paths (Dynamo's workers) is believed: the name was never used for other bytes.
            ours = place is not None and path in ("", self._config.mapped(place))
            loaded[name] = version if ours else None
        prefix = f"{policy.adapter}-"
        busy = {parse_version(name.removeprefix(prefix)) for name in sight.busy if name.startswith(prefix)} - {None}
        return World(
            desired=offer.desired,
            copies=offer.copies,
            outside=offer.outside,
            loaded=loaded,
            label=parse_version(sight.label) if sight.label else None,
            paused=sight.paused,
            busy=frozenset(version for version in busy if version is not None),
            counts=sight.counts,
            room=self._room(sight),
            retired=offer.retired,
        )

    def _room(self, sight: Sight) -> int:
        total = self._config.residents_total
        return 1_000_000 if total is None else max(0, total - len(sight.loaded))

    # Acting

    def _act(self, feed: Feed, policy: Policy, action: Action) -> reconcile.Event:
        began_s = time.monotonic()
        try:
            self._carry_out(feed, policy, action)
        except EngineError as error:
            logger.warning("%s %s: %s", self.url, type(action).__name__, error)
            self._metrics.failed(self.url, feed.adapter, error)
            feed.events.emit("engine_failed", str(error), **_told(self.url, action), code=error.code)
            return reconcile.Failed(action, error.reaction, str(error), time.monotonic())
        now_s = time.monotonic()
        self._metrics.did(self.url, feed.adapter, action, now_s - began_s)
        feed.events.emit("engine_did", **_told(self.url, action), took_s=round(now_s - began_s, 6))
        return reconcile.Done(action, now_s)

    def _carry_out(self, feed: Feed, policy: Policy, action: Action) -> None:
        engine = self._engine
        match action:
            case Load(name, version):
                engine.load_adapter(name, self._place(feed, version))
            case Unload(name, _):
                engine.unload_adapter(name)
            case Pause():
                engine.pause(policy.adapter if policy.way is Way.STABLE else None)
            case Resume():
                engine.resume()
            case Unlabel():
                engine.set_label(UPDATING)
            case Reload(version):
                engine.reload_weights(self._place(feed, version))
            case ResetCache():
                engine.reset_cache()
            case Label(version):
                engine.set_label(str(version))
            case Canary(name, version):
                model = self.bases[0] if policy.way is Way.WEIGHTS and self.bases else name
                compare(engine, model, version, feed.manifest(version))
            case Before(version, old):
                self._hooks.before(self.url, feed.adapter, version, old)
            case After(version, old):
                self._hooks.after(self.url, feed.adapter, version, old)
            case Acknowledge():
                pass  # the feed does, once all its servers are so far

    def _place(self, feed: Feed, version: Version) -> str:
        place = feed.place(version)
        if place is None:
            raise EngineError(f"{version} is not at hand any more", Reaction.LOOK_AGAIN, code="copy_gone")
        return self._config.mapped(place)


def _told(url: str, action: Action) -> dict[str, Any]:
    return {"server": url, "action": type(action).__name__.lower(), "version": getattr(action, "version", None)}


def _version_of(name: str, path: str, policy: Policy) -> Version | None:
    """The version that an adapter on the server is, if it is one of ours."""
    if policy.way is Way.VERSIONED:
        return parse_version(name.removeprefix(f"{policy.adapter}-")) if name.startswith(f"{policy.adapter}-") else None
    return parse_version(PurePath(path).name) if name == policy.adapter else None


class ServedChannel(msgspec.Struct, frozen=True, kw_only=True):
    """What one server serves of one channel."""

    channel: str
    adapter: str
    state: str
    reason: str
    version: str | None
    step: int | None
    cycle: int | None
    model: str | None
    previous: str | None
    desired: str | None


class ServedServer(msgspec.Struct, frozen=True, kw_only=True):
    """One server, and what it serves."""

    url: str
    state: str
    reason: str
    channels: tuple[ServedChannel, ...]


_WORST = ("quarantined", "gone", "unknown", "lagging", "updating", "ready")


def served(driver: Driver) -> ServedServer:
    """What `driver`'s server serves now. A label is there only once it was proved."""
    channels = tuple(
        _served_channel(driver, feed, policy, state)
        for feed, (policy, state) in sorted(driver.states().items(), key=lambda item: item[0].adapter)
    )
    worst = min(channels, key=lambda one: _WORST.index(one.state), default=None)
    if worst is None:
        return ServedServer(url=driver.url, state="unknown", reason="there is no channel yet", channels=())
    return ServedServer(url=driver.url, state=worst.state, reason=worst.reason, channels=channels)


def _served_channel(driver: Driver, feed: Feed, policy: Policy, state: Server) -> ServedChannel:
    version = state.serving
    model = None
    if version is not None:
        model = policy.name(version) if policy.way is not Way.WEIGHTS else next(iter(driver.bases), None)
    desired = feed.desired
    return ServedChannel(
        channel=str(feed.path),
        adapter=feed.adapter,
        state=state.status.value,
        reason=state.reason if not feed.failed else f"{state.reason}; channel: {feed.failed}",
        version=str(version) if version is not None else None,
        step=version.step if version is not None else None,
        cycle=version.cycle if version is not None else None,
        model=model,
        previous=str(state.previous) if state.previous is not None else None,
        desired=str(desired) if desired is not None else None,
    )


def wake_all(drivers: Iterable[Driver]) -> Callable[[], None]:
    drivers = tuple(drivers)

    def wake() -> None:
        for driver in drivers:
            driver.wake()

    return wake
