"""What the processes do until they are killed: publish, consume, sweep. Each has its own claims and its own journal."""

from __future__ import annotations

import hashlib
import pathlib
import random
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import holdfast
from holdfast.channel.payload import Payload
from holdfast.channel.posix import PosixStorage
from holdfast.channel.sources import BytesSource
from holdfast.channel.storage import Mount
from holdfast.core.lineage import candidates
from tests.kill.journal import Journal, digests

MAX_BYTES = 3_000_000
RETENTION = holdfast.Retention(keep_recent=2, max_bytes=MAX_BYTES)
KEPT_MAX = 3  # versions that a consumer goes on using beside the newest


class Elsewhere(PosixStorage):
    """The channel as if seen from another machine: then visibility bounds are waited for."""

    def mount(self) -> Mount:
        return Mount(host="elsewhere", device="1")


def _channel(spec: dict[str, Any]) -> holdfast.Channel:
    place = Elsewhere(spec["place"]) if spec.get("elsewhere") else PosixStorage(spec["place"])
    return holdfast.Channel(
        place, run="kill", visibility_bound_s=spec["bound_s"], lease_s=spec["lease_s"], events=spec["events"]
    )


def _rest(seconds: float) -> None:
    threading.Event().wait(seconds)


def publish(spec: dict[str, Any]) -> None:
    """Claim the channel as the next round, resume from somewhere, and publish until killed or done."""
    rng = random.Random(spec["seed"])
    journal = Journal(pathlib.Path(spec["journal"]))
    journal.say("started", round=spec["round"])
    channel = _channel(spec)
    term = holdfast.Term(job="kill", round=spec["round"], nonce=f"{spec['seed']:x}")
    try:
        with channel.publisher(
            RETENTION, resume_from=_origin(channel, rng), term=term, sweep=spec["sweep"]
        ) as publisher:
            origin = publisher.starts_from
            journal.say("claimed", cycle=publisher.cycle, starts_from=str(origin) if origin is not None else None)
            step = origin.step if origin is not None else 0
            end_s = time.monotonic() + spec["life_s"]
            while time.monotonic() < end_s:
                step += rng.choice((0, 1, 1, 1, 2))
                _publish_one(publisher, step, rng, journal, spec["local"])
                _rest(rng.choice((0.0, 0.01, 0.05)))
    except holdfast.HoldfastError as error:
        journal.say("error", code=error.code, kind=type(error).__name__, text=str(error))
    journal.say("ended")


def _origin(channel: holdfast.Channel, rng: random.Random) -> str | None:
    """The newest version, sometimes an older one (a rewind), seldom none."""
    try:
        channel.open()
    except holdfast.NotVisibleError:
        return None
    observer = channel.observer()
    line = candidates(observer.lineage(), observer.versions())
    if not line or rng.random() < 0.05:
        return None
    return str(line[0] if rng.random() < 0.8 else rng.choice(line[:4]))


def _publish_one(publisher: Any, step: int, rng: random.Random, journal: Journal, local: str) -> None:
    files = {"w.bin": rng.randbytes(rng.choice((0, 10, 5_000, 40_000))), "deep/er/v.bin": rng.randbytes(100)}
    journal.say(
        "intends",
        cycle=publisher.cycle,
        step=step,
        files={path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
    )
    if rng.random() < 0.3:
        with tempfile.TemporaryDirectory(dir=local) as folder:
            for path, data in files.items():
                place = pathlib.Path(folder, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            version = publisher.publish_directory(step, folder, wait=False).result()
    else:
        sources = tuple((path, BytesSource([data])) for path, data in sorted(files.items()))
        version = publisher.publish_payload(step, Payload(files=sources, kind="kill"))
    journal.say("committed", name=str(version))


def consume(spec: dict[str, Any]) -> None:
    """Take versions, read them while they are held, acknowledge, keep some for a while, and let them go."""
    rng = random.Random(spec["seed"])
    journal = Journal(pathlib.Path(spec["journal"]))
    journal.say("started", name=spec["name"], every=spec["every"], staged=spec["stage"] is not None)
    consumer = _channel(spec).consumer(
        spec["name"],
        stage=spec["stage"],
        every=spec["every"],
        on_close=rng.choice(("release", "keep")),
        poll_s=0.1,
        patience_s=spec["patience_s"],
    )
    user = _User(rng, journal, staged=spec["stage"] is not None)
    end_s = time.monotonic() + spec["life_s"]
    try:
        with consumer:
            for held in consumer.held:
                user.use(held, "adopted")
            while time.monotonic() < end_s:
                held = consumer.take(timeout_s=0.5)
                if held is not None:
                    user.use(held, "given")
                    _rest(rng.expovariate(1 / spec["pause_s"]))
    except holdfast.ConflictError as error:
        journal.say("error", code=error.code, kind=type(error).__name__, text=str(error))
    journal.say("ended")


class _User:
    """The program that uses versions: it says what it read, and what it finds gone although it holds it."""

    def __init__(self, rng: random.Random, journal: Journal, *, staged: bool) -> None:
        self._rng = rng
        self._journal = journal
        self._staged = staged
        self._kept: list[holdfast.HeldVersion] = []

    def use(self, held: holdfast.HeldVersion, word: str) -> None:
        rewound = str(held.rewound_from) if held.rewound_from is not None else None
        first = self._read(held)
        if first is None:
            return
        self._journal.say(word, version=str(held.name), files=first, rewound_from=rewound)
        # One that was taken over from the life before may be given again: a version is held once, however often given.
        self._kept = [kept for kept in self._kept if kept.name != held.name]
        if self._rng.random() < 0.8 and not self._acknowledge(held):
            return
        _rest(self._rng.choice((0.0, 0.0, 0.02, 0.1)))
        self._let_go(held)
        while len(self._kept) > self._rng.randrange(KEPT_MAX + 1):
            kept = self._kept.pop(0)
            again = self._read(kept)
            if again is not None:
                self._journal.say("read again", version=str(kept.name), files=again)
                kept.release()

    def _let_go(self, held: holdfast.HeldVersion) -> None:
        chance = self._rng.random()
        if chance < 0.05:
            held.fail()
        elif chance < 0.08:
            self._journal.say("rejects", version=str(held.name))
            held.reject("as the test wants it")
        elif chance < 0.4:
            self._kept.append(held)
        else:
            with held:
                _rest(0.0)

    def _acknowledge(self, held: holdfast.HeldVersion) -> bool:
        try:
            held.acknowledge()
        except holdfast.UnavailableError as error:  # its file could not be written just now: nothing was said
            self._journal.say("error", code=error.code, kind=type(error).__name__, text=str(error))
        except holdfast.ConflictError as error:
            if error.code != "lease_lost":
                raise
            self._journal.say("lost", version=str(held.name))
            return False
        return True

    def _read(self, held: holdfast.HeldVersion) -> dict[str, str] | None:
        """What stands there; None if the hold is lost, which only a frozen process may find."""
        try:
            return digests(held.path)
        except OSError as error:
            return self._missing(held, str(error))

    def _missing(self, held: holdfast.HeldVersion, reason: str) -> None:
        try:
            held.acknowledge()
        except holdfast.ConflictError as error:
            if error.code != "lease_lost":
                raise  # a younger process has the name, and tidied the older one's copies away
            self._journal.say("lost copy" if self._staged else "lost", version=str(held.name))
            return
        self._journal.say("violation", version=str(held.name), reason=f"held, and {reason}")


def sweep(spec: dict[str, Any]) -> None:
    """Sweep beside the publishers, in a thread or pass by pass."""
    rng = random.Random(spec["seed"])
    journal = Journal(pathlib.Path(spec["journal"]))
    journal.say("started")
    channel = _channel(spec)
    try:
        with channel.sweeper(RETENTION) as sweeper:
            if rng.random() < 0.5:
                sweeper.start()
                _rest(spec["life_s"])
            else:
                end_s = time.monotonic() + spec["life_s"]
                while time.monotonic() < end_s:
                    swept = sweeper.sweep()
                    if swept.removed:
                        journal.say("swept", versions=swept.removed)
                    _rest(rng.choice((0.0, 0.1, 0.3)))
    except holdfast.UnavailableError as error:
        journal.say("error", code=error.code, kind=type(error).__name__, text=str(error))
    journal.say("ended")


ROLES: dict[str, Callable[[dict[str, Any]], None]] = {"publisher": publish, "consumer": consume, "sweeper": sweep}
