"""What runs where two NFS clients see one volume: whoever follows a channel from the other mount, with its defaults.

Prints one JSON object; the tests judge it. A trainer publishes on mount a; on mount b are a consumer that loads in
place and one that never opens the files. First nobody has measured how late the mounts see each other, then
`holdfast doctor` has.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import holdfast
from holdfast.channel.payload import Payload
from holdfast.channel.publisher import Publisher
from holdfast.channel.sources import BytesSource

A, B = pathlib.Path("/mnt/a/weights"), pathlib.Path("/mnt/b/weights")
GIVEN_S = 100.0  # far more than it takes, and far less than the 180 s that an unmeasured sweeper waits before it looks
LOOK_S = 0.1


def publish(publisher: Publisher, step: int) -> None:
    publisher.publish_payload(step, Payload(files=(("w.bin", BytesSource([b"weights"])),), kind="test"))


@contextlib.contextmanager
def training(round_: int) -> Iterator[None]:
    """A trainer that has published the step of its round, and whose sweeper is seen on the other mount."""
    term = holdfast.Term(job="train", round=round_, nonce=str(round_))
    with holdfast.Channel(A).publisher(term=term) as publisher:
        publish(publisher, round_)
        other = holdfast.Channel(B)
        other.open()
        while not any(key.startswith(f"{publisher.cycle:06d}-") for key in other.observer().sweepers()):
            threading.Event().wait(LOOK_S)
        yield


def given(name: str, **options: Any) -> int | None:
    """The step that a consumer on mount b is given; None: none in time."""
    with holdfast.Channel(B).consumer(name, **options) as consumer:
        held = consumer.take(GIVEN_S)
        return held.step if held is not None else None


def measure() -> dict[str, Any]:
    """As users do it: `holdfast doctor` on either side."""
    doctor = (sys.executable, "-m", "holdfast.cli.main", "doctor", "--json")
    with subprocess.Popen((*doctor, A, "--write"), stdout=subprocess.PIPE) as writer:
        reader = subprocess.run((*doctor, B, "--read", "--seconds", "5"), stdout=subprocess.PIPE, check=False)
        wrote, _ = writer.communicate()
    return {
        "codes": [writer.returncode, reader.returncode],
        "wrote": json.loads(wrote),
        "read": json.loads(reader.stdout),
    }


def main() -> None:
    report: dict[str, Any] = {}
    holdfast.Channel(A).open(create=True)
    with training(1):
        report["unmeasured"] = given("follower", in_place=False)
    report["doctor"] = measure()
    report["bound_s"] = json.loads((B / "channel.json").read_text())["visibility_bound_s"]
    with training(2):
        report["measured"] = given("in-place")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
