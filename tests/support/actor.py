"""One process of a scenario: a publisher or a consumer that does what it reads on its input, a line each.

It answers each line with one line: what came of it, or `error` with the error's code. Weights are one file that says
who made it: `trainer-1:8`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress

from holdfast import Channel, HeldVersion, HoldfastError, Retention, Term
from holdfast.channel.consumer import Consumer
from holdfast.channel.payload import Payload
from holdfast.channel.publisher import Publisher
from holdfast.channel.sources import BytesSource
from holdfast.channel.sweeper import Sweeper

Words = list[str]


def _options(words: Words) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


class Actor:
    """What one process has open. `place`, `claims`, `lease_s`, `bound_s` are the same for all that it opens."""

    def __init__(self, options: dict[str, str]) -> None:
        self.channel = Channel(
            options["place"],
            claims=options.get("claims"),
            lease_s=_number(options.get("lease")),
            visibility_bound_s=_number(options.get("bound")),
        )
        self.publisher: Publisher | None = None
        self.consumer: Consumer | None = None
        self.sweeper: Sweeper | None = None
        self.last: HeldVersion | None = None
        self.who = ""

    def do(self, line: str) -> str:
        verb, *words = shlex.split(line)
        handler: Callable[[Words], str] = getattr(self, f"do_{verb}")
        return handler(words)

    # Publishers

    def do_train(self, words: Words) -> str:
        """train NAME [round=] [resume=STEP] [take-over=yes] [keep=N] [max-bytes=N] [sweep=no]"""
        options = _options(words)
        self.who = words[0]
        max_bytes = options.get("max-bytes")
        self.publisher = self.channel.publisher(
            Retention(keep_recent=int(options.get("keep", 2)), max_bytes=int(max_bytes) if max_bytes else None),
            resume_from=int(options["resume"]) if "resume" in options else None,
            term=Term(job=options.get("job", self.who), round=int(options.get("round", 0)), nonce=self.who),
            take_over=options.get("take-over") == "yes",
            room_timeout_s=0.0,
            sweep=options.get("sweep") != "no",
        )
        self.publisher.open()
        return f"cycle {self.publisher.cycle}"

    def do_publish(self, words: Words) -> str:
        """publish STEP…"""
        assert self.publisher is not None
        for step in words:
            data = f"{self.who}:{step}".encode()
            payload = Payload(files=(("w.bin", BytesSource([data])),), kind="test")
            self.publisher.publish_payload(int(step), payload, metadata={"by": self.who})
        return f"published {' '.join(words)}"

    def do_sweep(self, words: Words) -> str:
        """sweep [keep=N]: one pass; what it removed"""
        if self.sweeper is None:
            self.sweeper = self.channel.sweeper(Retention(keep_recent=int(_options(words).get("keep", 1))))
        swept = self.sweeper.sweep()
        return f"swept {' '.join(str(int(name[9:17])) for name in swept.removed)}".strip()

    # Consumers

    def do_serve(self, words: Words) -> str:
        """serve NAME [stage=DIR] [every=yes] [on-close=keep]"""
        options = _options(words)
        self.consumer = self.channel.consumer(
            words[0],
            stage=options.get("stage"),
            every=options.get("every") == "yes",
            on_close="keep" if options.get("on-close") == "keep" else "release",
        )
        self.consumer.open()
        return f"serving{self._held()}"

    def do_take(self, words: Words) -> str:
        """take [SECONDS]: the next version, or why there is none"""
        assert self.consumer is not None
        held = self.consumer.take(float(words[0]) if words else 20.0)
        if held is None:
            return self.consumer.status
        self.last = held
        rewound = f", rewound from {held.rewound_from.step}" if held.rewound_from is not None else ""
        return f"given {(held.path / 'w.bin').read_text()}{rewound}"

    def do_read(self, words: Words) -> str:
        """read: what stands in the version that was taken last"""
        assert self.last is not None
        return (self.last.path / "w.bin").read_text()

    def do_acknowledge(self, words: Words) -> str:
        assert self.last is not None
        self.last.acknowledge()
        return f"acknowledged {self.last.step}"

    def do_release(self, words: Words) -> str:
        """release [STEP]: that version, or the one that was taken last"""
        assert self.consumer is not None
        held = next((h for h in self.consumer.held if words and h.step == int(words[0])), self.last)
        assert held is not None
        held.release()
        return f"released {held.step}"

    def do_lost(self, words: Words) -> str:
        assert self.last is not None
        return "lost" if self.last.lost else "held"

    def do_held(self, words: Words) -> str:
        return f"held{self._held()}"

    def do_leave(self, words: Words) -> str:
        """leave: close everything in order"""
        for one in (self.publisher, self.consumer):
            if one is not None:
                one.close()
        if self.sweeper is not None:
            self.sweeper.stop()
        return "left"

    def _held(self) -> str:
        assert self.consumer is not None
        return "".join(f" {held.step}" for held in self.consumer.held)


def main() -> None:
    options = _options(sys.argv[1:])
    if "uid" in options:
        Channel(options["place"]).store.watch()  # imports the rest: another user may not be able to read this Python
        os.setgid(int(options["uid"]))
        os.setuid(int(options["uid"]))
    actor = Actor(options)
    for line in sys.stdin:
        try:
            answer = actor.do(line)
        except HoldfastError as error:
            answer = f"error {error.code}: {error}"
        print(answer, flush=True)
    with suppress(HoldfastError):
        actor.do_leave([])


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads: a scenario ends when its script does
