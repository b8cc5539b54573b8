"""One life of a channel on a real directory, to be watched from outside: `python traced.py ROOT`."""

from __future__ import annotations

import sys

from holdfast import Channel
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource
from holdfast.channel.sweeper import Sweeper
from holdfast.core.records import Term
from holdfast.core.retention import Retention


def live(root: str, *, events: bool = True) -> None:
    """Publish five versions, take and release some, sweep, leave."""
    channel = Channel(root, events=events, lease_s=600.0)
    retention = Retention(keep_recent=1)
    publisher = channel.publisher(retention, term=Term(job="traced", round=1, nonce="n"), sweep=False)
    publisher.open()
    sweeper = Sweeper(channel, retention, cycle=publisher.cycle, writing=frozenset)
    with channel.consumer("server") as server:
        for step in range(1, 6):
            files = (("model.bin", BytesSource([b"m" * 5000])), ("more/part.bin", BytesSource([b"p", b"q" * 100])))
            publisher.publish_payload(step, Payload(files=files, kind="test"))
            sweeper.sweep()
            held = server.take(timeout_s=0.0)
            assert held is not None, server.status
            held.acknowledge()
            for older in server.held[:-1]:
                older.release()
            sweeper.sweep()
        assert len(channel.store.list_trees()) == 1
    sweeper.stop()
    publisher.close()


if __name__ == "__main__":
    live(sys.argv[1])
