"""What is drawn: the kinds of bars and marks, which events they come from, and what counts as trouble."""

from __future__ import annotations

import msgspec


class Kind(msgspec.Struct, frozen=True):
    """One kind of bar (it lasts) or mark (it is an instant), and what a legend calls it."""

    name: str
    label: str
    lasts: bool


BARS = {
    "parked": "spare, parked",
    "ready": "ready for a proposal",
    "running": "workers run",
    "stopping": "ends its workers",
    "done": "done",
    "silent": "lost its seat, does not know it",
    "unhealthy": "unhealthy",
    "store_away": "store away",
    "publishing": "publishes",
    "serving": "serves a version",
    "updating": "changes version",
    "lagging": "lags behind",
    "quarantined": "quarantined",
    "gone": "server gone",
    "unknown": "not known yet",
    "load": "load",
    "engine": "other engine work",
    "hold": "holds a version",
    "announced": "tombstone stands",
}
MARKS = {
    "claimed": "claims the channel",
    "published": "published",
    "acknowledged": "acknowledged",
    "swept": "swept",
    "coordinator": "becomes coordinator",
    "round_proposed": "round proposed",
    "round_committed": "round committed",
    "round_running": "round runs",
    "outcome": "outcome",
    "fault": "fault, on purpose",
    "recovered": "recovered",
    "measured": "measured a step",
    "trouble": "anomaly",
    "note": "other event",
}
KINDS = {
    **{name: Kind(name, label, True) for name, label in BARS.items()},
    **{name: Kind(name, label, False) for name, label in MARKS.items()},
}

# Few, and worth to be seen each: they have half of the room for themselves.
RARE = frozenset(
    {"claimed", "published", "coordinator", "round_proposed", "round_committed", "round_running", "outcome", "fault"}
    | {"recovered", "trouble", "note", "unhealthy", "quarantined", "gone", "store_away"}
)

NODE_STATES = frozenset({"parked", "ready", "running", "stopping", "done", "unhealthy"})
SERVER_STATES = {
    "ready": "serving",
    "updating": "updating",
    "lagging": "lagging",
    "quarantined": "quarantined",
    "gone": "gone",
    "unknown": "unknown",
}
LOADS = frozenset({"load", "reload"})
MARK_OF = {
    "measured": "measured",
    "claimed": "claimed",
    "published": "published",
    "acknowledged": "acknowledged",
    "swept": "swept",
    "coordinator": "coordinator",
    "round_proposed": "round_proposed",
    "round_committed": "round_committed",
    "round_running": "round_running",
    "outcome": "outcome",
    "fault": "fault",
    "survived": "recovered",
    "recovered": "recovered",
}
# Worth a line in the table of anomalies, and what that table calls it.
TROUBLES = {
    "refused": "version refused",
    "failed": "load failed, given again",
    "rejected": "version rejected",
    "fenced": "fenced: replaced by a newer publisher",
    "expired": "consumer taken for dead",
    "lease_lost": "lease lost",
    "superseded_consumer": "consumer replaced by a newer life",
    "unprotected": "consumer without holds",
    "release_late": "release not written in time",
    "publish_failed": "publish failed",
    "publish_unknown": "outcome of a publish unknown",
    "no_legacy_link": "no legacy link",
    "hint_failed": "CURRENT not written",
    "beat_failed": "beat not written",
    "remove_failed": "version not removed",
    "sweep_failed": "sweep failed",
    "no_reserve": "no reserve for tombstones",
    "reserve_spent": "reserve spent: disk full",
    "close_failed": "left without a good-bye",
    "engine_failed": "server did not do as told",
    "server_gone": "server gone",
    "server_quarantined": "server quarantined",
    "unhealthy": "node unhealthy",
    "lost": "agent gave up",
    "store_away": "job's store away",
    "fault": "fault, on purpose",
    "bad_outcome": "job did not succeed",
    "node_replaced": "node lost its seat",
    "clock_jumped": "wall clock jumped",
    "clock_far": "wall clock far from the others'",
    "damaged_lines": "lines that are no events",
    "unreadable_file": "event file cannot be read",
}
# Told, and not drawn: what they say is in other bars and marks.
SILENT = frozenset(
    {"waiting", "registered", "taken_over", "given", "released", "closed", "garbage", "buried", "tombstone"}
    | {"server_state", "engine_did", "left", "store_back", "joined", "server_still"}
)

PLACES = frozenset({"step", "batch"})  # of what is measured: where one stands; no series

GROUPS = ("Faults", "Nodes", "Training", "Servers", "Consumers", "Sweepers")
_PREFIXES = (
    ("agent", "Nodes"),
    ("sync", "Servers"),
    ("consumer", "Consumers"),
    ("sweeper", "Sweepers"),
    ("director", "Faults"),
)


def group_of(process: str) -> str:
    """The group of lanes that a process belongs to, by its name; trainers and orchestrators are the rest."""
    return next((group for prefix, group in _PREFIXES if process.startswith(prefix)), "Training")
