"""What a client is told: HTTP status and body, in the words and types of vLLM's own answers."""

from __future__ import annotations

import http
from typing import Any


class ApiError(Exception):
    """An answer other than 200.

    Source: the bodies of vLLM 0.32 (`ErrorResponse`): `{"error": {"message", "type", "param", "code"}}`.
    """

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


def malformed(message: str, param: str | None = None) -> ApiError:
    """The body or the query is not of the right form."""
    return ApiError(400, message, http.HTTPStatus.BAD_REQUEST.phrase, param)


def bad_value(message: str, param: str | None = None, value: object = None) -> ApiError:
    """A value is of the right type and can't be used."""
    if param is not None:
        given = "" if value is None else f", value={value}"
        message = f"{message} (parameter={param}{given})"
    return ApiError(400, message, "BadRequestError", param)


def invalid_input(message: str) -> ApiError:
    """A wish about adapters that the present state doesn't allow."""
    return ApiError(400, message, "InvalidUserInput")


def not_found(message: str, param: str | None = None) -> ApiError:
    return ApiError(404, message, "NotFoundError", param)


def internal(message: str) -> ApiError:
    return ApiError(500, message, "InternalServerError")


def unavailable(message: str) -> ApiError:
    """Nothing is wrong with the request: later, it may well be answered."""
    return ApiError(503, message, "ServiceUnavailableError")
