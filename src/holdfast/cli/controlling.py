"""`holdfast control`: a job's store outside its nodes' agents, until it is told to stop."""

from __future__ import annotations

import logging
import pathlib
import sys
from typing import Annotated

from cyclopts import Parameter

from holdfast.cli.options import Flag
from holdfast.cli.output import to_json
from holdfast.cli.schema import Controlling

Many = Annotated[tuple[str, ...], Parameter(consume_multiple=False, negative="", show_default=False)]


def control(
    *,
    listen: str | None = None,
    etcd_binary: pathlib.Path | None = None,
    name: str = "",
    member: Many = (),
    data: pathlib.Path | None = None,
    token: str = "holdfast",
    json: Flag = False,
) -> int:
    """Serve a job's store: the embedded one by itself, or one member of an etcd. Runs until stopped.

    SIGTERM and Ctrl-C end it with 0.

    Args:
        listen: HOST:PORT of the embedded store, as the agents are given it.
        etcd_binary: Path of etcd's binary; then it is a member of an etcd.
        name: Which of the members this one is.
        member: NAME=HOST:PEER_PORT:CLIENT_PORT; once for each member, the same on all of them.
        data: The directory for the member's data.
        token: The cluster's, the same for all its members and for no other job.
        json: Print the line on stdout as JSON; errors too.
    """
    from holdfast.run.control import ControlSettings, Where, run_control

    logging.getLogger("holdfast.run").setLevel(logging.INFO)

    def say(where: Where) -> None:
        line = f"{f'member {where.name} ' if where.name else ''}listening on {where.address}"
        told = Controlling(endpoint=where.endpoint, address=where.address, name=where.name or None)
        sys.stdout.write((to_json(told) if json else line) + "\n")
        sys.stdout.flush()

    settings = ControlSettings(
        endpoint=listen,
        etcd_binary=None if etcd_binary is None else str(etcd_binary),
        members=member,
        name=name,
        data="" if data is None else str(data),
        token=token,
    )
    return run_control(settings, say)
