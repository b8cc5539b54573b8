"""`holdfast control` as a user calls it: the embedded store by itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from holdfast.rendezvous.open import open_store
from tests.cli.conftest import Run
from tests.support.etcds import free_ports

LONG_S = 60.0


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["words", "json"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_serves_and_ends_when_told(more: tuple[str, ...], number: int) -> None:
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "holdfast.cli.main", "control", "--listen", endpoint, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if more:
                assert json.loads(said) == {"endpoint": endpoint, "address": endpoint, "name": None}
            else:
                assert said == f"listening on {endpoint}\n"
            store = open_store(endpoint, "job", timeout_s=LONG_S)
            assert store.compare_and_set("control", 0, b"x").value == b"x"
            store.close()
            process.send_signal(number)
            out, err = process.communicate(timeout=LONG_S)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "bad_control"),
        (("--listen", "nonsense"), "bad_endpoint"),
        (("--listen", "127.0.0.1:1", "--etcd-binary", "etcd"), "bad_control"),
        (("--etcd-binary", "etcd", "--name", "m0", "--member", "m0=h:1:2"), "bad_control"),
        (("--etcd-binary", "etcd", "--name", "m1", "--member", "m0=h:1:2", "--data", "d"), "bad_member"),
        (("--etcd-binary", "etcd", "--name", "m0", "--member", "m0=h:1", "--data", "d"), "bad_member"),
    ],
)
def test_what_does_not_fit_is_said(run: Run, words: tuple[str, ...], code: str) -> None:
    done = run("control", *words, "--json")
    assert (done.code, done.data["error"]["code"]) == (2, code)
