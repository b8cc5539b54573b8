"""The part of `make bench` about servers: `holdfast sync` beside fake ones (its own cost), and beside a real vLLM if
there is one (`make vllm-venv`, or HOLDFAST_VLLM_PYTHON).
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from holdfast import Channel, Retention, Served
from holdfast.channel.payload import Payload
from holdfast.channel.publisher import Publisher
from holdfast.channel.sources import BytesSource
from holdfast.core.names import Version
from holdfast.events import Event, read_events
from holdfast.testing.adapters import adapter_files
from holdfast.testing.vllm import FakeVLLM

Row = tuple[str, str, str, str]
MB = 2**20
ROOT = pathlib.Path(__file__).resolve().parents[1]
IDLE_S = 20.0
SERVERS = 8


def measures(pairs: int) -> dict[str, Callable[[], list[Row]]]:
    return {
        "sync: publish to served": lambda: fake_latency(max(20, 2 * pairs)),
        "sync: idle": idle,
        "sync: eight servers": eight_servers,
        "vllm: adapters": lambda: real_adapters(max(10, pairs)),
        "vllm: full weights": lambda: real_weights(max(10, pairs)),
    }


@contextmanager
def _syncing(channel: pathlib.Path, stage: pathlib.Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A sync process, and the address of its own HTTP."""
    command = [
        sys.executable,
        "-m",
        "holdfast.cli.main",
        "sync",
        str(channel),
        "--stage",
        str(stage),
        "--name",
        "bench",
    ]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _adapter(seed: int) -> Payload:
    files = adapter_files(seed, size=MB)
    return Payload(files=tuple((name, BytesSource([data])) for name, data in files.items()), kind="adapter")


def _poller(channel: pathlib.Path, url: str, stop: threading.Event, served: dict[str, float]) -> None:
    """What is usual: look once a second, and post the path of what is new."""
    seen: set[str] = set()
    while not stop.wait(1.0):
        for name in sorted(os.listdir(channel / "versions")):
            if name not in seen:
                seen.add(name)
                body = {"lora_name": f"poller-{name}", "lora_path": str(channel / "versions" / name)}
                _post(f"{url}/v1/load_lora_adapter", body)
                served[name] = time.monotonic()


def _post(url: str, body: object) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def _latencies(
    publisher: Publisher, url: str, payloads: Callable[[int], Version], count: int, rest_s: float
) -> list[tuple[Version, float]]:
    """Commit → served and acknowledged, `count` times."""
    found = []
    with Served([url], poll_s=0.01) as served:
        for step in range(1, count + 1):
            version = payloads(step)
            began_s = time.monotonic()
            served.wait_until_served(version, timeout_s=60.0)
            while _acknowledged(publisher) != version:
                time.sleep(0.002)
            found.append((version, time.monotonic() - began_s))
            time.sleep(rest_s)
    return found


def _acknowledged(publisher: Publisher) -> Version | None:
    from holdfast.core.names import parse_version

    records = [seen.record for seen in publisher.channel.observer().consumers().values()]
    return next((parse_version(r.acknowledged) for r in records if r is not None and r.acknowledged), None)


def _row(what: str, seconds: list[float], target: str) -> Row:
    ms = sorted(1000 * one for one in seconds)
    p99 = ms[min(len(ms) - 1, int(0.99 * len(ms)))]
    return (what, f"p50 {statistics.median(ms):.0f} ms", f"{ms[0]:.0f} … {ms[-1]:.0f} ms (p99 {p99:.0f})", target)


def fake_latency(count: int) -> list[Row]:
    """What sync itself costs: a server that loads at once."""
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        server = stack.enter_context(FakeVLLM(max_cpu_loras=64))
        publisher = stack.enter_context(Channel(folder / "channel").publisher(Retention(keep_recent=1)))
        words = ("--url", server.url, "--linger", "0.1")
        _, url = stack.enter_context(_syncing(folder / "channel", folder / "stage", *words))
        found = _latencies(publisher, url, lambda step: publisher.publish_payload(step, _adapter(step)), count, 0.3)
    return [_row("publish → served and acknowledged, 1 MB, fake server", [one for _, one in found], "≤ 150 ms + load")]


def idle() -> list[Row]:
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        server = stack.enter_context(FakeVLLM())
        publisher = stack.enter_context(Channel(folder / "channel").publisher(Retention(keep_recent=1)))
        process, url = stack.enter_context(_syncing(folder / "channel", folder / "stage", "--url", server.url))
        _latencies(publisher, url, lambda step: publisher.publish_payload(step, _adapter(step)), 3, 0.3)
        time.sleep(3.0)
        before = _cpu_s(process.pid)
        time.sleep(IDLE_S)
        busy = (_cpu_s(process.pid) - before) / IDLE_S
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        peak_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
        maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text()
    return [
        ("sync idle: share of one core", f"{100 * busy:.2f} %", f"over {IDLE_S:.0f} s", "≤ 1 %"),
        ("sync: peak memory", f"{peak_mb:.0f} MB", "torch imported" if "torch" in maps else "no torch", "≤ 80 MB"),
    ]


def _cpu_s(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def eight_servers() -> list[Row]:
    """How often the bytes of one version are read for eight servers: by sync, which is all that reads the channel."""
    size = 64 * MB
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        servers = [stack.enter_context(FakeVLLM()) for _ in range(SERVERS)]
        publisher = stack.enter_context(Channel(folder / "channel").publisher(Retention(keep_recent=1)))
        words = [word for server in servers for word in ("--url", server.url)]
        process, url = stack.enter_context(_syncing(folder / "channel", folder / "stage", *words))
        publisher.publish_payload(1, _adapter(1))
        with Served([url], poll_s=0.05) as served:
            served.wait_until_served(1, quorum=SERVERS, timeout_s=60.0)
            before = _read_bytes(process.pid)
            files = adapter_files(2, size=size)
            payload = Payload(files=tuple((name, BytesSource([data])) for name, data in files.items()), kind="adapter")
            publisher.publish_payload(2, payload)
            served.wait_until_served(2, quorum=SERVERS, timeout_s=120.0)
        read = _read_bytes(process.pid) - before
        paths = {path for server in servers for path in server.loaded.values() if "-s00000002-" in path}
    figure = f"{read / size:.2f} ×"
    return [
        (
            f"{SERVERS} servers, 64 MB: bytes read / bytes of the version",
            figure,
            f"{len(paths)} copy",
            "≤ 1.1 ×, 1 copy",
        )
    ]


def _read_bytes(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0])


# A real server


@contextmanager
def _vllm(folder: pathlib.Path) -> Iterator[Any]:
    """A real vLLM server; None where there is none."""
    python = os.environ.get("HOLDFAST_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not os.access(python, os.X_OK):
        yield None
        return
    sys.path.insert(0, str(ROOT))
    from tests.support.tiny import make_base
    from tests.vllm.server import DEVELOPMENT, LORA_ROUTES, VLLMServer

    server = VLLMServer(make_base(folder / "base", 1), folder, switched_on=LORA_ROUTES | DEVELOPMENT)
    try:
        server.start()
        yield server
    finally:
        server.kill()


NO_VLLM: list[Row] = [("a real vLLM server", "not there", "", "make vllm-venv")]


def _events(channel: pathlib.Path) -> list[Event]:
    files = sorted((channel / "events").glob("sync-*.jsonl"))
    return [event for file in files for event in read_events(file)]


def _took_s(channel: pathlib.Path, action: str) -> dict[str, float]:
    """Version -> how long the server took over it."""
    found = [event for event in _events(channel) if event.event == "engine_did" and event.fields["action"] == action]
    return {str(event.version): float(event.fields["took_s"]) for event in found}


def real_adapters(count: int) -> list[Row]:
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        server = stack.enter_context(_vllm(folder))
        if server is None:
            return NO_VLLM
        from tests.vllm.weights import Adapters

        adapters = Adapters(folder / "base")
        channel = folder / "channel"
        publisher = stack.enter_context(Channel(channel).publisher(Retention(keep_recent=2)))
        words = ("--url", server.url, "--linger", "0.2")
        _, url = stack.enter_context(_syncing(channel, folder / "stage", *words))

        def publish(step: int) -> Version:
            return publisher.publish_adapter(step, adapters.tensors(step), adapters.config())

        found = _latencies(publisher, url, publish, count, 0.5)
        loads = _took_s(channel, "load")
        beyond = [one - loads[str(version)] for version, one in found if str(version) in loads]
        rows = [
            _row("vLLM: publish → served and acknowledged, adapter", [one for _, one in found], ""),
            _row("vLLM: the same without the server's own load", beyond, "≤ 150 ms"),
            _row("vLLM: its own load", list(loads.values()), ""),
        ]
        stop, served = threading.Event(), dict[str, float]()
        poller = threading.Thread(target=_poller, args=(channel, server.url, stop, served))
        poller.start()
        late = []
        for step in range(count + 1, count + 6):
            version, began_s = publish(step), time.monotonic()
            while str(version) not in served:
                time.sleep(0.005)
            late.append(served[str(version)] - began_s)
            time.sleep(0.3)
        stop.set()
        poller.join()
        return [*rows, _row("vLLM: a poller that looks once a second and posts the path", late, "")]


def real_weights(count: int) -> list[Row]:
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        server = stack.enter_context(_vllm(folder))
        if server is None:
            return NO_VLLM
        from tests.support.tiny import make_base

        channel = folder / "channel"
        bases = [make_base(folder / f"model-{seed}", seed) for seed in (2, 3)]
        publisher = stack.enter_context(Channel(channel).publisher(Retention(keep_recent=2)))
        words = ("--url", server.url, "--weights", "full")
        _, url = stack.enter_context(_syncing(channel, folder / "stage", *words))
        _latencies(publisher, url, lambda step: publisher.publish_directory(step, bases[step % 2]), count, 0.3)
        reloads = _took_s(channel, "reload")
        pauses, began_s, version = [], 0.0, ""
        for event in _events(channel):
            if event.event == "engine_did" and event.fields["action"] == "pause":
                began_s = event.clock_s
            elif event.event == "engine_did" and event.fields["action"] == "reload":
                version = str(event.version)
            elif event.event == "engine_did" and event.fields["action"] == "resume" and version in reloads:
                pauses.append(event.clock_s - began_s - reloads[version])
        return [
            _row("vLLM: its own reload of full weights", list(reloads.values()), ""),
            _row("vLLM: a full update holds requests back, beyond its reload", pauses, "≤ 50 ms"),
        ]
