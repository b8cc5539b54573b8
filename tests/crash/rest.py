"""What must be true of a disk that has come back, before anybody runs on it."""

from __future__ import annotations

import re

from holdfast.channel.checking import verify_version
from holdfast.channel.posix import PosixStorage
from holdfast.core.manifest import MANIFEST, STABLE
from holdfast.core.names import parse_version
from holdfast.testing import SimulatedDisk
from tests.crash.world import ROOT, World, files_of

_DIRECTORIES = r"cycles|versions|staging|pins|consumers|sweepers|events|broadcasts|broadcasts/c\d{6}"
_RECORDS = (
    r"channel\.json|CURRENT|cycles/\d{6}\.(json|beat)|sweepers/\d{6}-[0-9a-f]{8}\.(json|reserve)"
    r"|consumers/[A-Za-z0-9._-]+\.\d{6}-[0-9a-f]{8}\.json|broadcasts/c\d{6}/step_\d+"
)
_OURS = re.compile(f"{_DIRECTORIES}|{_RECORDS}")


def check_at_rest(world: World) -> None:
    """I2, I4, I7 and every promise in `told`, by what lies on the disk and nothing else."""
    check_nothing_unexplained(world.disk)
    if f"{ROOT}/channel.json" not in world.disk.tree():
        assert not world.told.cycle, "a channel that was claimed is gone"
        return
    _check_versions(world)
    _check_claims(world)
    _check_consumers(world)


def check_nothing_unexplained(disk: SimulatedDisk) -> None:
    """I7: every path is a record, belongs to a committed version, or is named by `list_garbage`."""
    tree = disk.tree()
    if ROOT not in tree:  # what was made of it before it got its name is the caller's directory's matter
        assert all("/.tmp-" in path for path in tree)
        return
    paths = {path.removeprefix(f"{ROOT}/") for path in tree if path.startswith(f"{ROOT}/")}
    names = PosixStorage(ROOT, ops=disk).list_garbage() if paths else ()
    garbage = {name if ".tmp-" in name else f"staging/{name}" for name in names}
    for path in sorted(paths):
        parts = path.split("/")
        is_garbage = any("/".join(parts[:i]) in garbage for i in range(1, len(parts) + 1))
        is_version = parts[0] == "versions" and len(parts) > 1 and parse_version(parts[1]) is not None
        assert is_garbage or is_version or _OURS.fullmatch(path), f"{path} is neither committed nor garbage"


def _check_versions(world: World) -> None:
    """Each version is whole and says what was published; each that must stay is there."""
    told = world.told
    storage = world.storage(world.disk)
    names = storage.list_trees()
    for name in names:
        version = parse_version(name)
        assert version is not None
        manifest = verify_version(storage, version)
        world.check_bytes(version, manifest)
        below = f"{ROOT}/versions/{name}/"
        found = {path.removeprefix(below) for path in world.disk.tree() if path.startswith(below)}
        assert found == {*files_of(manifest.metadata["label"]), "more", MANIFEST, STABLE}, "nothing more, nothing less"
    gone = {str(version) for version in told.must_stay()} - set(names)
    assert not gone, f"published, and lost: {sorted(gone)}"


def _check_claims(world: World) -> None:
    """Claims are whole and without gaps, and the highest one that stood still stands."""
    observer = world.channel(world.disk).observer()
    claims = observer.claims()
    assert [claim.cycle for claim in claims] == list(range(1, len(claims) + 1))
    assert all(claim.term is not None and claim.term.job == "training" for claim in claims), "torn claim"
    assert len(claims) >= world.told.cycle, "a claim that stood is gone"


def _check_consumers(world: World) -> None:
    """Every file is whole; what was given is in a hold; what is said to be acknowledged was acknowledged."""
    told = world.told
    seen = world.channel(world.disk).observer().consumers()
    assert all(found.record is not None for found in seen.values()), "torn consumer's file"
    for name in told.held.keys() | told.acknowledged.keys():
        records = [found.record for life, found in sorted(seen.items()) if life.name == name and found.record]
        holds = {hold for record in records for hold in record.holds}
        lost = {str(version) for version in told.held.get(name, set())} - holds
        assert not lost, f"given to {name}, and no hold of it survived: {lost}"
        said = [str(version) for version in told.acknowledging.get(name, [])]
        found = {record.acknowledged for record in records if record.acknowledged is not None}
        assert found <= set(said), "acknowledged by nobody"
        if name in told.acknowledged:
            at_least = said.index(str(told.acknowledged[name]))
            assert found & set(said[at_least:]), "an acknowledgement that returned is gone"
        refused = {version for record in records for version in record.refused}
        assert refused <= {str(version) for version in told.refusing.get(name, set())}
        if name in told.refused:
            assert refused >= {str(version) for version in told.refused[name]}
