"""`traced.live` with every file-system event of the interpreter written down: `python audited.py ROOT`.

Prints one JSON object for each: the event, its arguments, and the file that made the call.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tests.crash.traced import live

WATCHED = ("open", "os.", "shutil.", "pathlib.", "glob.", "tempfile.")
events: list[tuple[str, list[str], str]] = []
is_on = False


def note(event: str, args: tuple[Any, ...]) -> None:
    """The audit hook. It cannot be removed, so it has a switch."""
    if is_on and event.startswith(WATCHED):
        events.append((event, [os.fsdecode(a) if isinstance(a, bytes) else str(a) for a in args], caller()))


def caller() -> str:
    frame = sys._getframe(2)  # noqa: SLF001  # the hook's caller: whoever called the audited function
    return frame.f_code.co_filename


if __name__ == "__main__":
    root = sys.argv[1]
    live(f"{root}/before")  # imports what is imported late
    sys.addaudithook(note)
    is_on = True
    live(f"{root}/channel")
    with open(f"{root}/channel/planted", "w"):  # one call that goes around the contract, to be found
        pass
    is_on = False
    for event, args, file in events:
        print(json.dumps({"event": event, "args": args, "file": file}))
