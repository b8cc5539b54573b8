"""`make bench`: what Holdfast costs beside the bare work, as one table of ratios.

Every ratio pairs two runs that follow each other at once (A B A B …), so that a noisy machine disturbs both; the table
shows the median of the pairs with minimum and maximum. Absolute figures depend on the disk below TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import engines  # beside this file
import events
import membership
from rich.console import Console
from rich.table import Table

from holdfast import Channel, Retention
from holdfast.channel.ops import RealOps
from holdfast.channel.payload import Payload, verify
from holdfast.channel.posix import PosixStorage
from holdfast.channel.sources import BytesSource
from holdfast.core.lineage import Claim, trace
from holdfast.core.names import Version
from holdfast.core.records import Term
from holdfast.core.retention import Retention as Policy
from holdfast.core.sweep import Consumer, View, judge

MB = 2**20
Row = tuple[str, str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="interleaved pairs of each ratio")
    parser.add_argument("--only", default="", help="run only the rows whose name contains this")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)  # a child process of its own: see peak_memory
    arguments = parser.parse_args()
    if arguments.peak:
        _peak_child(arguments.peak)
        return
    rows: list[Row] = []
    console = Console(stderr=True)
    for name, measure in _measures(arguments.pairs).items():
        if arguments.only in name:
            console.print(f"measuring {name} …", style="dim")
            rows += measure()
    if arguments.json:
        print(
            json.dumps([dict(zip(("what", "figure", "range", "target"), row, strict=True)) for row in rows], indent=1)
        )
        return
    table = Table("what", "median", "min … max", "target")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    load = ", ".join(f"{figure:.1f}" for figure in os.getloadavg())
    Console().print(f"{os.cpu_count()} processors, load {load}, {arguments.pairs} pairs each")


def _measures(pairs: int) -> dict[str, Callable[[], list[Row]]]:
    return {
        "publish 64 MB": lambda: publish_cost(64 * MB, pairs, "≤ 1.25"),
        "publish 1 GB": lambda: publish_cost(1024 * MB, pairs, "≤ 1.1"),
        "verification": lambda: verification(256 * MB, pairs),
        "hand-over": lambda: hand_over(max(100, 10 * pairs)),
        "idle": idle,
        "deciding": lambda: deciding(pairs),
        "memory": peak_memory,
        **engines.measures(pairs),
        **membership.measures(pairs),
        **events.measures(pairs),
    }


@contextmanager
def _scratch() -> Iterator[pathlib.Path]:
    path = pathlib.Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _ratio(what: str, ratios: list[float], target: str) -> Row:
    return (what, f"{statistics.median(ratios):.2f} ×", f"{min(ratios):.2f} … {max(ratios):.2f}", target)


def _state(num_bytes: int) -> dict[str, Any]:
    import torch

    count = 16
    return {f"layers.{i}.weight": torch.randn(num_bytes // count // 4, dtype=torch.float32) for i in range(count)}


def publish_cost(num_bytes: int, pairs: int, target: str) -> list[Row]:
    """A durable publish of a state dict beside the same bytes written and fsynced raw, and beside the usual way."""
    from safetensors.torch import save_file

    state = _state(num_bytes)
    parts = [memoryview(tensor.numpy()).cast("B") for tensor in state.values()]
    label = f"{num_bytes // MB} MB" if num_bytes < 1024 * MB else f"{num_bytes // (1024 * MB)} GB"
    ratios, beside = [], []
    with _scratch() as scratch:
        channel = Channel(scratch / "channel", events=False)
        with channel.publisher(Retention(keep_recent=1)) as publisher:

            def raw() -> None:
                with (scratch / "raw").open("wb", buffering=0) as file:
                    for part in parts:
                        file.write(part)
                    os.fsync(file.fileno())

            def usual() -> None:
                (scratch / "usual").mkdir(exist_ok=True)
                save_file(state, scratch / "usual" / "model.safetensors")
                descriptor = os.open(scratch / "usual" / "model.safetensors", os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
                (scratch / "usual" / "STABLE").touch()

            for i in range(pairs + 1):
                raw_s = _timed(raw)
                (scratch / "raw").unlink()
                ours_s = _timed(lambda step=i: publisher.publish(step, state))
                usual_s = _timed(usual)
                shutil.rmtree(scratch / "usual")
                if i:  # the first pair warms up
                    ratios.append(ours_s / raw_s)
                    beside.append(usual_s / raw_s)
    return [
        _ratio(f"publish {label} / raw write + fsync", ratios, target),
        _ratio(f"save_file + fsync + sentinel {label} / raw write + fsync", beside, "(the usual way)"),
    ]


def verification(num_bytes: int, pairs: int) -> list[Row]:
    """Checking a version's digests beside reading its bytes (both from the page cache)."""
    with _scratch() as scratch:
        channel = Channel(scratch / "channel", events=False)
        data = os.urandom(num_bytes)
        with channel.publisher(sweep=False) as publisher:
            name = publisher.publish_payload(0, Payload(files=(("w.bin", BytesSource([data])),), kind="bench"))
        with channel.consumer("bench") as consumer:
            held = consumer.hold(name)
            manifest, path = held.manifest, held.path / "w.bin"
        store = channel.store

        def read() -> None:
            buffer = bytearray(MB)
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

        speeds = []
        for i in range(pairs + 1):
            read_s = _timed(read)
            verify_s = _timed(lambda: verify(manifest, lambda p: store.open(f"versions/{name}/{p}")))
            if i:
                speeds.append(read_s / verify_s)
    return [_ratio(f"verification speed, {num_bytes // MB} MB / plain reading", speeds, "≥ 0.5")]


class _StampedStorage(PosixStorage):
    """Notes when each commit was durable and visible."""

    def __init__(self, root: pathlib.Path) -> None:
        super().__init__(root)
        self.committed_s: dict[str, float] = {}

    def commit_tree(self, name: str, nonce: str, manifest: bytes) -> None:
        super().commit_tree(name, nonce, manifest)
        self.committed_s[name] = time.monotonic()


def hand_over(count: int) -> list[Row]:
    """From the commit of a 1 MB adapter to the moment at which a consumer has it held and verified, local disk."""
    data = os.urandom(MB)
    late: list[float] = []
    with _scratch() as scratch:
        store = _StampedStorage(scratch / "channel")
        channel = Channel(store, events=False)
        given: dict[str, float] = {}
        with (
            channel.publisher(Retention(keep_recent=2)) as publisher,
            Channel(scratch / "channel", events=False).consumer("bench") as consumer,
        ):

            def consume() -> None:
                for held in consumer:
                    given[str(held)] = time.monotonic()
                    held.release()

            thread = threading.Thread(target=consume)
            thread.start()
            for step in range(count + 5):
                payload = Payload(files=(("adapter_model.bin", BytesSource([data])),), kind="adapter")
                name = str(publisher.publish_payload(step, payload))
                deadline_s = time.monotonic() + 30
                while name not in given and time.monotonic() < deadline_s:
                    time.sleep(0.001)
                if step >= 5:
                    late.append((given[name] - store.committed_s[name]) * 1000)
            consumer.close()
            thread.join()
    late.sort()
    p99 = late[min(len(late) - 1, int(len(late) * 0.99))]
    spread = f"{late[0]:.1f} … {late[-1]:.1f} ms"
    return [
        ("commit → verified hold of 1 MB, p50", f"{statistics.median(late):.1f} ms", spread, "≤ 20 ms"),
        (f"commit → verified hold of 1 MB, p99 of {len(late)}", f"{p99:.1f} ms", spread, "≤ 100 ms"),
    ]


class _CountingOps(RealOps):
    """Counts the calls of every method; each is about one system call."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if callable(value) and not name.startswith("_"):
            self.calls += 1
        return value


def idle(seconds: float = 20.0) -> list[Row]:
    """A consumer that has nothing to do: share of a core and file-system calls a second."""
    with _scratch() as scratch:
        with Channel(scratch / "channel", events=False).publisher(sweep=False) as publisher:
            publisher.publish_payload(0, Payload(files=(("w.bin", BytesSource([b"x"])),), kind="bench"))
        ops = _CountingOps()
        with Channel(PosixStorage(scratch / "channel", ops), events=False).consumer("bench") as consumer:
            held = consumer.take(30)
            assert held is not None
            before, calls = resource.getrusage(resource.RUSAGE_SELF), ops.calls
            consumer.take(seconds)
            after = resource.getrusage(resource.RUSAGE_SELF)
            calls = ops.calls - calls
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [
        ("idle consumer, share of a core", f"{100 * used_s / seconds:.2f} %", f"over {seconds:.0f} s", "≤ 1 %"),
        ("idle consumer, file-system calls a second", f"{calls / seconds:.1f}", f"over {seconds:.0f} s", "≤ 10"),
    ]


def deciding(pairs: int) -> list[Row]:
    """What goes and what stays, of 10 000 versions and 200 consumers."""
    versions = [Version(1, step, 0, "000000") for step in range(10_000)]
    lineage = trace((Claim(1, Term(job="bench", round=0, nonce=""), None),))
    consumers = tuple(Consumer(f"c{i}.000001-00000000", frozenset(versions[i::200][:10])) for i in range(200))
    view = View(lineage=lineage, versions=frozenset(versions), consumers=consumers)
    times = [_timed(lambda: judge(view, Policy(keep_every=100), frozenset())) for _ in range(pairs)]
    spread = f"{min(times) * 1000:.0f} … {max(times) * 1000:.0f} ms"
    return [("deciding a sweep over 10 000 versions", f"{statistics.median(times) * 1000:.0f} ms", spread, "≤ 1 s")]


def peak_memory(num_bytes: int = 512 * MB) -> list[Row]:
    """Memory at its peak during a foreground publish, beyond the tensors (measured in a process of its own)."""
    command = [sys.executable, __file__, "--peak", str(num_bytes)]
    extra = [float(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(3)]
    spread = f"{min(extra):.0f} … {max(extra):.0f} MB"
    what = f"peak memory of publishing {num_bytes // MB} MB, beyond the tensors"
    return [(what, f"{statistics.median(extra):.0f} MB", spread, "≤ 64 MB")]


def _peak_child(num_bytes: int) -> None:
    state = _state(num_bytes)
    with _scratch() as scratch, Channel(scratch / "channel", events=False).publisher(sweep=False) as publisher:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        publisher.publish(0, state)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / 1024)


if __name__ == "__main__":
    main()
