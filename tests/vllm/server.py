"""A real vLLM server on the CPU, in a process group of its own, on a port that it keeps over restarts."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from tests.support.channels import until
from tests.support.serving import Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = "tiny"
UP_S = 240.0  # two cores that others use as well
DOWN_S = 60.0
RANK_MAX = 8
LORAS = 2

OPTIONS = (
    *("--served-model-name", MODEL, "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"),
    *("--max-model-len", "256", "--max-num-seqs", "4"),
    *("--enable-lora", "--max-lora-rank", str(RANK_MAX), "--max-loras", str(LORAS), "--max-cpu-loras", str(LORAS)),
)
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
LOCAL = {"VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}
LORA_ROUTES = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}


def python() -> str:
    """The interpreter that has vLLM."""
    found = os.environ.get("HOLDFAST_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not os.access(found, os.X_OK):
        pytest.fail(f"there is no {found}: make vllm-venv, or set HOLDFAST_VLLM_PYTHON")
    return found


# vLLM's processes outlive the one that started them. This shell ends them all when its input does: with this process.
GUARD = 'exec 3<&0; "$@" </dev/null & server=$!; { read -r _ <&3; kill -KILL 0; } & wait $server; kill $!'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class VLLMServer:
    """One server. `start` returns once it answers.

    Root may read everything, which would hide what happens to a server without the right to: run by root, it goes
    without that privilege.
    """

    def __init__(self, base: pathlib.Path, folder: pathlib.Path, *, switched_on: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        self.log = folder / f"vllm-{self.port}.log"
        self._base = base
        self._switched_on = switched_on
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.launch()
        self.until_up()

    def launch(self) -> None:
        command = [python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._base), *OPTIONS]
        if os.geteuid() == 0:
            drop = "-dac_override,-dac_read_search"
            command = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", *command]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_"))}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", GUARD, "guard", *command, "--port", str(self.port)],
                env=environment | QUIET | LOCAL | SMALL | self._switched_on,
                stdout=log,
                stderr=log,
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def until_up(self) -> None:
        process = self._process
        assert process is not None
        until(lambda: self.is_up() or process.poll() is not None, f"vLLM never answered: {self.log}", timeout_s=UP_S)
        assert process.poll() is None, f"vLLM ended with {process.returncode}:\n{self.tail()}"

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9, all of its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        group = process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        process.communicate(timeout=DOWN_S)
        until(lambda: not _is_there(group), "vLLM's processes go on", timeout_s=DOWN_S)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # What it has

    def adapters(self) -> dict[str, str]:
        """Name -> path, as it lists them."""
        cards = self.client.get("/v1/models").json["data"]
        return {card["id"]: card["root"] for card in cards if card["parent"] is not None}

    def label(self) -> str:
        return str(self.client.get("/weight_info").json["weight_version"])

    def is_paused(self) -> bool:
        return bool(self.client.get("/is_paused").json["is_paused"])

    def block_tokens(self) -> int:
        """How many tokens share a block of its prefix cache."""
        (labels,) = self.client.metric("vllm:cache_config_info")
        return int(labels.split('block_size="')[1].split('"')[0])

    def clean(self) -> None:
        """As it was when it started; started anew if a test has killed it."""
        if not (self.runs and self.is_up()):
            self.kill()
            self.start()
        if "VLLM_SERVER_DEV_MODE" in self._switched_on:
            if self.is_paused():
                self.client.post("/resume")
            if self.label() != "default":
                assert self.client.reload(self._base).status == 200
                self.client.post("/reset_prefix_cache")
                self.client.post("/update_weight_version", {"new_version": "default"})
        for name in self.adapters():
            assert self.client.unload(name).status == 200


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
