"""The deterministic hand of the crash points serves here too."""

from tests.crash.conftest import hand

__all__ = ["hand"]
