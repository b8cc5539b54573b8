"""A free port, an address, a name: found out on the real machine."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from holdfast.core.membership import NAME_MAX, check_name
from holdfast.errors import UsageError
from holdfast.rendezvous.ports import free_port, local_address, node_name


def _listener(stack: ExitStack, address: str = "127.0.0.1") -> int:
    taken = stack.enter_context(socket.create_server((address, 0)))
    return int(taken.getsockname()[1])


def test_any_port() -> None:
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1", None))) as taken:
        assert free_port("127.0.0.1", None) != taken.getsockname()[1]
    with pytest.raises(UsageError, match="--port-range") as caught:
        free_port("127.0.0.1", None, range(65536))
    assert caught.value.code == "no_port"


def test_a_range() -> None:
    with ExitStack() as stack:
        taken = _listener(stack)
        with pytest.raises(UsageError, match="--port-range") as caught:
            free_port("127.0.0.1", (taken, taken))
        assert caught.value.code == "no_port"
        assert free_port("127.0.0.1", (taken - 20, taken + 20)) != taken
    assert free_port("127.0.0.1", (taken, taken)) == taken
    with pytest.raises(UsageError):
        free_port("127.0.0.1", (taken, taken), {taken})


def test_a_range_is_begun_at_another_place_each_time() -> None:
    assert len({free_port("127.0.0.1", (20_000, 30_000)) for _ in range(20)}) > 1


def test_loopback() -> None:
    assert local_address("127.0.0.1", 29400) == "127.0.0.1"
    assert local_address("localhost", 29400) in ("127.0.0.1", "::1")


def test_an_address_of_this_machine() -> None:
    """Whatever name it has for itself: what is found can be listened on."""
    found = local_address(socket.gethostname(), 29400)
    family = socket.AF_INET6 if ":" in found else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((found, 0))


def test_no_such_host() -> None:
    with pytest.raises(UsageError) as caught:
        local_address("no-such-host.invalid", 29400)
    assert caught.value.code == "bad_endpoint"


# Names


def test_a_name_that_is_given() -> None:
    assert node_name("gpu-7", "run") == "gpu-7"
    with pytest.raises(UsageError) as caught:
        node_name("gpu/7", "run")
    assert caught.value.code == "bad_name"


@pytest.mark.parametrize("host", ["gpu007", "a b/ü", "x" * 500, socket.gethostname()])
def test_names_after_the_host(tmp_path: pathlib.Path, host: str) -> None:
    names = [node_name(None, "run", host=host, directory=tmp_path) for _ in range(12)]
    assert len(set(names)) == 12
    assert names[1:] == [f"{names[0]}-{number}" for number in range(2, 13)]
    assert all(check_name(name) and len(name) <= NAME_MAX for name in names)


def test_runs_do_not_share_numbers(tmp_path: pathlib.Path) -> None:
    assert node_name(None, "one", host="gpu007", directory=tmp_path) == "gpu007"
    assert node_name(None, "two", host="gpu007", directory=tmp_path) == "gpu007"
    assert node_name(None, "one", host="gpu008", directory=tmp_path) == "gpu008"


_NODE = """
import subprocess, sys
from holdfast.rendezvous.ports import node_name

name = node_name(None, "run", host="gpu007", directory=sys.argv[1])
# A worker, that lives on: it must not keep its agent's number.
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], close_fds=False)
print(name, worker.pid, flush=True)
sys.stdin.read()
"""


class _Node:
    def __init__(self, place: pathlib.Path) -> None:
        words = [sys.executable, "-c", _NODE, str(place)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.name, worker = self.process.stdout.readline().split()
        self._worker = os.pidfd_open(int(worker))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        import signal

        signal.pidfd_send_signal(self._worker, signal.SIGKILL)
        os.close(self._worker)
        self.kill()
        self.process.communicate()


def test_one_that_is_restarted_gets_its_number_again(tmp_path: pathlib.Path) -> None:
    with ExitStack() as stack:

        def node() -> _Node:
            made = _Node(tmp_path)
            stack.callback(made.close)
            return made

        first, second, third = node(), node(), node()
        assert [first.name, second.name, third.name] == ["gpu007", "gpu007-2", "gpu007-3"]
        second.kill()
        assert node().name == "gpu007-2"
        assert node().name == "gpu007-4"
        first.kill()
        assert node().name == "gpu007"


def test_the_place_of_numbers_is_this_users_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"holdfast-{os.geteuid()}"
    assert node_name(None, "run", host="gpu007") == "gpu007"
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    with pytest.raises(UsageError) as caught:
        node_name(None, "run", host="gpu007")
    assert caught.value.code == "bad_directory"
    own.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError) as caught:
        node_name(None, "run", host="gpu007")
    assert caught.value.code == "bad_directory"
