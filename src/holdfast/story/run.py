"""A run as it is shown: of bounded size, whatever its event files held. Times are seconds since 1970, wall clock."""

from __future__ import annotations

import msgspec

Bar = tuple[float, float, int, float, str]  # start_s, end_s, how many, busy_s, text


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """What one process did, or one server beside it.

    Attributes:
        group: of `kinds.GROUPS`. `bars`: kind -> its bars and marks, by start.
    """

    name: str
    group: str
    first_s: float
    last_s: float
    bars: dict[str, list[Bar]] = {}


class Phase(msgspec.Struct, frozen=True):
    """A part of a change of round. `sure`: by one clock, the coordinator's; else by the wall clocks of several."""

    name: str
    took_s: float
    sure: bool = True


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One committed round, and what the change to it cost.

    Attributes:
        kind: "first"; "failover": a node lost its seat; "restart": its workers began anew; "wanted": drain, or growth.
        start_s: when its first phase began, on the wall clock of the coordinator.
        total_s: of all phases until every node's workers run; None: that is not told.
        output_again_s: from there to the next version published (where none ever is: to the next measurement).
    """

    number: int
    plan: str
    kind: str
    reason: str
    coordinator: str
    start_s: float
    committed_s: float
    num_seats: int = 0
    num_spares: int = 0
    replaced: dict[str, str] = {}
    phases: tuple[Phase, ...] = ()
    total_s: float | None = None
    output_again_s: float | None = None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A measured series: (step, mean, least, greatest, how many, when) by step; means of its first and last tenth."""

    name: str
    points: list[tuple[int, float, float, float, int, float]]
    num: int
    first_tenth: float | None
    last_tenth: float | None


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a person may want to know, with how often it was said in much the same words."""

    kind: str
    what: str
    process: str
    first_s: float
    last_s: float
    num: int
    version: str
    reason: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the whole run; None: nobody measured it.

    Attributes:
        served: versions that some consumer acknowledged; swept, refused: versions, not events.
        answered, retried, failed: requests.
        serve_s: of the versions: median from published to first acknowledged (seconds, by wall clocks).
    """

    processes: int = 0
    events: int = 0
    files: int = 0
    published: int = 0
    published_bytes: int = 0
    served: int = 0
    swept: int = 0
    refused: int = 0
    loads: int = 0
    acknowledged: int = 0
    answered: int | None = None
    retried: int | None = None
    failed: int | None = None
    serve_s: float | None = None
    faults: int = 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The whole story.

    Attributes:
        start_s, end_s: first and last event of those whose clocks agree; equal if there is none.
        outcome: ending, code and reason; None: nobody told one.
        anomalies: the first ones by time; `num_anomalies`: kind -> how many events in all, those left out included.
    """

    start_s: float
    end_s: float
    outcome: tuple[str, int, str] | None
    lanes: tuple[Lane, ...]
    rounds: tuple[Round, ...]
    series: tuple[Series, ...]
    anomalies: tuple[Anomaly, ...]
    num_anomalies: dict[str, int]
    totals: Totals
    left_out: dict[str, int] = {}

    @property
    def failovers(self) -> tuple[Round, ...]:
        """Rounds that something forced: a node was lost, or its workers failed."""
        return tuple(round_ for round_ in self.rounds if round_.kind in ("failover", "restart"))
