"""What runs where two NFS clients see one volume: a trainer on each, consumers on both, sweeping all the time.

Prints one JSON object with what happened; the tests judge it. Three acts:

1. consumers on both mounts look for a channel that is not there yet;
2. a publisher on mount a publishes as fast as it can, its sweeper deletes what nobody needs any more;
3. it is replaced, unasked, by one on mount b that resumes from an older version and goes on to the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import holdfast
import holdfast.channel.consumer
import holdfast.channel.publisher  # before the forks: here a process takes seconds to import it
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource

A, B = pathlib.Path("/mnt/a/run42/weights"), pathlib.Path("/mnt/b/run42/weights")
LOCAL = pathlib.Path("/run/holdfast")  # a tmpfs
RETENTION = holdfast.Retention(keep_recent=1)
BOUND_S, LEASE_S = 1.0, 30.0
STEPS, REPLACED_AT, RESUMED_AT = 200, 120, 100
EARLY_S = 3.0  # how long consumers look for a channel that isn't there
STEP_S = 0.1
LIMIT_S = 100.0
WEIGHTS_BYTES = 64 * 2**10


def weights(cycle: int, step: int) -> bytes:
    """The bytes of each version, known to both sides without asking each other."""
    return hashlib.shake_128(f"{cycle} {step}".encode()).digest(WEIGHTS_BYTES)


def channel_at(place: pathlib.Path) -> holdfast.Channel:
    return holdfast.Channel(place, visibility_bound_s=BOUND_S, lease_s=LEASE_S)


class Process:
    """A forked process that leaves what it has to say in a file."""

    def __init__(self, name: str, work: Callable[[list[Any]], None]) -> None:
        self.name = name
        self._file = LOCAL / f"{name}.json"
        self._pid = os.fork()
        if self._pid == 0:
            said: list[Any] = []
            status = 1
            try:
                work(said)
                status = 0
            except BaseException:  # noqa: BLE001 - a process's outermost loop: told to the parent
                traceback.print_exc()
            finally:
                self._file.write_text(json.dumps(said))
                sys.stderr.flush()
                os._exit(status)

    def result(self, deadline_s: float) -> tuple[int | None, list[Any]]:
        """Its exit status (None: it had to be ended) and what it said."""
        handle = os.pidfd_open(self._pid)
        try:
            ended = _wait(handle, deadline_s)
            if not ended:
                os.kill(self._pid, signal.SIGKILL)
            _, status = os.waitpid(self._pid, 0)
        finally:
            os.close(handle)
        said = json.loads(self._file.read_text()) if self._file.exists() else []
        return (os.waitstatus_to_exitcode(status) if ended else None), said


def _wait(handle: int, deadline_s: float) -> bool:
    return bool(select.select([handle], [], [], max(0.0, deadline_s - time.monotonic()))[0])


def consume(place: pathlib.Path, name: str, stage: pathlib.Path | None, said: list[Any]) -> None:
    """Take versions until the one that says that it is the last; read each one again while it is held."""
    with channel_at(place).consumer(name, stage=stage) as consumer:
        for held in consumer:
            at_s = time.monotonic()
            right = (held.path / "w.bin").read_bytes() == weights(held.cycle, held.step)
            held.acknowledge()
            right = right and (held.path / "w.bin").read_bytes() == weights(held.cycle, held.step)
            rewound = str(held.rewound_from) if held.rewound_from is not None else None
            said.append({"version": str(held), "at_s": at_s, "right": right, "rewound_from": rewound})
            held.release()
            if held.metadata.get("final"):
                return


def publish(said: list[Any], publisher: Any, step: int, *, final: bool = False) -> str:
    payload = Payload(files=(("w.bin", BytesSource([weights(publisher.cycle, step)])),), kind="test")
    began_s = time.monotonic()
    version = str(publisher.publish_payload(step, payload, metadata={"final": final}))
    said.append({"version": version, "began_s": began_s, "at_s": time.monotonic()})
    return version


def first_trainer(go_on: int, said: list[Any]) -> None:
    """Publishes until it is told that it was replaced. `go_on`: where to say that the replacement may come."""
    term = holdfast.Term(job="train", round=1, nonce="first")
    channel = channel_at(A)
    with channel.publisher(RETENTION, term=term) as publisher:
        for step in range(1, STEPS + 1):
            try:
                version = publish(said, publisher, step)
            except holdfast.FencedError as error:
                said.append({"fenced": error.code, "step": step})
                return
            if step == RESUMED_AT:
                channel.store.create(f"pins/{version}", b"")
            if step == REPLACED_AT:
                os.write(go_on, version.encode())
                os.close(go_on)
            _rest()


def second_trainer(went_on: int, said: list[Any]) -> None:
    """Replaces the first one, from the other machine, and resumes from an older version."""
    os.read(went_on, 100)
    term = holdfast.Term(job="train", round=2, nonce="second")
    began_s = time.monotonic()
    with channel_at(B).publisher(RETENTION, term=term, resume_from=RESUMED_AT) as publisher:
        now_s = time.monotonic()
        said.append({"starts_from": str(publisher.starts_from), "claimed_s": now_s, "took_s": now_s - began_s})
        for step in range(RESUMED_AT + 1, STEPS + 1):
            publish(said, publisher, step, final=step == STEPS)
            _rest()


def _rest() -> None:
    """A training step."""
    threading.Event().wait(STEP_S)


def left_over() -> dict[str, Any]:
    """What is there once everybody has left and one sweep was made."""
    with channel_at(B).sweeper(RETENTION) as sweeper:
        swept = sweeper.sweep(thorough=True)
    names = {directory: sorted(path.name for path in (B / directory).iterdir()) for directory in
             ("versions", "staging", "consumers", "sweepers", "pins")}  # fmt: skip
    links = [str(path) for path in (B / "broadcasts").rglob("step_*") if not path.exists()]
    return {**names, "standing_by": swept.standing_by, "dangling": links}


def main() -> None:
    LOCAL.mkdir()
    deadline_s = time.monotonic() + LIMIT_S
    consumers = [
        Process("a-in-place", lambda said: consume(A, "a-in-place", None, said)),
        Process("b-in-place", lambda said: consume(B, "b-in-place", None, said)),
        Process("b-staged", lambda said: consume(B, "b-staged", LOCAL / "stage", said)),
    ]
    threading.Event().wait(EARLY_S)
    began_s = time.monotonic()
    went_on, go_on = os.pipe()
    first = Process("first", lambda said: first_trainer(go_on, said))
    os.close(go_on)
    second = Process("second", lambda said: second_trainer(went_on, said))
    os.close(went_on)
    report: dict[str, Any] = {process.name: process.result(deadline_s) for process in (first, second, *consumers)}
    report["took_s"] = time.monotonic() - began_s
    report["left"] = left_over()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
