"""Holdfast hands weights from a trainer to its inference servers, safely, over any shared directory.

    channel = holdfast.Channel("/mnt/shared/run42/weights")

Names are imported when they are first used, so `import holdfast` costs a few milliseconds and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from holdfast.errors import (
    ConflictError,
    FencedError,
    HoldfastError,
    IntegrityError,
    NotVisibleError,
    OutcomeUnknownError,
    RewoundError,
    TimedOutError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from holdfast.channel.channel import Channel
    from holdfast.channel.held import HeldVersion
    from holdfast.core.records import Term
    from holdfast.core.retention import Retention
    from holdfast.launched import Job, drain_requested, job, ready_to_drain
    from holdfast.sync.served import Served

__version__ = "0.1.0"

_LAZY = {
    "Channel": "holdfast.channel.channel",
    "HeldVersion": "holdfast.channel.held",
    "Job": "holdfast.launched",
    "Retention": "holdfast.core.retention",
    "Served": "holdfast.sync.served",
    "Term": "holdfast.core.records",
    "drain_requested": "holdfast.launched",
    "job": "holdfast.launched",
    "ready_to_drain": "holdfast.launched",
}

__all__ = [
    "Channel",
    "ConflictError",
    "FencedError",
    "HeldVersion",
    "HoldfastError",
    "IntegrityError",
    "Job",
    "NotVisibleError",
    "OutcomeUnknownError",
    "Retention",
    "RewoundError",
    "Served",
    "Term",
    "TimedOutError",
    "UnavailableError",
    "UsageError",
    "__version__",
    "drain_requested",
    "job",
    "ready_to_drain",
]


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
