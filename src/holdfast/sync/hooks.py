"""Webhooks: who wants to hear of a change before it happens, and may object; and after it happened."""

from __future__ import annotations

import logging

from holdfast.core.names import Version
from holdfast.core.servers import Reaction
from holdfast.engines.contract import EngineError
from holdfast.engines.http import Http
from holdfast.sync.config import HooksConfig, read_token

logger = logging.getLogger(__name__)


class Hooks:
    """POSTs `{"event", "server", "adapter", "version", "old"}` as JSON; safe from several threads."""

    def __init__(self, config: HooksConfig) -> None:
        def token() -> str | None:
            return read_token(config.token_file)

        self._timeout_s = config.timeout_s
        self._before = Http(config.before, token=token) if config.before is not None else None
        self._after = Http(config.after, token=token) if config.after is not None else None

    @property
    def wanted(self) -> bool:
        return self._before is not None or self._after is not None

    def before(self, server: str, adapter: str, version: Version, old: Version | None) -> None:
        """EngineError LOOK_AGAIN code "hook_objects": it said anything but 2xx, or nothing; ask again later."""
        if self._before is None:
            return
        answer = self._before.post("", _body("before", server, adapter, version, old), timeout_s=self._timeout_s)
        if not answer.ok:
            raise EngineError(
                f"waiting: {self._before.url} says {answer.status}: {answer.said}",
                Reaction.LOOK_AGAIN,
                code="hook_objects",
            )

    def after(self, server: str, adapter: str, version: Version, old: Version | None) -> None:
        """Best effort: what happened has happened."""
        if self._after is None:
            return
        try:
            answer = self._after.post("", _body("after", server, adapter, version, old), timeout_s=self._timeout_s)
            problem = "" if answer.ok else f"status {answer.status}: {answer.said}"
        except EngineError as error:
            problem = str(error)
        if problem:
            logger.warning("the hook after a change: %s", problem)

    def close(self) -> None:
        for http in (self._before, self._after):
            if http is not None:
                http.close()


def _body(event: str, server: str, adapter: str, version: Version, old: Version | None) -> dict[str, object]:
    said = str(old) if old is not None else None
    return {"event": event, "server": server, "adapter": adapter, "version": str(version), "old": said}
