"""Ops that write down every call with its full path, reads as well, before they pass it on."""

from __future__ import annotations

import dataclasses
from typing import Any

from holdfast.channel.ops import Ops
from holdfast.testing import Operation

AT_NAME = ("scandir", "open_directory", "open_read", "create", "lstat", "mkdir", "rmdir", "unlink", "readlink")
AT_HANDLE = ("status", "pread", "pwrite", "fsync", "fsync_directory", "chmod", "close", "free_bytes")


@dataclasses.dataclass(frozen=True)
class Heard(Operation):
    """An operation, and whose it was."""

    who: str = ""


class Listening:
    """`ops`, overheard. Attributes: `heard`, all calls in order, of others too; a test may add marks of its own."""

    def __init__(self, ops: Ops, who: str, heard: list[Heard]) -> None:
        self.heard = heard
        self._who = who
        self._ops = ops
        self._paths: dict[int, str] = {}

    def mark(self, text: str) -> None:
        self.heard.append(Heard("mark", text, who=self._who))

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._ops, name)

        def heard(*args: Any, **options: Any) -> Any:
            operation = self._operation(name, args)
            if operation is not None:
                self.heard.append(operation)
            result = call(*args, **options)
            if name in ("open_directory", "open_read", "create") and operation is not None:
                self._paths[result] = operation.path
            return result

        return heard

    def _operation(self, name: str, args: tuple[Any, ...]) -> Heard | None:
        if name in AT_NAME:
            return Heard(name, self._path(args[0], args[1]), who=self._who)
        if name in AT_HANDLE:
            return Heard(name, self._paths.get(args[0], "?"), who=self._who)
        if name in ("rename", "link"):
            return Heard(name, self._path(args[0], args[1]), self._path(args[2], args[3]), self._who)
        if name == "symlink":
            return Heard(name, self._path(args[1], args[2]), args[0], self._who)
        return None

    def _path(self, at: int | None, name: str) -> str:
        return name if at is None else f"{self._paths.get(at, '?')}/{name}"
