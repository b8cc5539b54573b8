"""The manifest: the list of a version's files with sizes and digests, and what the version descends from.

It is the last file of a version to be written and the first to be read. It comes from shared storage, so it is
checked as a whole before anything in it is believed: the format number first, then limits, then every name,
size and digest. Fields that are not known are kept by whoever copies a version (the bytes are copied) and
ignored by whoever reads it.

Digests are xxh3-128, one for each block of `block_bytes` (64 MiB): large files are hashed and checked in parallel.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from holdfast.core.names import Version, parse_version, path_problem
from holdfast.errors import IntegrityError, UsageError

FORMAT = 1
ALGORITHM = "xxh3-128"
BLOCK_BYTES = 64 * 2**20
MANIFEST = "manifest.json"
STABLE = "STABLE"
MANIFEST_BYTES_MAX = 16 * 2**20
FILES_MAX = 20_000
METADATA_BYTES_MAX = 2**20
_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)


class File(msgspec.Struct, frozen=True):
    """One payload file: its path in the version, size in bytes and one digest per block."""

    path: str
    size: int
    blocks: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is promised of a version. `created` (UTC, ISO 8601) is for people; nothing is decided by it."""

    format: int = FORMAT
    version: str
    cycle: int
    step: int
    parent: str | None
    kind: str  # "adapter" | "full" | "directory" | a user's own word
    algorithm: str = ALGORITHM
    block_bytes: int = BLOCK_BYTES
    files: tuple[File, ...]
    requires: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    created: str = ""

    @property
    def name(self) -> Version:
        version = parse_version(self.version)
        assert version is not None, "checked by decode_manifest"
        return version

    @property
    def num_bytes(self) -> int:
        """Bytes of all payload files."""
        return sum(file.size for file in self.files)


class _Head(msgspec.Struct):
    format: int


_decode_head = msgspec.json.Decoder(_Head).decode
_decode = msgspec.json.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON. UsageError where the caller's part of it (metadata, file names) cannot be written."""
    try:
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"metadata cannot be written as JSON: {error}",
            code="bad_metadata",
            hint="use strings, numbers, booleans, lists and dictionaries with string keys",
        ) from error
    problem = _problem(manifest) or (len(data) > MANIFEST_BYTES_MAX and f"it has {len(data)} bytes")
    if problem:
        raise UsageError(f"the version cannot be described: {problem}", code="bad_manifest")
    return data


def decode_manifest(data: bytes, *, version: Version) -> Manifest:
    """The manifest of `version`, checked as a whole.

    Raises:
        IntegrityError: code "bad_manifest" (not JSON, limits, names, sizes, digests, another version's) or
            "newer_format" (written by a newer Holdfast).
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise _bad(version, f"it has {len(data)} bytes, the limit is {MANIFEST_BYTES_MAX}")
    try:
        head = _decode_head(data)
        if head.format != FORMAT:
            raise IntegrityError(
                f"manifest of {version} has format {head.format}; this Holdfast reads format {FORMAT}",
                code="newer_format",
                hint="upgrade holdfast on this machine",
                version=str(version),
            )
        manifest = _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _bad(version, str(error)) from error
    problem = _problem(manifest)
    if problem:
        raise _bad(version, problem)
    if manifest.version != str(version):
        raise _bad(version, f"it describes {manifest.version!r}")
    return manifest


def _bad(version: Version, problem: str) -> IntegrityError:
    return IntegrityError(
        f"manifest of {version}: {problem}",
        code="bad_manifest",
        hint="the version is refused; publish it again",
        version=str(version),
    )


def _problem(manifest: Manifest) -> str | None:
    """The first reason for which `manifest` cannot be believed, or None."""
    name = parse_version(manifest.version)
    if name is None or (name.cycle, name.step) != (manifest.cycle, manifest.step):
        return f"version {manifest.version!r} does not fit cycle {manifest.cycle}, step {manifest.step}"
    if manifest.parent is not None and parse_version(manifest.parent) is None:
        return f"parent {manifest.parent!r} is not a version"
    if manifest.algorithm != ALGORITHM:
        return f"unknown digest algorithm {manifest.algorithm!r}"
    if not 1 <= manifest.block_bytes <= 2**40:
        return f"block_bytes {manifest.block_bytes} out of range"
    if not manifest.files:
        return "no files"
    if len(manifest.files) > FILES_MAX:
        return f"{len(manifest.files)} files, the limit is {FILES_MAX}"
    if len(msgspec.json.encode([manifest.metadata, manifest.requires])) > METADATA_BYTES_MAX:
        return f"more than {METADATA_BYTES_MAX} bytes of metadata"
    return _files_problem(manifest)


def _files_problem(manifest: Manifest) -> str | None:
    seen: set[str] = set()
    directories: set[str] = set()
    for file in manifest.files:
        problem = path_problem(file.path)
        if problem:
            return f"file name {file.path!r} is {problem}"
        if file.path in (MANIFEST, STABLE) or file.path in seen:
            return f"file name {file.path!r} is reserved or listed twice"
        seen.add(file.path)
        parts = file.path.split("/")
        directories.update("/".join(parts[:i]) for i in range(1, len(parts)))
        if not 0 <= file.size < 2**50:
            return f"size {file.size} of {file.path!r} out of range"
        if len(file.blocks) != -(-file.size // manifest.block_bytes):
            return f"{len(file.blocks)} digests of {file.path!r} do not fit its {file.size} bytes"
        if not all(_DIGEST.fullmatch(digest) for digest in file.blocks):
            return f"a digest of {file.path!r} is not 32 hex digits"
    clash = seen & directories
    return f"{min(clash)!r} is listed as a file and as a directory" if clash else None
