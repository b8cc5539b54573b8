"""What lies in a channel is untrusted: bad things are refused by name, nothing outside is touched, good ones go on."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import xxhash

from holdfast import HeldVersion, HoldfastError, IntegrityError, Retention
from holdfast.channel.checking import stable_text, verify_version
from holdfast.channel.consumer import Consumer
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource
from holdfast.core.manifest import MANIFEST_BYTES_MAX
from holdfast.core.names import Version
from tests.support.channels import Place, payload, until

SECRET = "what no channel may reach"
PATIENCE_S = 0.05


@pytest.fixture
def canary(room: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory beside the channel; at the end it must be as it was."""
    outside = room / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.txt").write_text(SECRET)
    (outside / "deep" / "secret.txt").write_text(SECRET)
    before = _tree(outside)
    yield outside
    assert _tree(outside) == before


def _tree(path: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file): (file.stat().st_mode, file.read_bytes()) for file in files}


def _directory(place: Place, version: Version) -> pathlib.Path:
    return place.path / "versions" / str(version)


def _rewrite(place: Place, version: Version, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest of a version, and let STABLE fit it, as somebody with the means of a publisher would."""
    path = _directory(place, version) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    changed = change(manifest)
    data = json.dumps(manifest if changed is None else changed).encode() if not isinstance(changed, bytes) else changed
    path.write_bytes(data)
    path.with_name("STABLE").write_bytes(stable_text(data))


def _refusal(place: Place, consumer: Consumer, bad: Version) -> str:
    """Take what there is: `bad` is refused for good, and the version before it is given in its place."""
    held = _take(consumer)
    assert held.name != bad
    assert place.read(held) == "good"
    records = [seen.record for seen in place.channel().observer().consumers().values()]
    reasons = [record.refused[str(bad)] for record in records if record is not None and str(bad) in record.refused]
    assert len(reasons) == 1, "the reason stands in the own file"
    return reasons[0]


def _take(consumer: Consumer) -> HeldVersion:
    held = consumer.take(20.0)
    assert held is not None, consumer.status
    return held


def _set(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest.update(fields)


def _set_file(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["files"][0].update(fields)


def _add_file(path: str) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["files"].append({**manifest["files"][0], "path": path})


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "not JSON": (lambda _: b"\x00\x01\x02", "malformed"),
    "empty": (lambda _: b"", "manifest"),
    "not an object": (lambda _: [], "manifest"),
    "deep": (lambda _: b"[" * 100_000, "manifest"),
    "deep metadata": (lambda m: json.dumps(m).encode()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    "newer format": (_set(format=2), "has format 2"),
    "no format": (lambda m: m.pop("format") and None, "format"),
    "of another version": (_set(version="c000001-s00000009-00abcdef", step=9), "it describes"),
    "no version's name": (_set(version="../../outside"), "does not fit"),
    "another step": (_set(step=3), "does not fit"),
    "odd parent": (_set(parent="../up"), "is not a version"),
    "unknown digest": (_set(algorithm="md5"), "unknown digest algorithm"),
    "no files": (_set(files=[]), "no files"),
    "files of the wrong type": (_set(files="w.bin"), "manifest"),
    "block_bytes 0": (_set(block_bytes=0), "block_bytes 0"),
    "block_bytes negative": (_set(block_bytes=-1), "block_bytes -1"),
    "up": (_set_file(path="../../../outside/secret.txt"), "'..' component"),
    "up inside": (_set_file(path="a/../../secret.txt"), "'..' component"),
    "absolute": (_set_file(path="/etc/passwd"), "absolute"),
    "dot": (_set_file(path="./w.bin"), "'.' or '..' component"),
    "backslash": (_set_file(path="..\\secret.txt"), "backslash"),
    "NUL": (_set_file(path="w.bin\0"), "control character"),
    "empty name": (_set_file(path=""), "empty"),
    "long name": (_set_file(path="x" * 256), "over 255 bytes"),
    "very long name": (_set_file(path="x/" * 600 + "x"), "too long"),
    "surrogate": (lambda m: json.dumps(m).replace("w.bin", "\\ud800").encode(), "manifest"),
    "twice": (_add_file("w.bin"), "listed twice"),
    "file and directory": (_add_file("w.bin/x"), "as a file and as a directory"),
    "the manifest itself": (_add_file("manifest.json"), "reserved"),
    "negative size": (_set_file(size=-1, blocks=[]), "out of range"),
    "huge size": (_set_file(size=2**60), "out of range"),
    "size beyond all numbers": (_set_file(size=10**40), "manifest"),
    "too few digests": (_set_file(blocks=[]), "do not fit"),
    "too many digests": (_set_file(blocks=["0" * 32] * 9), "do not fit"),
    "odd digest": (_set_file(blocks=["z" * 32]), "not 32 hex digits"),
    "digest of another type": (_set_file(blocks=[7]), "manifest"),
    "a million files": (
        lambda m: _million(m),
        "limit",
    ),
    "many files": (
        lambda m: m.update(files=[{"path": f"f{i}", "size": 0, "blocks": []} for i in range(20_001)]),
        "20001 files",
    ),
    "much metadata": (_set(metadata={"x": "y" * (2**20 + 1)}), "metadata"),
    "size that does not fit": (_set_file(size=5), "it has 3 bytes"),
    "size below the file's": (_set_file(size=1), "it has 3 bytes"),
    "digest that does not fit": (_set_file(blocks=["0" * 32]), "has the digest"),
    "a file that is not there": (_set_file(path="missing.bin"), "missing.bin"),
}


def _million(manifest: dict[str, Any]) -> bytes:
    entry = b'{"path":"%07d","size":0,"blocks":[]}'
    head = json.dumps({**manifest, "files": []}).encode().replace(b'"files": []', b'"files": [%s]')
    return head % b",".join(entry % number for number in range(1_000_000))


@pytest.mark.parametrize(
    ("kind", "staged"), [*((kind, False) for kind in MANIFESTS), ("up", True), ("digest that does not fit", True)]
)
def test_I1_a_bad_manifest_is_refused_and_the_version_before_is_given(
    directory: Place, canary: pathlib.Path, kind: str, staged: bool
) -> None:
    change, reason = MANIFESTS[kind]
    with directory.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("good"))
        bad = publisher.publish_payload(2, payload("bad"))
        _rewrite(directory, bad, change)
        stage = canary.parent / "stage" if staged else None
        with directory.channel().consumer("c", patience_s=PATIENCE_S, stage=stage) as consumer:
            assert reason in _refusal(directory, consumer, bad)
        with pytest.raises(HoldfastError):
            verify_version(directory.storage(), bad)
        publisher.publish_payload(3, payload("newer"))
        with directory.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert str(bad) in sweeper.sweep().removed, "a version that nobody can read is swept like any other"


def test_a_manifest_of_a_gigabyte_is_refused_before_it_is_read(directory: Place, canary: pathlib.Path) -> None:
    with directory.channel().publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        publisher.publish_payload(1, payload("good"))
        bad = publisher.publish_payload(2, payload("bad"))
        os.truncate(_directory(directory, bad) / "manifest.json", 2**30)
        assert f"the limit is {MANIFEST_BYTES_MAX}" in _refusal(directory, consumer, bad)


def test_a_stable_that_does_not_fit_is_looked_at_again_and_then_refused(directory: Place) -> None:
    with (
        directory.channel().publisher(sweep=False) as publisher,
        directory.channel().consumer("c", patience_s=PATIENCE_S) as consumer,
    ):
        publisher.publish_payload(1, payload("good"))
        bad = publisher.publish_payload(2, payload("bad"))
        (_directory(directory, bad) / "STABLE").write_text("nonsense")
        assert "STABLE does not fit" in _refusal(directory, consumer, bad)


PLANTED: dict[str, Callable[[pathlib.Path, pathlib.Path], Any]] = {
    "link to a file": lambda path, outside: path.symlink_to(outside / "secret.txt"),
    "link to itself": lambda path, _: path.symlink_to(path.name),
    "dangling link": lambda path, outside: path.symlink_to(outside / "new.txt"),
    "pipe": lambda path, _: os.mkfifo(path),
    "directory": lambda path, _: path.mkdir(),
    "socket": lambda path, _: _socket(path),
}


def _socket(path: pathlib.Path) -> None:
    import socket

    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("name", ["w.bin", "manifest.json", "STABLE"])
@pytest.mark.parametrize("staged", [False, True], ids=["in place", "staged"])
def test_what_is_no_file_in_a_version_is_refused(
    directory: Place, canary: pathlib.Path, kind: str, name: str, staged: bool
) -> None:
    with directory.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("good"))
        bad = publisher.publish_payload(2, payload("bad"))
        path = _directory(directory, bad) / name
        path.unlink()
        PLANTED[kind](path, canary)
        stage = canary.parent / "stage" if staged else None
        with directory.channel().consumer("c", patience_s=PATIENCE_S, stage=stage) as consumer:
            _refusal(directory, consumer, bad)
        publisher.publish_payload(3, payload("newer"))
        with directory.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert str(bad) in sweeper.sweep().removed
        assert not _directory(directory, bad).exists()
        assert directory.storage().list_garbage() == ()


def test_a_linked_directory_in_a_version_leads_nowhere(directory: Place, canary: pathlib.Path) -> None:
    nested = Payload(files=(("deep/secret.txt", BytesSource([SECRET.encode()])),), kind="test")
    with directory.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("good"))
        bad = publisher.publish_payload(2, nested)
        (_directory(directory, bad) / "deep" / "secret.txt").unlink()
        (_directory(directory, bad) / "deep").rmdir()
        (_directory(directory, bad) / "deep").symlink_to(canary / "deep")
        with directory.channel().consumer("c", patience_s=PATIENCE_S) as consumer:
            assert "symlink" in _refusal(directory, consumer, bad)
        publisher.publish_payload(3, payload("newer"))
        with directory.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert str(bad) in sweeper.sweep().removed


# Payload bytes


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-1], "bytes, the manifest says"),
    "empty": (lambda _: b"", "bytes, the manifest says"),
    "longer": (lambda data: data + b"\0", "bytes, the manifest says"),
    "flipped": (lambda data: data[:1] + bytes([data[1] ^ 1]) + data[2:], "has the digest"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("staged", [False, True], ids=["in place", "staged"])
def test_I1_damaged_bytes_are_never_given(directory: Place, tmp_path: pathlib.Path, kind: str, staged: bool) -> None:
    change, reason = DAMAGE[kind]
    with directory.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("good"))
        bad = publisher.publish_payload(2, payload("the bytes of a version"))
        path = _directory(directory, bad) / "w.bin"
        path.write_bytes(change(path.read_bytes()))
        stage = tmp_path / "stage" if staged else None
        with directory.channel().consumer("c", patience_s=PATIENCE_S, stage=stage) as consumer:
            assert reason in _refusal(directory, consumer, bad)
            if stage is not None:
                assert [file for file in stage.rglob("*") if str(bad) in str(file)] == []


HEADERS = {
    "longer than the file": struct.pack("<Q", 1000) + b"{}",
    "endless": struct.pack("<Q", 2**63) + b"{}",
    "not JSON": _safetensors(b"not json"),
    "no object": _safetensors(b"[]"),
    "too short for a length": b"\x01\x02",
    "beyond the data": _safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(8)),
    "backwards": _safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}', bytes(16)),
    "shape that does not fit": _safetensors(b'{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}', bytes(16)),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_file_that_no_reader_could_open_is_neither_published_nor_given(
    directory: Place, tmp_path: pathlib.Path, kind: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(HEADERS[kind])
    with directory.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("good"))
        with pytest.raises(IntegrityError) as caught:
            publisher.publish_directory(2, source)
        assert caught.value.code == "bad_safetensors"
        assert len(directory.channel().observer().versions()) == 1
        bad = publisher.publish_payload(2, payload(HEADERS[kind]))
        (_directory(directory, bad) / "w.bin").rename(_directory(directory, bad) / "w.safetensors")
        _rewrite(directory, bad, _set_file(path="w.safetensors", blocks=[xxhash.xxh3_128_hexdigest(HEADERS[kind])]))
        with directory.channel().consumer("c", patience_s=PATIENCE_S) as consumer:
            assert "w.safetensors" in _refusal(directory, consumer, bad)


# Names and records of nobody


STRANGE = (
    "..hidden",
    "c000001-s1-x",
    "C000001-S00000001-00ABCDEF",
    "tmp",
    "c000000-s00000001-00abcdef",
    "c000001-s00000001-00abcdef.bak",
)


def test_strange_names_are_nobodys_and_stay(directory: Place, canary: pathlib.Path) -> None:
    with directory.channel().publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        publisher.publish_payload(1, payload("old"))
        publisher.publish_payload(2, payload("good"))
        planted = []
        for where in ("versions", "cycles", "consumers", "sweepers", "pins"):
            for name in STRANGE:
                path = directory.path / where / name
                path.mkdir()
                (path / "keep.txt").write_text("x")
                planted.append(path / "keep.txt")
            for name in ("000001.json.bak", "999999999.json", "..json", "x" * 200, "a\nb", "ü.json"):
                path = directory.path / where / name
                path.write_text("{}")
                planted.append(path)
        held = consumer.take(0.0)
        assert held is not None
        assert directory.read(held) == "good"
        with directory.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert len(sweeper.sweep().removed) == 1
        assert all(path.exists() for path in planted)


def test_a_version_that_is_a_link_is_no_version(directory: Place, canary: pathlib.Path) -> None:
    with directory.channel().publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        publisher.publish_payload(1, payload("good"))
        (directory.path / "versions" / "c000001-s00000009-00abcdef").symlink_to(canary)
        (directory.path / "versions" / "c000001-s00000008-00abcdef").write_text("a file")
        held = consumer.take(0.0)
        assert held is not None
        assert directory.read(held) == "good"
        with directory.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert sweeper.sweep().removed == ()
        publisher.publish_payload(2, payload("newer"))


@pytest.mark.parametrize("where", ["versions", "cycles", "consumers", "sweepers", "staging", "pins", "broadcasts"])
def test_a_directory_of_the_channel_that_is_a_link_leads_nobody_out(
    directory: Place, canary: pathlib.Path, where: str
) -> None:
    with directory.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("good"))
        inside = directory.path / where
        inside.rename(directory.path.parent / "moved")
        inside.symlink_to(canary)
        errors: list[HoldfastError] = []
        for use in (
            lambda: publisher.publish_payload(2, payload("two")),
            lambda: directory.channel().consumer("c", stage=canary.parent / "stage").take(0.0),
            lambda: directory.channel().consumer("d").take(0.0),
            lambda: directory.channel().sweeper(Retention(keep_recent=1)).sweep(),
            lambda: directory.channel().publisher(sweep=False, take_over=True).open(),
        ):
            try:
                use()
            except HoldfastError as error:
                errors.append(error)
        if where not in ("pins", "broadcasts"):
            assert any(error.code == "not_a_directory" for error in errors), "it is told by name"
        inside.unlink()
        (directory.path.parent / "moved").rename(inside)


CURRENTS = [
    b"",
    b"../../outside/secret.txt\n",
    b"/etc/passwd",
    b"\xff\xfe",
    b"c000009-s00000001-00abcdef\n",
    b"x" * 1000,
]


@pytest.mark.parametrize("data", CURRENTS, ids=lambda data: repr(data[:20]))
def test_a_wrong_hint_misleads_nobody(place: Place, data: bytes) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        publisher.publish_payload(1, payload("one"))
        place.storage().replace("CURRENT", data)
        held = consumer.take(0.0)
        assert held is not None
        assert held.step == 1
        publisher.publish_payload(2, payload("two"))
        assert _take(consumer).step == 2


def test_a_hint_that_is_a_link_is_not_followed(directory: Place, canary: pathlib.Path) -> None:
    with directory.channel().publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        publisher.publish_payload(1, payload("one"))
        (directory.path / "CURRENT").unlink()
        (directory.path / "CURRENT").symlink_to(canary / "secret.txt")
        assert consumer.take(0.0) is not None
        publisher.publish_payload(2, payload("two"))
        assert _take(consumer).step == 2


CLAIMS = [
    b"",
    b"not json",
    b'{"format":2}',
    b'{"format":1,"cycle":2,"term":{"job":"x","round":0,"nonce":"1"},"starts_from":"../../outside"}',
    b'{"format":1,"cycle":7,"term":{"job":"x","round":0,"nonce":"1"},"starts_from":null}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("data", CLAIMS, ids=lambda data: repr(data[:30]))
def test_an_unreadable_claim_gives_nothing_and_loses_nothing(place: Place, data: bytes) -> None:
    """Somebody claimed, and nobody can tell from where: nothing is given, nothing is swept, until it is passed."""
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        publisher.publish_payload(1, payload("one"))
        publisher.publish_payload(2, payload("two"))
        place.storage().create("cycles/000002.json", data)
        assert consumer.take(0.0) is None
        assert "cannot be read" in consumer.status
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert sweeper.sweep().removed == ()
        with pytest.raises(HoldfastError):
            publisher.publish_payload(3, payload("three"))
        with place.channel().publisher(sweep=False, take_over=True, resume_from=None, term=_term()) as next_one:
            assert next_one.cycle == 3
            next_one.publish_payload(1, payload("again"))
            held = _take(consumer)
            assert place.read(held) == "again"


def _term() -> Any:
    from holdfast import Term

    return Term(job="next", round=0, nonce="1")


RECORDS: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"\x00",
    "deep": b"[" * 100_000,
    "newer": b'{"format":9}',
    "huge": b" " * (5 * 2**20),
    "endless bound": b'{"format":1,"beat":1,"cycle":1,"party":{"host":"h","device":"d","bound_s":1e308}}',
    "negative bound": b'{"format":1,"beat":1,"cycle":1,"party":{"host":"h","device":"d","bound_s":-1e308}}',
    "strange names": b'{"format":1,"beat":1,"cycle":1,"party":{"host":"h","device":"d","bound_s":0},'
    b'"holds":["../../outside","/etc","c1"],"tombstones":["..","../outside"],"seen":["../x"],"expired":["../../outside/secret.txt"],'
    b'"refused":{"../x":"y"},"acknowledged":"../outside","serving":["/"]}',
    "huge numbers": b'{"format":1,"beat":999999999999999999999999,"cycle":99999999999999999999999,'
    b'"party":{"host":"h","device":"d"}}',
}


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize(
    "where",
    ["consumers/odd.000001-0123abcd.json", "sweepers/000001-0123abcd.json", "cycles/000001.beat"],
)
def test_a_strange_record_frightens_nobody(directory: Place, canary: pathlib.Path, kind: str, where: str) -> None:
    """Consumers go on (or say what they wait for), the sweeper errs on the careful side, and the lease ends it."""
    with (
        directory.channel(lease_s=1.2).publisher(sweep=False) as publisher,
        directory.channel(lease_s=1.2).sweeper(Retention(keep_recent=1)) as sweeper,
    ):
        publisher.publish_payload(1, payload("old"))
        publisher.publish_payload(2, payload("good"))
        directory.storage().replace(where, RECORDS[kind])
        with directory.channel(lease_s=1.2).consumer("c", stage=canary.parent / "stage") as consumer:
            held = _take(consumer)
            assert (held.path / "w.bin").read_text() == "good"
        if "bound" not in kind and kind not in ("strange names", "huge numbers"):
            until(lambda: {v.step for v in directory.channel().observer().versions()} == {2} or not sweeper.sweep())
        else:
            sweeper.plan()
