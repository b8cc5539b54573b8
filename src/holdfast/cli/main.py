"""`holdfast`: reads the words of the command line, runs one command, and turns its errors into exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from cyclopts import App, CycloptsError, Group

from holdfast import __version__
from holdfast.cli.output import INTERRUPTED, clean, report
from holdfast.errors import HoldfastError, UsageError

LOOK, CHANGE, CHECK = Group("Look", sort_key=1), Group("Change", sort_key=2), Group("Check", sort_key=3)
RUN = Group("Run", sort_key=4)
# Where each command is, and its line in `holdfast --help`, which imports none of them.
COMMANDS = {
    "status": ("holdfast.cli.status:status", LOOK, "One screen of a run: job, servers, channel; what goes next."),
    "ls": ("holdfast.cli.listing:ls", LOOK, "List the versions of a channel."),
    "show": ("holdfast.cli.listing:show", LOOK, "Show one version: its manifest, files and holders."),
    "publish": ("holdfast.cli.publishing:publish", CHANGE, "Publish a directory as a new version."),
    "pin": ("holdfast.cli.keeping:pin", CHANGE, "Keep a version until it is unpinned."),
    "unpin": ("holdfast.cli.keeping:unpin", CHANGE, "Let a pinned version go by the usual rules."),
    "sweep": ("holdfast.cli.sweeping:sweep", CHANGE, "Delete what nobody needs."),
    "verify": ("holdfast.cli.verifying:verify", CHECK, "Read versions whole and check every byte."),
    "report": ("holdfast.cli.reporting:report", LOOK, "Write a run down as one HTML page."),
    "trace": ("holdfast.cli.reporting:trace", LOOK, "Write a run down as a trace for Perfetto."),
    "doctor": ("holdfast.cli.doctor:doctor", CHECK, "Find out what a file system can do."),
    "members": ("holdfast.cli.membership:members", LOOK, "Who trains and who is spare in a job, and why."),
    "drain": ("holdfast.cli.membership:drain", CHANGE, "Take a node out of a job; a spare takes its place."),
    "stop": ("holdfast.cli.membership:stop", CHANGE, "End a job on all its nodes."),
    "run": ("holdfast.cli.running:run", RUN, "Run a training script as one node of a job; spares take over."),
    "control": ("holdfast.cli.controlling:control", RUN, "Serve a job's store, or a member of an etcd for it."),
    "sync": ("holdfast.cli.syncing:sync", RUN, "Bring channels' versions into inference servers, safely."),
    "serve": ("holdfast.cli.serving:serve", RUN, "Serve a model over HTTP: a small server for laptops and tests."),
}


OWN_HELP = ("run",)  # it reads its words by itself


def build(words: Sequence[str] = ()) -> App:
    """The command line. The command that `words` begin with tells of itself at length."""
    app = App(
        name="holdfast",
        help="Hands weights from a trainer to its inference servers, safely, over any shared directory.",
        version=__version__,
        help_epilogue="Exit codes: 0 done, 1 failed, 2 usage, 3 unhealthy, 4 conflict or fenced, 75 try again later.",
    )
    app["--help"].group = "Options"
    app["--version"].group = "Options"
    for name, (place, group, line) in COMMANDS.items():
        own_help: dict[str, Any] = {"help_flags": []} if name in OWN_HELP else {}
        app.command(place, name=name, group=group, help=None if name in words[:1] else line, **own_help)
    app.register_install_completion_command(group="Options", help="Install completion for bash, zsh or fish.")
    return app


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. `words` None: those of this process, whose signals are then handled, too."""
    if words is None:
        words = sys.argv[1:]
        signal.signal(signal.SIGTERM, _terminated)
        _log_to_stderr()
    before_data = list(words[: words.index("--")] if "--" in words else words)
    as_json = "--json" in before_data
    try:
        code = build(words)(list(words), result_action="return_value", exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        return report(_usage(error, before_data), as_json=as_json)
    except HoldfastError as error:
        return report(error, as_json=as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `holdfast ls … | head`: nobody reads on, and nothing more may be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _usage(error: CycloptsError, words: list[str]) -> UsageError:
    lines = " ".join(str(error).split())
    command = next((word for word in words if not word.startswith("-")), "")
    return UsageError(lines, code="usage", hint=f"see `holdfast {command + ' ' if command in COMMANDS else ''}--help`")


def _terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM: leave in order, so that nobody has to wait for a lease."""
    raise SystemExit(128 + number)


class _Clean(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record), limit=2000)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Clean("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


if __name__ == "__main__":
    sys.exit(main())
