"""A channel under prime-rl's file-system broadcaster; docs/recipes/prime-rl.md says how to put it there."""

from __future__ import annotations

import atexit
import pathlib
import shutil
from typing import Any

from holdfast import Channel, Retention, Term


class ThroughChannel:
    """To be mixed in before prime-rl's `FileSystemWeightBroadcast`, which goes on saving, into outbox/.

    What it has saved becomes a version of the channel in weights/; broadcasts/ leads to the links of this cycle.
    """

    retention = Retention(keep_recent=2, min_age_s=600.0)
    term: Term | None = None  # (job, round) where a scheduler restarts the job: then nobody waits for a lease

    def __init__(self, output_dir: pathlib.Path, *args: Any, **options: Any) -> None:
        super().__init__(output_dir / "outbox", *args, **options)
        if not self.world.is_master:  # type: ignore[attr-defined]
            return
        self.publisher = Channel(output_dir / "weights").publisher(self.retention, term=self.term)
        self.publisher.open()
        atexit.register(self.publisher.close)
        link = output_dir / "broadcasts.new"
        link.unlink(missing_ok=True)
        link.symlink_to(pathlib.Path("weights", "broadcasts", f"c{self.publisher.cycle:06d}"))
        link.replace(output_dir / "broadcasts")

    def _notify_orchestrator(self, save_dir: pathlib.Path) -> None:
        self.publisher.publish_directory(int(save_dir.name.removeprefix("step_")), save_dir)
        shutil.rmtree(save_dir)

    def maybe_clean(self, step: int, interval_to_keep: int | None) -> None:
        """The channel sweeps."""
