"""`holdfast run`: torchrun's own launcher and flags, with this rendezvous, more flags, and defaults for one machine."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Any

from holdfast.errors import UsageError
from holdfast.rendezvous.settings import DEFAULT_ENDPOINT, DEFAULT_PORT

RESTARTS = 1_000_000  # torchrun's own count must never be what ends a job: the budget is in the store
BACKEND = "holdfast"


def run_launcher(words: Sequence[str]) -> int:
    """Run a training script as one node of a job. The exit code: see docs/run.md.

    Args:
        words: torchrun's flags and ours, then the script and its arguments.

    Raises:
        UsageError: code "no_torch", "old_torch", "bad_flag".
    """
    check_torch()
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import record
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args

    args = parser().parse_args(list(words))
    fill_in(args, os.environ)
    try:
        config, command, command_args = config_from_args(args)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UsageError(
            str(error) or "torchrun can't use these flags", code="bad_flag", hint="see `holdfast run --help`"
        ) from error
    config.rdzv_configs.update(settings_words(args))
    try:
        record(elastic_launch(config=config, entrypoint=command))(*command_args)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def check_torch() -> None:
    """UsageError if torch is missing, or older than what this was made for."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "holdfast run needs torch", code="no_torch", hint="pip install 'holdfast[torch]' where training runs"
        ) from error
    check_version(torch.__version__)


def check_version(version: str) -> None:
    """UsageError code "old_torch" for what lacks the hooks that the plug-in rests on."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is not None and (int(found[1]), int(found[2])) < OLDEST_TORCH:
        raise UsageError(
            f"torch {version} is too old",
            code="old_torch",
            hint=f"install torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer",
        )


OLDEST_TORCH = (2, 6)


def parser() -> argparse.ArgumentParser:
    """torchrun's parser with our flags added."""
    from torch.distributed.run import get_args_parser

    made = get_args_parser()
    made.prog = "holdfast run"
    made.description = (
        "One node of a job that survives the loss of nodes: torchrun's flags, and those under 'Holdfast'. "
        "Start it on every node, spares included."
    )
    add = made.add_argument_group("Holdfast").add_argument
    add("--control", metavar="ENDPOINT", help="the job's store: HOST:PORT, etcd://…, etcds://…; as --rdzv-endpoint")
    add("--spares", type=int, metavar="N", help="how many spare nodes are wanted, beyond --nnodes")
    add("--segment", type=int, metavar="N", help="take nodes N at a time from one domain")
    add("--domain", metavar="NAME", help="this node's domain: nodes that share a fast fabric")
    add("--replacement-group", metavar="ID:SIZE", help="this node's group, used whole or not at all")
    add("--restart-budget", type=int, metavar="N", help="how many rounds failures may end; -1: any number")
    add("--node-budget", type=int, metavar="N", help="after how many failures a node is set aside")
    add("--last-call", type=float, metavar="S", help="how long a node may take to come back, or to come at the start")
    add("--lease", type=float, metavar="S", help="after which silence a node is lost; 0: by the size of the job")
    add("--stop", type=float, metavar="S", help="how long a node without a spare may take to come back")
    add("--stop-grace", type=float, metavar="S", help="how long workers may take to end before they are killed")
    add("--timeout", type=float, metavar="S", help="how long too few nodes are waited for")
    add("--join", type=float, metavar="S", help="how long the store is waited for at the start")
    add("--attempt", metavar="ID", help="which attempt of this run; from Slurm where there is one")
    add("--port-range", metavar="LOW-HIGH", help="ports for the workers' store")
    add("--health-check", metavar="COMMAND", help="must succeed before this node joins a round")
    add("--node", metavar="NAME", help="this node's name; default: the host's")
    add("--infra-rank", type=int, metavar="N", help="this node's place; default: SLURM_PROCID")
    add("--address", metavar="ADDRESS", help="where other nodes' workers reach this one")
    add(
        "--events", metavar="PLACE", help="write this node's events there: CHANNEL/events, another directory, or a file"
    )
    add("--metrics", metavar="HOST:PORT", help="serve this agent's metrics there, for Prometheus; port 0: a free one")
    add("--user", metavar="NAME", help="etcd's user")
    for name in ("password", "ca", "cert", "key"):
        add(f"--{name}-file", metavar="FILE", help=f"etcd's {name}")
    add("--compact", choices=("yes", "no"), help="whether etcd's history may be let go of; default: yes")
    return made


OURS = (
    *("spares", "segment", "domain", "replacement_group", "restart_budget", "node_budget", "last_call", "lease"),
    *("stop", "stop_grace", "timeout", "join", "attempt", "port_range", "health_check", "node", "infra_rank"),
    *("address", "events", "metrics", "user", "password_file", "ca_file", "cert_file", "key_file", "compact"),
)


def settings_words(args: argparse.Namespace) -> dict[str, Any]:
    """What our flags say, as the rendezvous reads it."""
    return {word: value for word in OURS if (value := getattr(args, word)) is not None}


def fill_in(args: argparse.Namespace, environment: os._Environ[str] | dict[str, str]) -> None:
    """What torchrun's flags are for this rendezvous. UsageError code "bad_flag": they ask for another one."""
    if args.rdzv_backend not in ("static", BACKEND) or args.standalone:
        raise UsageError(
            "holdfast run has a rendezvous of its own",
            code="bad_flag",
            hint="leave out --rdzv-backend and --standalone, or use torchrun",
        )
    if args.control and args.rdzv_endpoint and args.control != args.rdzv_endpoint:
        raise UsageError("--control and --rdzv-endpoint differ", code="bad_flag", hint="give one of them")
    args.rdzv_backend = BACKEND
    args.max_restarts = RESTARTS
    args.rdzv_endpoint = args.control or args.rdzv_endpoint
    if args.rdzv_endpoint:
        return
    if not args.spares and args.nnodes.rpartition(":")[2] == "1" and "SLURM_JOB_NODELIST" not in environment:
        args.rdzv_endpoint = f"127.0.0.1:{_free_port()}"  # a job of one node meets nobody
        if args.rdzv_id == "none":
            args.rdzv_id = f"run-{secrets.token_hex(4)}"
        return
    first = first_host(environment.get("SLURM_JOB_NODELIST", ""))
    args.rdzv_endpoint = f"{first}:{DEFAULT_PORT}" if first else DEFAULT_ENDPOINT
    if args.rdzv_id == "none" and "SLURM_JOB_ID" in environment:
        args.rdzv_id = f"slurm-{environment['SLURM_JOB_ID']}"


def first_host(nodes: str) -> str:
    """The first host of Slurm's list: "gpu[007-009,12],login1" begins with gpu007."""
    found = re.match(r"([^\[\],]+)(?:\[(\w+))?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    sys.exit(run_launcher(sys.argv[1:]))


if __name__ == "__main__":
    main()
