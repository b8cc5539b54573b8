"""A worker that counts steps until ROOT/finish is there: python counting.py ROOT. A drain makes it save and wait."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import threading

import holdfast


def main(root: pathlib.Path) -> None:
    job = holdfast.job()
    assert job is not None
    saved = root / f"saved-{job.rank}"
    step = int(saved.read_text()) if saved.exists() else 0
    told = {
        "attempt": job.attempt,
        "node": job.node,
        "round": job.round,
        "rank": job.rank,
        "world": job.world_size,
        "step": step,
    }
    line = json.dumps({**told, "pid": os.getpid(), "agent": os.getppid()})
    (root / f"began-{job.attempt}-{job.round}-{job.rank}").write_text(line)
    while not (root / "finish").exists():
        threading.Event().wait(0.02)
        step += 1
        if holdfast.drain_requested():
            saved.write_text(str(step))
            holdfast.ready_to_drain()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
