"""Names: of versions, claims, participants and files. What does not parse is not ours and is never touched.

A version's name is `c000003-s00000120-00a1b2c3`: the cycle that published it, the optimizer step, then two hex
digits that count the attempts at this step (other bytes under the same step) and six random ones. Within a
cycle versions are ordered by (step, attempt), since one publisher makes them one after the other and never
goes down. A name is never used twice.
"""

from __future__ import annotations

import re

import msgspec

from holdfast.errors import UsageError

CYCLE_MAX = 999_999
STEP_MAX = 99_999_999
ATTEMPT_MAX = 255
PATH_BYTES_MAX = 1024

_VERSION = re.compile(r"c(\d{6})-s(\d{8})-([0-9a-f]{2})([0-9a-f]{6})", re.ASCII)
_CLAIM = re.compile(r"(\d{6})\.json", re.ASCII)
_PARTICIPANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_INCARNATION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.(\d{6})-([0-9a-f]{8})", re.ASCII)
_NONCE = re.compile(r"[0-9a-z][0-9a-z-]{0,63}", re.ASCII)


class Version(msgspec.Struct, frozen=True, order=True):
    """The name of one immutable published weight set; ordered as it was published."""

    cycle: int
    step: int
    attempt: int
    nonce: str

    def __str__(self) -> str:
        return f"c{self.cycle:06d}-s{self.step:08d}-{self.attempt:02x}{self.nonce}"

    @property
    def order(self) -> tuple[int, int]:
        """Place within the cycle: (step, attempt)."""
        return (self.step, self.attempt)


class Incarnation(msgspec.Struct, frozen=True, order=True):
    """One life of a consumer: of two with one name, the higher number is the younger."""

    name: str
    number: int
    nonce: str

    def __str__(self) -> str:
        return f"{self.name}.{self.number:06d}-{self.nonce}"


def parse_version(text: str) -> Version | None:
    """The version that `text` names, or None: not one of ours."""
    match = _VERSION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        return None
    return Version(int(match[1]), int(match[2]), int(match[3], 16), match[4])


def require_version(text: str) -> Version:
    """The version that `text` names. UsageError: `text` comes from a caller and is no version's name."""
    name: object = text
    version = parse_version(name) if isinstance(name, str) else None
    if version is None:
        raise UsageError(
            f"{text!r} is not the name of a version",
            code="bad_version_name",
            hint="names look like c000003-s00000120-00a1b2c3; `holdfast ls CHANNEL` lists them",
        )
    return version


def parse_claim(file_name: str) -> int | None:
    """The cycle of a claim's file name (`000003.json` → 3), or None."""
    match = _CLAIM.fullmatch(file_name)
    return int(match[1]) if match and int(match[1]) else None


def claim_path(cycle: int) -> str:
    return f"cycles/{cycle:06d}.json"


def beat_path(cycle: int) -> str:
    return f"cycles/{cycle:06d}.beat"


def parse_incarnation(text: str) -> Incarnation | None:
    """The consumer's life that `text` names (`rollout-0.000002-0a1b2c3d`), or None."""
    match = _INCARNATION.fullmatch(text)
    return Incarnation(match[1], int(match[2]), match[3]) if match else None


def check_participant(name: str) -> str:
    """`name` if it can name a consumer. UsageError: paths, empty or odd names."""
    text: object = name
    if not isinstance(text, str) or not _PARTICIPANT.fullmatch(text):
        raise UsageError(
            f"{name!r} cannot name a consumer",
            code="bad_consumer_name",
            hint="use 1 to 100 letters, digits, '.', '_' or '-', starting with a letter or digit",
        )
    return name


def check_nonce(nonce: str) -> str:
    """`nonce` if it is safe as a name in staging/ and sweepers/."""
    if not _NONCE.fullmatch(nonce):
        raise UsageError(f"{nonce!r} is not a nonce", code="bad_nonce")
    return nonce


def path_problem(path: str) -> str | None:
    """Why `path` cannot name a file below a directory of ours, or None if it can."""
    if not path or len(path.encode("utf-8", "surrogatepass")) > PATH_BYTES_MAX:
        return "empty or too long"
    if path.startswith("/") or "\\" in path or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in path):
        return "absolute, or with a backslash or control character"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "with an empty, '.' or '..' component"
    if any(len(part.encode("utf-8")) > 255 for part in parts):
        return "with a component over 255 bytes"
    return None


def check_path(path: str) -> str:
    """`path` if it stays below the directory that it is relative to. UsageError otherwise."""
    problem = path_problem(path)
    if problem is not None:
        raise UsageError(f"{path!r} is {problem}", code="bad_path", hint="use relative paths with '/'")
    return path
