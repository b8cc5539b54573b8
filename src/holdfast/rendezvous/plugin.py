"""The entry point of the group `torchrun.handlers`: imported whenever torch's elastic agent is, so it stays light."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def holdfast() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What makes a rendezvous handler for `--rdzv-backend=holdfast`."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        from holdfast.rendezvous.handler import create_handler

        return create_handler(parameters)

    return create
