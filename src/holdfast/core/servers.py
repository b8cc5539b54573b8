"""What is known of an inference server, what it should serve, and what may be done to it: the words of reconcile.py."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from holdfast.core.names import Version


class Way(enum.Enum):
    """What is loaded, and under which names."""

    VERSIONED = "versioned"  # an adapter under a fresh name per version
    STABLE = "stable"  # an adapter, always under one name
    WEIGHTS = "weights"  # the whole model


class Status(enum.Enum):
    UNKNOWN = "unknown"
    READY = "ready"
    UPDATING = "updating"
    LAGGING = "lagging"
    QUARANTINED = "quarantined"
    GONE = "gone"


class Reaction(enum.Enum):
    LOOK_AGAIN = "look again"
    NEXT_VERSION = "next version"
    QUARANTINE = "quarantine"
    FIX_SETUP = "fix the set-up"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How one server is fed.

    Attributes:
        adapter: the name that clients know; with Way.VERSIONED the beginning of each version's name.
        residents: how many versions may be on the server at once, while one replaces another (at least 2).
        linger_s: how long a name goes on being served after a newer one was (seconds).
        settle_s: how long after an unload the server's count of requests is not believed yet (seconds).
        drain_s: how long requests of an unloaded version are waited for (seconds); then its copy goes all the same.
        tries: how often a version is tried that the server can't see.
        canary: whether completions prove a version.
        hooks: whether somebody wants to hear of a change before and after it.
    """

    way: Way = Way.VERSIONED
    adapter: str = "policy"
    residents: int = 2
    linger_s: float = 1.0
    settle_s: float = 1.0
    drain_s: float = 600.0
    tries: int = 5
    canary: bool = False
    hooks: bool = False

    def name(self, version: Version) -> str:
        """Under which name clients ask for `version`."""
        return f"{self.adapter}-{version}" if self.way is Way.VERSIONED else self.adapter


class World(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a server and at what there is for it.

    Attributes:
        desired: what it should serve; None: nothing (yet).
        copies: what may be loaded: verified, and where the server finds it.
        outside: what the present trainer does not descend from, among all that is known here.
        loaded: what the server lists as ours: name -> version, None if its path says no version.
        label: the version that full weights are labelled with.
        paused: the server holds its requests back.
        busy: versions whose requests the server reports as running or waiting.
        counts: whether it reports that at all.
        room: how many more versions of this channel the server may take, for other channels' sake.
        retired: the channel has ended: nothing of it is to stay.
    """

    desired: Version | None = None
    copies: frozenset[Version] = frozenset()
    outside: frozenset[Version] = frozenset()
    loaded: Mapping[str, Version | None] = {}
    label: Version | None = None
    paused: bool = False
    busy: frozenset[Version] = frozenset()
    counts: bool = True
    room: int = 1_000_000
    retired: bool = False

    @property
    def on_server(self) -> frozenset[Version]:
        return frozenset(version for version in self.loaded.values() if version is not None)


class Load(msgspec.Struct, frozen=True):
    """Load `version` under `name` from a path that no other version ever had."""

    name: str
    version: Version


class Unload(msgspec.Struct, frozen=True):
    """Make the server forget `name`; requests under way go on with the version that they began with."""

    name: str
    version: Version | None


class Pause(msgspec.Struct, frozen=True):
    """Let requests under way end, and new ones wait."""


class Resume(msgspec.Struct, frozen=True):
    """Let requests go on."""


class Unlabel(msgspec.Struct, frozen=True):
    """Say that what is served is unknown, before the first byte of it changes."""


class Reload(msgspec.Struct, frozen=True):
    """Replace the whole model's weights by those of `version`."""

    version: Version


class ResetCache(msgspec.Struct, frozen=True):
    """Forget what was computed with older weights."""


class Label(msgspec.Struct, frozen=True):
    """Say which version is served now; only after the cache was reset."""

    version: Version


class Canary(msgspec.Struct, frozen=True):
    """Compare a completion by `name` with what the publisher of `version` expects."""

    name: str
    version: Version


class Before(msgspec.Struct, frozen=True):
    """Tell whoever wants to know that `version` is about to replace `old`; they may object."""

    version: Version
    old: Version | None


class After(msgspec.Struct, frozen=True):
    """Tell whoever wants to know that `version` has replaced `old`."""

    version: Version
    old: Version | None


class Acknowledge(msgspec.Struct, frozen=True):
    """This server serves `version`, and nothing outside its lineage."""

    version: Version


class Idle(msgspec.Struct, frozen=True):
    """Look again after `wait_s` seconds, or when something happens."""

    reason: str
    wait_s: float


Action = Load | Unload | Pause | Resume | Unlabel | Reload | ResetCache | Label | Canary | Before | After | Acknowledge


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server as seen for one channel.

    Attributes:
        serving: the version that clients are answered by, proved; None: unknown.
        proved: what was proved since the server was last seen to come up.
        reason: why it is in this state, in words.
        since_s: version -> since when it is not the newest any more; or since when it is off the list.
        changing: what is being loaded in place, so that the server may be paused by us.
    """

    status: Status = Status.UNKNOWN
    reason: str = "not looked at yet"
    serving: Version | None = None
    previous: Version | None = None
    proved: frozenset[Version] = frozenset()
    acknowledged: Version | None = None
    told: Version | None = None
    refused: frozenset[tuple[Version, str]] = frozenset()
    failures: int = 0
    trying: Version | None = None
    not_before_s: float = 0.0
    since_s: Mapping[Version, float] = {}
    draining: frozenset[Version] = frozenset()
    todo: tuple[Action, ...] = ()
    needs: frozenset[Version] = frozenset()
    changing: bool = False
