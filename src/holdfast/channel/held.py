"""What a consumer is given: one version, held and verified."""

from __future__ import annotations

import pathlib
from types import TracebackType
from typing import TYPE_CHECKING, Any

from holdfast.core.manifest import Manifest
from holdfast.core.names import Version

if TYPE_CHECKING:
    from holdfast.channel.consumer import Consumer


class HeldVersion:
    """One version that this consumer holds; its bytes were checked against its manifest.

    As a context manager: released at the end of the block; after an exception it counts as failed and is given again.

    Attributes:
        name: the version's name (cycle, step).
        manifest: its manifest: files, `requires`, `metadata`.
        rewound_from: what was given before, where the trainer went back and dropped it; else None.
    """

    def __init__(
        self,
        consumer: Consumer,
        name: Version,
        manifest: Manifest,
        path: pathlib.Path | None,
        rewound_from: Version | None,
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.rewound_from = rewound_from
        self._path = path
        self._consumer = consumer

    def __repr__(self) -> str:
        return f"<HeldVersion {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeldVersion) and (other.name, other._consumer) == (self.name, self._consumer)

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return str(self.name)

    @property
    def step(self) -> int:
        return self.name.step

    @property
    def cycle(self) -> int:
        return self.name.cycle

    @property
    def metadata(self) -> dict[str, Any]:
        """What the publisher said of it. Untrusted."""
        return self.manifest.metadata

    @property
    def path(self) -> pathlib.Path:
        """The directory to load from. UsageError code "no_local_path": the storage has no directories; use staging."""
        if self._path is None:
            return self._consumer.channel.store.local_path(f"versions/{self.name}")
        return self._path

    @property
    def lost(self) -> bool:
        """The hold is gone (expired, or taken over by a younger process): stop using the path."""
        return not self._consumer.holds(self.name)

    def acknowledge(self) -> None:
        """Say "these bytes are live".

        Durability: survives a crash of this process once this returned.

        Raises:
            ConflictError: code "lease_lost": this consumer was taken for dead, and the version may be gone: drop it,
                go on with the next one; "superseded_consumer": a younger process has this name: stop.
        """
        self._consumer.acknowledge(self.name)

    def release(self) -> None:
        """Say "I no longer need them": the engine dropped it *and* its last request is done. Idempotent."""
        self._consumer.release(self.name)

    def fail(self) -> None:
        """Release it, and be given it again: it could not be used this time."""
        self._consumer.fail(self.name)

    def reject(self, reason: str) -> None:
        """Release it, and never be given it again; `reason` is recorded for all to see."""
        self._consumer.reject(self.name, reason)

    def __enter__(self) -> HeldVersion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lost:
            return
        if kind is None or kind is GeneratorExit:
            self.release()
        else:
            self.fail()
