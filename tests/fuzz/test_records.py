"""Random bytes in every record of a channel: nothing crashes, nothing outside is touched, good versions are given."""

from __future__ import annotations

import json
import pathlib
import string
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hypothesis
import hypothesis.strategies as st

from holdfast import Channel, HoldfastError, Retention, Term
from holdfast.channel.checking import stable_text
from holdfast.channel.posix import PosixStorage
from holdfast.core.names import Version
from tests.support.channels import Place, payload, quick_directory

# Each example is a channel with half a dozen participants: fewer of them than of the quick ones, in a soak too.
SLOW = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples * 7 // 10)

# What a hostile writer would try first: paths that lead out, odd numbers, names that nearly parse.
NAMES = st.sampled_from(
    [
        "../outside/secret.txt",
        "../../outside",
        "/etc/passwd",
        "..",
        ".",
        "",
        "w.bin",
        "manifest.json",
        "STABLE",
        "a/../../b",
        "c000001-s00000001-00abcdef",
        "c000001-s00000002-00abcdef",
        "c000009-s00000001-00abcdef",
        "c000001-s00000001-00abcdef/../../../outside",
        "x" * 300,
        "a\x00b",
        "a\nb",
        "\ud800",
    ]
) | st.text(alphabet=string.printable, max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | NAMES
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def mutated(record: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """`record` with some fields replaced, dropped or added; or cut short; or with a byte changed; or any bytes."""
    changes = st.dictionaries(st.sampled_from([*record, "extra", "format"]), VALUES, max_size=3)
    changed = changes.map(lambda fields: _dump({**record, **fields}))
    dropped = st.sets(st.sampled_from(list(record)), min_size=1, max_size=2).map(
        lambda names: _dump({name: value for name, value in record.items() if name not in names})
    )
    good = _dump(record)
    cut = st.integers(0, len(good)).map(lambda length: good[:length])
    flipped = st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)).map(
        lambda change: good[: change[0]] + bytes([change[1]]) + good[change[0] + 1 :]
    )
    return changed | dropped | cut | flipped | st.binary(max_size=60) | VALUES.map(_dump)


PARTY = {"host": "h", "device": "d", "bound_s": 0.0}
CONSUMER = {
    "format": 1,
    "beat": 3,
    "holds": ["c000001-s00000001-00abcdef"],
    "acknowledged": "c000001-s00000001-00abcdef",
    "acknowledged_cycle": 1,
    "serving": [],
    "refused": {"c000001-s00000001-00abcdef": "why"},
    "party": PARTY,
    "in_place": True,
    "closed": False,
}
SWEEPER = {
    "format": 1,
    "beat": 3,
    "cycle": 1,
    "tombstones": ["c000001-s00000001-00abcdef"],
    "seen": [],
    "expired": ["c.000001-0123abcd"],
    "reasons": {"c000001-s00000001-00abcdef": "why"},
    "party": PARTY,
    "closed": False,
}
CLAIM = {
    "format": 1,
    "cycle": 2,
    "term": {"job": "j", "round": 0, "nonce": "n"},
    "starts_from": "c000001-s00000002-00abcdef",
}
BEAT = {"format": 1, "cycle": 1, "beat": 7, "closed": False}
CHANNEL = {"format": 1, "run": "r", "legacy": "broadcasts", "probed": {}, "visibility_bound_s": None}
RECORDS = st.one_of(
    st.tuples(st.just("consumers/odd.000001-0123abcd.json"), mutated(CONSUMER)),
    st.tuples(st.just("consumers/c.000007-0123abcd.json"), mutated(CONSUMER)),
    st.tuples(st.just("sweepers/000001-0123abcd.json"), mutated(SWEEPER)),
    st.tuples(st.just("sweepers/000009-0123abcd.json"), mutated(SWEEPER)),
    st.tuples(st.just("cycles/000001.beat"), mutated(BEAT)),
    st.tuples(st.just("CURRENT"), NAMES.map(lambda name: name.encode("utf-8", "replace")) | st.binary(max_size=300)),
    st.tuples(st.just("cycles/000002.json"), mutated(CLAIM)),
    st.tuples(st.just("cycles/000002.beat"), mutated(BEAT)),
    st.tuples(st.just("channel.json"), mutated(CHANNEL)),
)


def _tree(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _canary(room: pathlib.Path) -> pathlib.Path:
    outside = room / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    return outside


def _channel(place: Place) -> Channel:
    return place.channel(lease_s=60.0, visibility_bound_s=0.0)  # else a sweep settles for minutes


def _everybody(place: Place, stage: pathlib.Path) -> None:
    """All kinds of participants do all that they do; whatever they meet has to be one of our errors."""

    def take(channel: Channel, **options: Any) -> None:
        with channel.consumer("c", patience_s=0.0, **options) as consumer:
            held = consumer.take(0.0)
            if held is not None:
                assert place.read(held) in ("one", "two", "three", "mend") if not options else held.path.exists()
                held.acknowledge()
                held.release()

    uses: list[Callable[[], object]] = [
        lambda: take(_channel(place)),
        lambda: take(_channel(place), stage=stage),
        lambda: take(_channel(place), every=True, stage=stage),
        lambda: _channel(place).sweeper(Retention(keep_recent=1)).plan(),
        lambda: _sweep(place),
        lambda: _publish(place),
    ]
    for use in uses:
        with suppress(HoldfastError):
            use()


def _sweep(place: Place) -> None:
    with _channel(place).sweeper(Retention(keep_recent=1)) as sweeper:
        sweeper.sweep()


def _publish(place: Place) -> None:
    term = Term(job="fuzz", round=0, nonce="1")
    with _channel(place).publisher(sweep=False, term=term, take_over=True) as publisher:
        publisher.publish_payload(3, payload("three"))


@hypothesis.given(records=st.lists(RECORDS, min_size=1, max_size=3), kind=st.sampled_from(["posix", "memory"]))
@SLOW
def test_records_of_any_bytes_break_nobody(records: list[tuple[str, bytes]], kind: str) -> None:
    with _room() as room:
        outside = _canary(room)
        place = Place(kind, room / "channel")
        with place.channel().publisher(sweep=False) as publisher:
            publisher.publish_payload(1, payload("one"))
            publisher.publish_payload(2, payload("two"))
        good = {name: place.storage().read(name, limit_bytes=2**20) for name in ("channel.json", "CURRENT")}
        for path, data in records:
            place.storage().replace(path, data)
        _everybody(place, room / "stage")
        assert _tree(outside) == {"secret.txt": b"secret"}
        assert {path.name for path in room.iterdir()} <= {"channel", "outside", "stage"}
        if not any(path == "cycles/000002.json" for path, _ in records):
            assert place.storage().list_trees(), "a fresh consumer's version is still there"
        # Once the strange records are gone, all goes on.
        for path, _ in records:
            if path in good:
                place.storage().replace(path, good[path])
            elif not path.startswith("cycles/"):
                place.storage().delete(path)
        term = Term(job="mend", round=0, nonce="1")
        with place.channel().publisher(sweep=False, take_over=True, term=term) as publisher:
            publisher.publish_payload(9, payload("mend"))
            with place.channel().consumer("fresh") as consumer:
                held = consumer.take(5.0)
                assert held is not None, consumer.status
                assert place.read(held) == "mend"


def _room() -> Any:
    return quick_directory(pathlib.Path(tempfile.gettempdir()))


MANIFEST = {
    "format": 1,
    "version": "",
    "cycle": 1,
    "step": 2,
    "parent": None,
    "kind": "test",
    "algorithm": "xxh3-128",
    "block_bytes": 67108864,
    "files": [{"path": "w.bin", "size": 3, "blocks": ["0" * 32]}],
    "requires": {},
    "metadata": {},
    "created": "",
}
FILES = st.lists(
    st.fixed_dictionaries(
        {
            "path": NAMES,
            "size": st.integers(-2, 2**64) | st.sampled_from([0, 3]),
            "blocks": st.lists(st.text("0123456789abcdef", min_size=32, max_size=32) | NAMES, max_size=2),
        }
    ),
    max_size=3,
)


@hypothesis.given(
    data=mutated(MANIFEST) | FILES.map(lambda files: _dump({**MANIFEST, "files": files})),
    named=st.booleans(),
    staged=st.booleans(),
)
@SLOW
def test_manifests_of_any_bytes_are_refused_and_the_version_before_is_given(
    data: bytes, named: bool, staged: bool
) -> None:
    with _room() as room:
        outside = _canary(room)
        place = Place("posix", room / "channel")
        with place.channel().publisher(sweep=False) as publisher:
            publisher.publish_payload(1, payload("one"))
            bad = publisher.publish_payload(2, payload("two"))
            if named:  # past the first check, into the deeper ones
                data = data.replace(b'"version": ""', f'"version": "{bad}"'.encode())
            path = place.path / "versions" / str(bad)
            (path / "manifest.json").write_bytes(data)
            (path / "STABLE").write_bytes(stable_text(data))
            options: dict[str, Any] = {"stage": room / "stage"} if staged else {}
            with place.channel().consumer("c", patience_s=0.0, **options) as consumer:
                held = consumer.take(5.0)
                assert held is not None, consumer.status
                text = (held.path / "w.bin").read_text() if (held.path / "w.bin").exists() else "two"
                assert text in ("one", "two")
                assert text == "one" or _describes_no_file_wrongly(path, data)
            _sweep(place)
        assert _tree(outside) == {"secret.txt": b"secret"}
        assert {path.name for path in room.iterdir()} <= {"channel", "outside", "stage"}


def _describes_no_file_wrongly(path: pathlib.Path, data: bytes) -> bool:
    """Whether what was given is a manifest whose every file is there as described (there are such among the random)."""
    import xxhash

    for file in json.loads(data)["files"]:
        found = (path / file["path"]).read_bytes()
        digests = [xxhash.xxh3_128_hexdigest(found)] if found else []
        if len(found) != file["size"] or digests != file["blocks"]:
            return False
    return True


ENTRY_NAMES = (
    st.text(alphabet="cs0123456789abcdef-.jsonbeatSTABLE_ ", min_size=1, max_size=40)
    | st.text(min_size=1, max_size=20)
    | st.sampled_from(["c000001-s00000009-00abcdef", "c000000-s00000001-00abcdef", "999999.json", "1000000.json"])
).filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name and _encodable(name))


def _encodable(name: str) -> bool:
    try:
        return 0 < len(name.encode()) <= 255
    except UnicodeEncodeError:
        return False


@hypothesis.given(
    entries=st.lists(
        st.tuples(
            st.sampled_from(["", "versions", "cycles", "consumers", "sweepers", "pins", "staging", "broadcasts"]),
            ENTRY_NAMES,
            st.sampled_from(["file", "directory", "link out", "link up", "dangling"]),
        ),
        min_size=1,
        max_size=4,
    )
)
@SLOW
def test_names_of_any_kind_are_nobodys_and_lead_nowhere(entries: list[tuple[str, str, str]]) -> None:
    with _room() as room:
        outside = _canary(room)
        place = Place("posix", room / "channel")
        with place.channel().publisher(sweep=False) as publisher:
            publisher.publish_payload(1, payload("one"))
            publisher.publish_payload(2, payload("two"))
            claims = [name for where, name, _ in entries if where == "cycles" and name[:6].isdigit()]
            for where, name, kind in entries:
                _plant(place.path / where / name, kind, outside)
            _everybody(place, room / "stage")
            assert _tree(outside) == {"secret.txt": b"secret"}
            assert {path.name for path in room.iterdir()} <= {"channel", "outside", "stage"}
            if not claims:
                term = Term(job="mend", round=0, nonce="1")
                with place.channel().publisher(sweep=False, take_over=True, term=term) as next_one:
                    next_one.publish_payload(9, payload("mend"))


def _plant(path: pathlib.Path, kind: str, outside: pathlib.Path) -> None:
    if path.exists() or path.is_symlink():
        return
    if kind == "file":
        path.write_text("{}")
    elif kind == "directory":
        path.mkdir()
        (path / "inner").write_text("x")
    else:
        path.symlink_to({"link out": outside, "link up": path.parent, "dangling": outside / "new"}[kind])


@hypothesis.given(text=st.text(max_size=60) | NAMES)
def test_no_text_but_a_versions_own_name_is_one(text: str) -> None:
    from holdfast.core.names import parse_claim, parse_incarnation, parse_version, path_problem

    for parse in (parse_version, parse_incarnation):
        parsed: Version | Any = parse(text)
        assert parsed is None or str(parsed) == text
        assert parsed is None or path_problem(text) is None
        assert parsed is None or "/" not in text
    cycle = parse_claim(text)
    assert cycle is None or f"{cycle:06d}.json" == text


@hypothesis.given(path=st.lists(NAMES, min_size=1, max_size=4).map("/".join))
def test_no_path_leaves_the_root_of_a_storage(path: str) -> None:
    with _room() as room:
        outside = _canary(room)
        (room / "root").mkdir()
        storage = PosixStorage(room / "root")
        for use in (
            lambda: storage.read(path, limit_bytes=100),
            lambda: storage.open(path).close(),
            lambda: storage.list(path),
            lambda: storage.make_directory(path),
            lambda: storage.create(path, b"x"),
            lambda: storage.replace(path, b"x"),
            lambda: storage.link(path, "c000001-s00000001-00abcdef"),
            lambda: storage.delete(path),
            lambda: storage.begin_tree(path, "n").abort(),
            lambda: storage.retire_tree(path, "n"),
            lambda: storage.remove_garbage(path),
        ):
            with suppress(HoldfastError):
                use()
        assert _tree(outside) == {"secret.txt": b"secret"}
        assert {entry.name for entry in room.iterdir()} == {"outside", "root"}
