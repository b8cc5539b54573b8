"""Errors, sorted by what the caller should do about them.

Every error carries a stable `code` (for programs), a message (what happened, with the values), and a
`hint` (what to do next). Modules raise the class by the caller's reaction and choose the code by the cause.
"""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of all errors that Holdfast raises on purpose.

    Attributes:
        code: stable, lower_snake_case name of the cause.
        hint: the next thing to do, often a command; may be empty.
        fields: the values behind the message, ready for JSON.
    """

    def __init__(self, message: str, *, code: str, hint: str = "", **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), super().__str__(), self.code, self.hint, self.fields)


class UsageError(HoldfastError, ValueError):
    """The call is wrong: fix the call. Nothing was changed."""


class ConflictError(HoldfastError):
    """Somebody else got there first: read again, then decide."""


class FencedError(HoldfastError):
    """You were replaced: stop. Nothing that you write from now on is seen."""


class IntegrityError(HoldfastError):
    """The bytes are wrong, or not ours: never use them."""


class UnavailableError(HoldfastError):
    """The storage or a peer can't do it now: try again with backoff."""


class NotVisibleError(UnavailableError):
    """The name is not there, or not visible here yet: look again through a fresh listing of its parent."""


class OutcomeUnknownError(HoldfastError):
    """It may or may not have happened: read back what stands there before you repeat it."""


class TimedOutError(HoldfastError):
    """The time that the caller allowed has passed; nothing was changed by the waiting."""


class RewoundError(HoldfastError):
    """The trainer resumed from an older version, so what was waited for will be made anew, or never."""


def _rebuild(kind: type[HoldfastError], message: str, code: str, hint: str, fields: dict[str, object]) -> HoldfastError:
    return kind(message, code=code, hint=hint, **fields)
