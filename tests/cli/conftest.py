"""The command line as a user calls it, within this process; and channels to call it on."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from holdfast import Channel, Term
from holdfast.cli.main import main
from tests.support.channels import payload

NOBODY = 65534


@dataclass
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.isascii()
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `holdfast WORDS…` into a pipe."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@dataclass
class Filled:
    """A channel of one cycle with some versions, oldest first."""

    path: pathlib.Path
    versions: list[str]

    @property
    def channel(self) -> Channel:
        return Channel(self.path, events=False)

    def plant(self, name: str, data: bytes) -> pathlib.Path:
        """A file that some process has written into the channel."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target


def fill(path: pathlib.Path, *steps: int, **metadata: Any) -> Filled:
    term = Term(job="train", round=0, nonce="0" * 16)
    with Channel(path).publisher(term=term, sweep=False) as publisher:
        names = [
            str(publisher.publish_payload(step, payload(f"weights of {step}"), metadata=metadata)) for step in steps
        ]
    return Filled(path, names)


@pytest.fixture
def filled(tmp_path: pathlib.Path) -> Filled:
    """Steps 1 to 4, published by a trainer that has left."""
    return fill(tmp_path / "channel", 1, 2, 3, 4)


@pytest.fixture
def files(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory to publish."""
    directory = tmp_path / "files"
    (directory / "more").mkdir(parents=True)
    (directory / "w.bin").write_bytes(bytes(range(256)) * 100)
    (directory / "more" / "w.bin").write_bytes(b"more")
    return directory


@pytest.fixture
def read_only() -> Iterator[Filled]:
    """A channel that this user may read and not write, wherever and as whoever the tests run."""
    above = pathlib.Path(tempfile.mkdtemp(prefix="holdfast-cli-"))
    above.chmod(0o755)
    filled = fill(above / "channel", 1, 2)
    directories = [path for path in [filled.path, *filled.path.rglob("*")] if path.is_dir()]
    for path in directories:
        path.chmod(0o555)
    try:
        yield filled
    finally:
        for path in directories:
            path.chmod(0o755)
        shutil.rmtree(above)


@contextmanager
def without_rights() -> Iterator[None]:
    """Not root while the block runs: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
