"""What commands print. Data goes to stdout, talk to stderr; whatever comes from a channel is made harmless first.

A name, a reason or metadata was written by somebody else: rich's markup is never interpreted in it, and characters
that move a terminal's cursor, change its colours or turn the direction of text around are printed as escapes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.errors import (
    ConflictError,
    FencedError,
    HoldfastError,
    IntegrityError,
    RewoundError,
    TimedOutError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

DONE, FAILED, USAGE, UNHEALTHY, CONFLICT, TRY_LATER, INTERRUPTED = 0, 1, 2, 3, 4, 75, 130
CELL_CHARACTERS_MAX = 400
PIPE_COLUMNS = 240
_NO_RIGHT = frozenset({"errno_eacces", "errno_eperm", "errno_erofs"})
_CODES: tuple[tuple[type[HoldfastError], int], ...] = (
    (UsageError, USAGE),
    (IntegrityError, UNHEALTHY),
    (ConflictError, CONFLICT),
    (FencedError, CONFLICT),
    (RewoundError, CONFLICT),
    (UnavailableError, TRY_LATER),
    (TimedOutError, TRY_LATER),
)


def exit_code(error: HoldfastError) -> int:
    """The exit code for `error`. What this user may not do at all is FAILED: trying again later will not help."""
    if error.code in _NO_RIGHT:
        return FAILED
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def clean(value: object, limit: int = CELL_CHARACTERS_MAX) -> str:
    """`value` on one line, at most `limit` characters, without anything that a terminal or a reader would obey."""
    text = str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def num_bytes(count: int) -> str:
    """`count` bytes for people: 999 B, 1.0 kB, 14.2 GB (powers of 1000)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def to_json(value: object) -> str:
    """One line of JSON in ASCII: nothing in it can steer a terminal, and undecodable file names survive."""
    return json.dumps(msgspec.to_builtins(value, enc_hook=str), ensure_ascii=True)


class Out:
    """One command's output, as tables or as JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def data(self, value: object, draw: Callable[[Console], None]) -> None:
        """The command's result: `value` as JSON, or what `draw` draws."""
        if self.as_json:
            print(to_json(value), flush=True)
            return
        screen = console()
        if screen.is_terminal:
            draw(screen)
            return
        with screen.capture() as drawn:
            draw(screen)
        print("\n".join(line.rstrip() for line in drawn.get().splitlines()), flush=True)

    def say(self, text: str) -> None:
        """Talk: one line on stderr."""
        print(clean(text, limit=2000), file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A bar on stderr while the block runs, on a terminal only; call what is given with the bytes done so far."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda done_bytes: None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(clean(what, limit=40), total=max(1, total_bytes))
            yield lambda done_bytes: bar.update(task, completed=done_bytes)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say on a terminal what is waited for while the block runs."""
        if self.as_json or not sys.stderr.isatty():
            yield
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            bar.add_task(clean(what, limit=60), total=None)
            yield


def console(*, stderr: bool = False) -> Console:
    """A console that believes no markup. Into a pipe lines are as long as they need to be, unless COLUMNS is set."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(
        file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False, legacy_windows=False
    )


def text(value: object, style: str = "", *, cut: bool = False) -> Text:
    """A cell: harmless text; with `cut` on one line, whatever does not fit is left out."""
    from rich.text import Text

    return Text(clean(value), style=style, no_wrap=True if cut else None, overflow="ellipsis" if cut else None)


def table(*headers: str, right: Sequence[str] = (), fixed: Sequence[str] = ()) -> Table:
    """A plain table. Columns in `right` are aligned right, columns in `fixed` are never wrapped."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for header in headers:
        made.add_column(
            header.upper(),
            justify="right" if header in right else "left",
            no_wrap=header in fixed or header in right,
            overflow="fold",
        )
    return made


def facts(rows: Sequence[tuple[str, object]]) -> Table:
    """Names and values, one pair a line."""
    from rich.table import Table

    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(text(name, "bold"), text(value, ""))
    return made


def report(error: HoldfastError, *, as_json: bool) -> int:
    """Tell `error`: one line and a hint on stderr, or JSON on stdout. Returns the exit code."""
    code = exit_code(error)
    if as_json:
        print(to_json({"error": error_fields(error)}), flush=True)
        return code
    hint = f"\nhint: {clean(error.hint, limit=1000)}" if error.hint else ""
    print(f"error: {clean(message(error), limit=2000)}{hint}", file=sys.stderr, flush=True)
    return code


def message(error: HoldfastError) -> str:
    """What happened, without the hint."""
    return str(error.args[0]) if error.args else type(error).__name__


def error_fields(error: HoldfastError) -> dict[str, Any]:
    """`error` as --json shows it."""
    return {"code": error.code, "message": message(error), "hint": error.hint, "fields": error.fields}
