"""Random lives of publishers, consumers and sweepers, beside a model that a child could follow.

Everybody is in one process, each with a storage object of its own, which can be cut: then that participant is dead or
frozen, whatever its threads do. Nothing here waits for time to pass: leases are long, and sweeps are made by hand.

The model knows what was published in each cycle and where each cycle started, and nothing of how it is done.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from dataclasses import dataclass, field
from typing import Any, cast

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast import Channel, FencedError, HeldVersion, HoldfastError, NotVisibleError, Retention, Term, UsageError
from holdfast.channel.checking import verify_version
from holdfast.channel.consumer import Consumer
from holdfast.channel.publisher import Publisher
from holdfast.channel.sweeper import Sweeper
from holdfast.core.names import Version
from tests.support.channels import CutOff, Place, payload, quick_directory, read_file

LEASE_S = 3600.0
NAMES = ("a", "b")
KEEP = Retention(keep_recent=2)


@dataclass
class Cycle:
    """One publisher's reign as the model knows it."""

    starts_from: Version | None
    published: list[Version] = field(default_factory=list)


@dataclass
class Reader:
    """A consumer, and what it was given and said."""

    consumer: Consumer
    link: CutOff
    name: str
    every: bool
    staged: bool
    dead: bool = False
    left: bool = False
    held: dict[Version, HeldVersion] = field(default_factory=dict)
    position: tuple[int, Version] | None = None  # the claim that was followed, and what was given under it
    refused: set[Version] = field(default_factory=set)
    acknowledged: Version | None = None
    failed: Version | None = None
    keeps: bool = False


@dataclass
class Writer:
    publisher: Publisher
    link: CutOff
    dead: bool = False


class Channels(RuleBasedStateMachine):
    """See the module's docstring."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.exits = contextlib.ExitStack()
        self.room = self.exits.enter_context(quick_directory(pathlib.Path(tempfile.gettempdir())))
        self.place = Place(self.kind, self.room / "channel")
        self.cycles: dict[int, Cycle] = {}
        self.bytes: dict[Version, str] = {}
        self.removed: set[Version] = set()
        self.unannounced: set[Version] = set()  # committed, and CURRENT does not say so: found within some seconds
        self.writers: list[Writer] = []
        self.readers: list[Reader] = []
        self.sweepers: list[tuple[Sweeper, CutOff]] = []
        self.jobs = 0
        self.texts = 0

    def teardown(self) -> None:
        for reader in self.readers:
            reader.link.mend()
            reader.consumer.close()
        for writer in self.writers:
            writer.link.mend()
            writer.publisher.close()
        for sweeper, link in self.sweepers:
            link.mend()
            sweeper.stop()
        self.exits.close()

    # The model

    @property
    def highest(self) -> int:
        return max(self.cycles, default=0)

    def lineage(self) -> list[Version]:
        """Every version of the present lineage that was ever published, oldest first."""
        line: list[Version] = []
        cycle, last = self.highest, cast("Version | None", None)
        while cycle:
            reign = self.cycles[cycle]
            line = [v for v in reign.published if last is None or v.order <= last.order] + line
            last = reign.starts_from
            cycle = last.cycle if last is not None else 0
        return line

    def there(self) -> list[Version]:
        return [version for version in self.lineage() if version not in self.removed]

    def _open(self, **options: Any) -> tuple[Channel, CutOff]:
        link = CutOff(self.place.storage())
        return Channel(link, lease_s=LEASE_S, **options), link  # type: ignore[arg-type]

    @property
    def writer(self) -> Writer:
        return self.writers[-1]

    # Publishers

    @initialize(every=st.booleans(), staged=st.booleans())
    def a_channel_at_work(self, every: bool, staged: bool) -> None:
        """Rules that need somebody to act on are of no use to an empty channel."""
        self._claim(None)
        self._publish(1, same=False)
        self.sweeper_begins()
        self.consumer_begins("a", every, staged, keep=True)
        self._publish(1, same=False)
        self.everybody_takes()

    @rule(back=st.integers(0, 4), anew=st.sampled_from([False, False, True]))
    def next_publisher(self, back: int, anew: bool) -> None:
        """A new job takes over, from nothing or from a version of the lineage that is still there."""
        there = self.there()
        if len(self.writers) < 8:
            self._claim(None if anew or not there else there[-1 - back % len(there)])
            if not self.writer.dead:
                self._publish(back, same=False)
                self.everybody_takes()

    def _claim(self, start: Version | None) -> None:
        channel, link = self._open()
        self.jobs += 1
        term = Term(job=f"job-{self.jobs}", round=0, nonce="1")
        publisher = channel.publisher(KEEP, term=term, take_over=True, sweep=False, resume_from=start)
        try:
            publisher.open()
        except NotVisibleError:
            assert start in self._tombstoned(), "what it would start from may vanish at any moment"
            return
        assert publisher.cycle == self.highest + 1
        assert publisher.starts_from == start
        self.cycles[publisher.cycle] = Cycle(start)
        self.writers.append(Writer(publisher, link))

    @precondition(lambda self: self.writers and not self.writer.dead)
    @rule(up=st.integers(0, 2), same=st.booleans())
    def publish(self, up: int, same: bool) -> None:
        self._publish(up, same)

    def _publish(self, up: int, same: bool) -> None:
        publisher = self.writer.publisher
        reign = self.cycles[publisher.cycle]
        last = reign.published[-1] if reign.published else reign.starts_from
        step = (last.step if last is not None else 0) + up
        text = self._text()
        again = same and up == 0 and bool(reign.published)
        if again and last in self.bytes and last is not None:
            text = self.bytes[last]
        version = publisher.publish_payload(step, payload(text))
        if version in self.bytes:
            assert again, "a name is never used twice"
            assert version == last
            assert version not in self.removed
        else:
            assert last is None or version > last
            reign.published.append(version)
        self.bytes[version] = text

    def _text(self) -> str:
        self.texts += 1
        return f"text {self.texts}"

    @precondition(lambda self: self.writers and not self.writer.dead)
    @rule(down=st.integers(1, 3))
    def publish_a_lower_step(self, down: int) -> None:
        publisher = self.writer.publisher
        reign = self.cycles[publisher.cycle]
        last = reign.published[-1] if reign.published else reign.starts_from
        if last is not None and last.step >= down:
            with pytest.raises(UsageError) as caught:
                publisher.publish_payload(last.step - down, payload("down"))
            assert caught.value.code == "step_went_down"

    @precondition(lambda self: self.writers and not self.writer.dead)
    @rule(calls=st.integers(0, 40))
    def publisher_dies_while_it_publishes(self, calls: int) -> None:
        """Cut off after some calls: the version is visible whole, or not at all."""
        writer = self.writer
        reign = self.cycles[writer.publisher.cycle]
        last = reign.published[-1] if reign.published else reign.starts_from
        text = self._text()
        writer.link.cut(after_calls=calls)
        with contextlib.suppress(HoldfastError):
            writer.publisher.publish_payload(last.step if last is not None else 0, payload(text))
        writer.dead = True
        for version in self._listed() - self.bytes.keys():
            self.bytes[version] = text
            reign.published.append(version)
            if self.place.channel().observer().current() != version:
                self.unannounced.add(version)

    @precondition(lambda self: len(self.writers) > 1)
    @rule(which=st.integers(0, 5))
    def zombie_publishes(self, which: int) -> None:
        """I8: it is told, and nobody sees what it writes."""
        zombie = self.writers[which % (len(self.writers) - 1)]
        if not zombie.dead:
            before = self._listed()
            with pytest.raises(FencedError):
                zombie.publisher.publish_payload(1000, payload("zombie"))
            assert self._listed() == before

    @precondition(lambda self: self.writers and not self.writer.dead)
    @rule()
    def publisher_closes(self) -> None:
        self.writer.publisher.close()
        self.writer.dead = True

    def _listed(self) -> set[Version]:
        return set(self.place.channel().observer().versions())

    # Consumers

    @rule(name=st.sampled_from(NAMES), every=st.booleans(), staged=st.booleans(), keep=st.booleans())
    def consumer_begins(self, name: str, every: bool, staged: bool, keep: bool) -> None:
        if any(reader.name == name and not reader.dead for reader in self.readers):
            return
        channel, link = self._open()
        stage = self.room / "stage" if staged else None
        consumer = channel.consumer(
            name, every=every, stage=stage, on_close="keep" if keep else "release", patience_s=0.0
        )
        consumer.open()
        reader = Reader(consumer, link, name, every, staged, keeps=keep)
        before = [earlier for earlier in self.readers if earlier.name == name][-1:]
        if before and not before[0].left:  # its file was there: what it said still counts
            reader.refused = set(before[0].refused)
            reader.acknowledged = before[0].acknowledged
            if every and reader.acknowledged is not None:
                reader.position = (0, reader.acknowledged)
        for held in consumer.held:
            self._check_bytes(reader, held)
            reader.held[held.name] = held
        self.readers.append(reader)

    def _alive(self, which: int) -> Reader | None:
        alive = [reader for reader in self.readers if not reader.dead]
        return alive[which % len(alive)] if alive else None

    @rule(which=st.integers(0, 3))
    def consumer_takes(self, which: int) -> None:
        reader = self._alive(which)
        if reader is not None:
            self._take(reader)

    @rule()
    def everybody_takes(self) -> None:
        for reader in self.readers:
            if not reader.dead:
                self._take(reader)

    def _take(self, reader: Reader) -> None:
        held = reader.consumer.take(0.0)
        if held is None:
            self._check_nothing_was_due(reader)
            return
        assert held.name not in reader.refused
        self._check_bytes(reader, held)
        self._check_order(reader, held)
        reader.held[held.name] = held
        reader.failed = None
        reader.position = (self.highest, held.name)

    def _check_nothing_was_due(self, reader: Reader) -> None:
        """A consumer is idle only with a reason that the model knows."""
        if reader.consumer.status.startswith("waiting: sweeper"):
            return  # not listed yet
        blocked = self._tombstoned() | self.unannounced
        last = reader.position[1] if reader.position is not None else None
        due = [v for v in self.there() if v not in blocked and v not in reader.refused]
        if last is not None and last in self.lineage():
            due = [v for v in due if v > last or v == reader.failed]
        elif last is not None and reader.every:  # from the youngest common ancestor on
            fork = max((v for v in self.there() if v < last), default=None)
            due = [v for v in due if fork is None or v >= fork]
        assert not due, f"{due} could be given, and it says {reader.consumer.status!r}"

    def _tombstoned(self) -> set[Version]:
        records = [seen.record for seen in self.place.channel().observer().sweepers().values()]
        names = {name for record in records if record is not None for name in record.tombstones}
        return {version for version in self.bytes if str(version) in names}

    def _check_bytes(self, reader: Reader, held: HeldVersion) -> None:
        """I1, and I4 for what is held in place."""
        if reader.staged:
            assert (held.path / "w.bin").read_text() == self.bytes[held.name]
        else:
            assert self.place.read(held) == self.bytes[held.name]

    def _check_order(self, reader: Reader, held: HeldVersion) -> None:
        """I3, I8: within the lineage, and never back under one claim."""
        line = self.lineage()
        assert held.name in line, "what is given is in the lineage of the highest claim"
        assert held.name not in self.removed
        last = reader.position[1] if reader.position is not None else None
        if last is None:
            assert held.rewound_from is None
        elif last in line:
            assert held.rewound_from is None
            assert held.name > last or held.name == reader.failed
        else:
            assert held.rewound_from == last, "a rewind is told"
        if not reader.every and reader.position is None:
            passed_over = [version for version in self.there() if version > held.name]
            blocked = self._tombstoned() | reader.refused | self.unannounced
            assert set(passed_over) <= blocked, "the newest is given first"

    @rule(which=st.integers(0, 3), one=st.integers(0, 5), say=st.sampled_from(["release", "fail", "reject"]))
    def consumer_lets_go(self, which: int, one: int, say: str) -> None:
        reader = self._alive(which)
        if reader is None or not reader.held:
            return
        version = sorted(reader.held)[one % len(reader.held)]
        held = reader.held.pop(version)
        if say == "reject":
            held.reject("the model says so")
            reader.refused.add(version)
        elif say == "fail":
            held.fail()
            if reader.position is not None and reader.position[1] == version:
                reader.failed = version
        else:
            held.release()
        assert held.lost
        record = self._record(reader)
        assert str(version) not in record.holds or (say == "fail" and reader.every), "the file says so, too"

    @rule(which=st.integers(0, 3), one=st.integers(0, 5))
    def consumer_acknowledges(self, which: int, one: int) -> None:
        """I6: what is acknowledged is held, and stands in its file."""
        reader = self._alive(which)
        if reader is None or not reader.held:
            return
        version = sorted(reader.held)[one % len(reader.held)]
        reader.held[version].acknowledge()
        record = self._record(reader)
        assert record.acknowledged == str(version)
        assert str(version) in record.serving
        reader.acknowledged = version
        self._check_bytes(reader, reader.held[version])

    def _record(self, reader: Reader) -> Any:
        lives = {
            life: seen.record
            for life, seen in self.place.channel().observer().consumers().items()
            if life.name == reader.name
        }
        return lives[max(lives)]

    @rule(which=st.integers(0, 3))
    def consumer_closes(self, which: int) -> None:
        reader = self._alive(which)
        if reader is not None:
            reader.consumer.close()
            reader.dead = True
            reader.left = not reader.keeps

    @rule(which=st.integers(0, 3))
    def consumer_dies(self, which: int) -> None:
        reader = self._alive(which)
        if reader is not None:
            reader.link.cut()
            reader.dead = True

    @rule(which=st.integers(0, 3), calls=st.integers(0, 30))
    def consumer_is_cut_off_for_a_moment(self, which: int, calls: int) -> None:
        """It says what it waits for; nothing that it holds is lost."""
        reader = self._alive(which)
        if reader is None:
            return
        reader.link.cut(after_calls=calls)
        held = reader.consumer.take(0.0)
        reader.link.mend()
        if held is not None:
            self._check_bytes(reader, held)
            self._check_order(reader, held)
            reader.held[held.name] = held
            reader.failed = None
            reader.position = (self.highest, held.name)

    # Sweepers

    @precondition(lambda self: len(self.sweepers) < 2)
    @rule()
    def sweeper_begins(self) -> None:
        channel, link = self._open()
        self.sweepers.append((channel.sweeper(KEEP), link))

    @precondition(lambda self: self.sweepers)
    @rule(which=st.integers(0, 1))
    def sweep(self, which: int) -> None:
        self._sweep(which)

    def _sweep(self, which: int) -> None:
        """I4, I5: what goes is neither held by anybody alive or dead nor what a fresh consumer would be given."""
        sweeper, link = self.sweepers[which % len(self.sweepers)]
        if link.is_cut:
            return
        line = self.there()
        swept = sweeper.sweep()
        gone = {version for version in self.bytes if str(version) in swept.removed}
        assert not gone & set(line[-KEEP.keep_recent :]), "the newest stay"
        for reader in self.readers:
            if not reader.staged and not reader.dead:
                assert not gone & reader.held.keys()
        self.removed |= gone

    @precondition(lambda self: self.sweepers and not self.writer.dead)
    @rule(which=st.integers(0, 1), count=st.integers(1, 4))
    def a_busy_while(self, which: int, count: int) -> None:
        """More versions than are kept, while consumers are slow; then a sweep."""
        for _ in range(count):
            self._publish(1, same=False)
        self._sweep(which)

    @precondition(lambda self: self.sweepers)
    @rule(which=st.integers(0, 1), calls=st.integers(0, 60))
    def sweeper_dies_while_it_sweeps(self, which: int, calls: int) -> None:
        """I7: what it announced stands; whatever is gone is gone whole."""
        sweeper, link = self.sweepers.pop(which % len(self.sweepers))
        line = self.there()
        link.cut(after_calls=calls)
        with contextlib.suppress(HoldfastError):
            sweeper.sweep()
        link.mend()
        if calls % 2:
            sweeper.stop()  # a frozen one that woke up, and leaves
        else:
            link.cut()
            sweeper.stop()
        gone = self.bytes.keys() - self.removed - self._listed()
        assert not gone & set(line[-KEEP.keep_recent :])
        self.removed |= gone

    @precondition(lambda self: self.sweepers)
    @rule(which=st.integers(0, 1))
    def sweeper_leaves(self, which: int) -> None:
        sweeper, _ = self.sweepers.pop(which % len(self.sweepers))
        sweeper.stop()

    # What holds at all times

    @invariant()
    def every_listed_version_is_whole_and_as_it_was(self) -> None:
        """I2, I7."""
        listed = self._listed()
        assert listed == self.bytes.keys() - self.removed
        storage = self.place.storage()
        for version in listed:
            assert verify_version(storage, version).version == str(version)
            assert read_file(storage, f"versions/{version}/w.bin") == self.bytes[version]

    @invariant()
    def what_is_held_is_there(self) -> None:
        """I4."""
        for reader in self.readers:
            if not reader.dead:
                assert {held.name for held in reader.consumer.held} == reader.held.keys()
                for held in reader.held.values():
                    assert not held.lost
                    self._check_bytes(reader, held)

    @invariant()
    def a_fresh_consumer_is_given_something(self) -> None:
        """I5: whatever was swept, the newest of the lineage is there."""
        line = self.lineage()
        assert not line or line[-1] not in self.removed


class ChannelsInMemory(Channels):
    kind = "memory"


class ChannelsOnDisk(Channels):
    kind = "posix"


ROUNDS = hypothesis.settings(
    max_examples=max(30, hypothesis.settings.default.max_examples // 2),
    stateful_step_count=40,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate, hypothesis.Phase.shrink),
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
)
TestChannelsInMemory = ChannelsInMemory.TestCase
TestChannelsInMemory.settings = ROUNDS
TestChannelsOnDisk = ChannelsOnDisk.TestCase
TestChannelsOnDisk.settings = hypothesis.settings(ROUNDS, max_examples=ROUNDS.max_examples // 2)
