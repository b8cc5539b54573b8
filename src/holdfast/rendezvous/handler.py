"""The rendezvous handler: what torch's elastic agent asks, translated into words for `Agent`. Decides nothing.

The points of torchrun's contract that this rests on are tested by name in `tests/agents/test_contract.py`:

    next_rendezvous()      blocks until there is a seat; SystemExit(code) is how a node without one leaves
    num_nodes_waiting()    polled while workers run; > 0 ends them and calls next_rendezvous() again
    the returned store     used for the exit barrier, after all own workers have succeeded
    os.environ             as it is when next_rendezvous() returns, it is what the workers get
    shutdown()             called at the end, not after a signal; the exception under way tells why
"""

from __future__ import annotations

import gc
import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.run import get_args_parser

from holdfast.errors import HoldfastError, UsageError
from holdfast.rendezvous.agent import Agent
from holdfast.rendezvous.barrier import BarrierStore
from holdfast.rendezvous.joining import join
from holdfast.rendezvous.settings import read_settings
from holdfast.rendezvous.signals import Signals
from holdfast.rendezvous.words import Left, Round

logger = logging.getLogger(__name__)

BACKEND = "holdfast"
MANY_RESTARTS = 1_000_000
IDENTICAL = "TORCH_ELASTIC_WORKER_IDENTICAL"


class HoldfastRendezvous(RendezvousHandler):
    """One node's seat, again and again."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._signals = Signals(agent)
        self._heard = True  # nobody's workers have failed before the first round

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._agent.run

    @property
    def use_agent_store(self) -> bool:
        """Workers make a store of their own in each round: stale addresses of an earlier one can't be met there."""
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        self._signals.park()
        word = self._agent.next_round(failed=not self._heard)
        if isinstance(word, Left):
            _say(word.reason, word.code)
            raise SystemExit(word.code)
        self._heard = False
        os.environ.update(self._agent.worker_environment(word))
        return self._info(word)

    def _info(self, word: Round) -> RendezvousInfo:
        control, seat = word.control, word.seat
        return RendezvousInfo(
            store=BarrierStore(self._agent),  # type: ignore[arg-type]
            rank=seat.group_rank,
            world_size=seat.head.world_size,
            bootstrap_store_info=RendezvousStoreInfo(master_addr=control.address, master_port=control.port),
        )

    def num_nodes_waiting(self) -> int:
        self._signals.wrap()
        if self._heard or not self._agent.rings():
            return 0
        self._heard = True
        self._agent.heard()
        return 1

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody closes a job but its outcome."""

    def shutdown(self) -> bool:
        error = sys.exc_info()[1]
        if isinstance(error, ChildFailedError):
            self._agent.leave("its workers failed, and torchrun restarts them no more", failed=True)
        else:
            self._agent.leave("torchrun is done" if error is None else f"{type(error).__name__}")
        gc.freeze()  # torch's objects end with the process: collecting them first would take a second
        return True


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """The handler for what torchrun was told. What is wrong is said in one line, and ends the process with 2, or 1."""
    os.environ[IDENTICAL] = "1"  # group rank 0 would otherwise wait for peers that may be dead
    try:
        settings = read_settings(
            endpoint=parameters.endpoint,
            run=parameters.run_id,
            min_nodes=parameters.min_nodes,
            max_nodes=parameters.max_nodes,
            local_addr=parameters.local_addr,
            config=parameters.config,
            environment=os.environ,
        )
        _warn_of_few_restarts(settings.policy.restart_budget)
        agent = join(settings)
        if agent.metrics is not None:
            _say(f"metrics at {agent.metrics.url}", 0)
        return HoldfastRendezvous(agent)
    except HoldfastError as error:
        code = 2 if isinstance(error, UsageError) else 1
        _say(str(error), code)
        raise SystemExit(code) from error


def _warn_of_few_restarts(budget: int) -> None:
    """torchrun counts worker failures by itself, too, and its agent leaves without asking once its count is used up.

    The count is not told to a rendezvous; it is read where torchrun has read it.
    """
    if os.path.basename(sys.argv[0]) not in ("torchrun", "run.py"):
        return
    given = get_args_parser().parse_known_args(sys.argv[1:])[0].max_restarts
    if 0 <= budget < given or given >= MANY_RESTARTS:
        return
    logger.warning(
        "--max-restarts is %d: after so many worker failures this node leaves and is lost, whatever the job's restart "
        "budget (%d) allows; give --max-restarts=%d",
        given,
        budget,
        MANY_RESTARTS,
    )


def _say(reason: str, code: int) -> None:
    """One line for people, whatever the logging is set to."""
    word = "error: " if code else ""
    sys.stderr.write(f"holdfast: {word}{reason}\n")
    sys.stderr.flush()
