"""What a training script is told when Holdfast started it, and how it answers.

The agent puts it into the workers' environment; torchrun adds the ranks. What a script does with it:

    job = holdfast.job()                    # None when nobody launched it
    if job is not None and job.round > 1:
        resume()

    if holdfast.drain_requested(): ...      # see `ready_to_drain`

A process counts as launched if HOLDFAST_AGENT is there, which every child inherits. A publisher opened by such a
process is of the job's term, so that the publisher of a later round fences those of all earlier ones.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from holdfast.core.bounds import check_seconds
from holdfast.core.records import Term
from holdfast.errors import UnavailableError, UsageError

AGENT = "HOLDFAST_AGENT"
DESK = "HOLDFAST_DESK"
DRAIN = "drain"
READY = "ready-"
REASON_MAX = 400
NUMBER_DIGITS_MAX = 18
LOOK_S = 0.05
# Nodes learn of a drain at slightly different times: a worker that the others took along waits so long for its own.
APPEAR_S = 10.0
# setproctitle, which Ray and others use, overwrites /proc/<pid>/environ unless told not to: the guardian reads it.
KEEP_ENVIRONMENT = "SPT_NOENV"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What this worker belongs to, in its present round.

    Attributes:
        run, attempt: which job, and which attempt of it.
        round: of this attempt; grows with every restart of the workers.
        node: this node's name.
        rank, local_rank, group_rank: this worker among all, among those of its node, and its node among all.
        world_size, num_nodes: how many workers and nodes train.
        spares: how many nodes were parked when the round began.
        restarts: how many rounds a failure has ended, in the whole attempt.
        reason: why this round began, in words.
    """

    run: str
    attempt: str
    round: int
    node: str
    rank: int
    local_rank: int
    group_rank: int
    world_size: int
    num_nodes: int
    spares: int
    restarts: int
    reason: str


def worker_environment(
    *,
    token: str,
    desk: str | os.PathLike[str],
    run: str,
    attempt: str | None,
    job: str,
    term_round: int,
    round: int,  # noqa: A002
    node: str,
    spares: int,
    restarts: int,
    reason: str,
) -> dict[str, str]:
    """What workers find in their environment, beside torchrun's own.

    Args:
        token: the mark of the agent's processes; the guardian ends whoever carries it once the agent is gone.
        desk: the directory by which workers and agent speak.
        job, term_round: the term of a publisher in this round.
    """
    return {
        AGENT: token,
        DESK: os.fspath(desk),
        "HOLDFAST_RUN": run,
        "HOLDFAST_ATTEMPT": attempt or "",
        "HOLDFAST_JOB": job,
        "HOLDFAST_TERM_ROUND": str(term_round),
        "HOLDFAST_ROUND": str(round),
        "HOLDFAST_NODE": node,
        "HOLDFAST_SPARES": str(spares),
        "HOLDFAST_RESTARTS": str(restarts),
        "HOLDFAST_REASON": one_line(reason),
        KEEP_ENVIRONMENT: "1",
    }


def one_line(text: str, *, limit: int = REASON_MAX) -> str:
    """`text` as one line that an environment can carry: no control characters, at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > limit:
        line = line[: limit - 1] + "…"
    try:
        os.fsencode(line)
    except UnicodeEncodeError:  # a locale that does not know all characters
        line = line.encode("ascii", "replace").decode("ascii")
    return line


def job() -> Job | None:
    """What this worker belongs to; None if Holdfast did not start it.

    Raises:
        UsageError: code "bad_environment": the environment was changed on the way here.
    """
    environment = os.environ
    if not environment.get(AGENT):
        return None
    return Job(
        run=_text(environment, "HOLDFAST_RUN"),
        attempt=_text(environment, "HOLDFAST_ATTEMPT"),
        round=_number(environment, "HOLDFAST_ROUND"),
        node=_text(environment, "HOLDFAST_NODE"),
        rank=_number(environment, "RANK"),
        local_rank=_number(environment, "LOCAL_RANK"),
        group_rank=_number(environment, "GROUP_RANK"),
        world_size=_number(environment, "WORLD_SIZE"),
        num_nodes=_number(environment, "GROUP_WORLD_SIZE"),
        spares=_number(environment, "HOLDFAST_SPARES"),
        restarts=_number(environment, "HOLDFAST_RESTARTS"),
        reason=_text(environment, "HOLDFAST_REASON"),
    )


def launched_term() -> Term | None:
    """The term of a publisher in this round, with a new nonce; None if Holdfast did not start this process.

    Raises:
        UsageError: code "bad_environment".
    """
    environment = os.environ
    if not environment.get(AGENT):
        return None
    return Term(
        job=_text(environment, "HOLDFAST_JOB", empty=False),
        round=_number(environment, "HOLDFAST_TERM_ROUND"),
        nonce=secrets.token_hex(8),
    )


def drain_requested() -> bool:
    """Whether a node of this job is to leave, and all workers are asked to find a good time to be stopped.

    A few microseconds, no network: may be asked at every step. False if Holdfast did not start this process. What one
    rank sees another may see a step later, so ranks have to agree before they act on it: see `ready_to_drain`.
    """
    desk = os.environ.get(DESK)
    return bool(desk) and _stands(f"{desk}/{DRAIN}")


def ready_to_drain(timeout_s: float | None = None) -> bool:
    """Say that this worker has saved what it has to, and wait to be stopped. Usually it does not return.

    Every rank calls it, at the same step boundary. Nodes learn of a drain at slightly different times, so the ranks
    agree on it by a reduction, here on every tenth step:

        if step % 10 == 0:
            flag = torch.tensor(int(holdfast.drain_requested()))
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)  # on the backend's device
            if flag:
                save(step)
                holdfast.ready_to_drain()

    With one worker, `if holdfast.drain_requested(): save(); holdfast.ready_to_drain()` will do.

    Once all workers of all nodes are here, or the time that the drain was given is over, the agents end them by
    SIGTERM, and the next round begins without the node that leaves.

    Args:
        timeout_s: how long to wait (seconds); None: until the agent acts.

    Returns:
        False: the drain was called off, or there is none: go on. True: the time is over, and it still stands.

    Raises:
        UsageError: code "bad_environment", or the timeout is no number of seconds.
        UnavailableError: code "desk_unwritable": the answer could not be written; the agent will stop this worker
            when the drain's own time is over.
    """
    until_s = None if timeout_s is None else time.monotonic() + check_seconds("timeout_s", timeout_s)
    desk = os.environ.get(DESK)
    own = job()
    if own is None or not desk:
        return False
    # Ranks, not local ranks: under --virtual-local-rank all workers of a node have local rank 0.
    answer = f"{desk}/{READY}{own.round}-{own.rank}-{os.environ.get('LOCAL_WORLD_SIZE', '1')}"
    appear_s = time.monotonic() + APPEAR_S
    seen = False
    try:
        while True:
            now_s = time.monotonic()
            stands = _stands(f"{desk}/{DRAIN}")
            if not stands and (seen or now_s >= appear_s):
                return False
            seen = seen or stands
            if until_s is not None and now_s >= until_s:
                return stands
            if not _answer(answer):
                return False
            time.sleep(LOOK_S)
    finally:
        with suppress(OSError):
            os.unlink(answer)


def _stands(path: str) -> bool:
    """Whether a file of this user's lies there."""
    try:
        return os.lstat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _answer(path: str) -> bool:
    """Write the answer, if it does not stand. False: there is no desk any more."""
    if _stands(path):
        return True
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be written: {error.strerror}", code="desk_unwritable", hint="is the disk full?"
        ) from error
    return True


def _text(environment: Mapping[str, str], name: str, *, empty: bool = True) -> str:
    text = environment.get(name)
    if text is None or (not text and not empty):
        raise _bad(name, text)
    return text


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX):
        raise _bad(name, environment.get(name))
    return int(text)


def _bad(name: str, text: str | None) -> UsageError:
    what = "is missing" if text is None else f"is {text[:80]!r}"
    return UsageError(
        f"{AGENT} is set, but {name} {what}",
        code="bad_environment",
        hint=f"hand the environment of the worker on as it is, or without {AGENT}",
    )
