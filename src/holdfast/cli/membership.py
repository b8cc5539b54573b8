"""`holdfast members`, `drain` and `stop`: a running job, seen and steered from outside.

They are no members of it: they read its records, and write what people ask for. The coordinator answers.
"""

from __future__ import annotations

import os
import pwd
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from holdfast.cli.options import Flag
from holdfast.cli.output import DONE, FAILED, UNHEALTHY, Out, facts, table, text
from holdfast.cli.schema import Drained, Stopped
from holdfast.core.membership import (
    NO_DOMAIN,
    Answer,
    Request,
    Wish,
    check_name,
    decode,
    encode,
    lease_s,
)
from holdfast.errors import OutcomeUnknownError, UnavailableError, UsageError
from holdfast.rendezvous.etcd import EtcdOptions
from holdfast.rendezvous.etcd_cluster import health
from holdfast.rendezvous.founding import Keys
from holdfast.rendezvous.kv import KeyValueStore
from holdfast.rendezvous.open import etcd_endpoints, is_tcp, open_store
from holdfast.rendezvous.settings import DEFAULT_ENDPOINT, DEFAULT_RUN
from holdfast.rendezvous.view import (
    JobView,
    NodeView,
    Viewer,
    attempt_keys,
    decode_control,
    labels,
    living,
    with_health,
)

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

CONNECT_S = 3.0
POLL_S = 0.1
PATIENCE_S = 10.0  # for a new coordinator to take over, and to answer
REQUESTS_SHOWN = 5

T = TypeVar("T")
Seconds = Annotated[float, Parameter(validator=Number(gte=0))]


@Parameter(name="*")
@dataclass(frozen=True)
class Job:
    """Which job. Each may also be given by the environment."""

    json: Flag = False
    "Print JSON on stdout; errors too."
    endpoint: Annotated[str, Parameter(env_var="HOLDFAST_ENDPOINT")] = DEFAULT_ENDPOINT
    "Where its store is, as its nodes were told."
    run: Annotated[str, Parameter(env_var="HOLDFAST_RUN_ID")] = DEFAULT_RUN
    "The job's run id (--rdzv-id)."
    attempt: Annotated[str | None, Parameter(env_var="HOLDFAST_ATTEMPT")] = None
    "Which attempt of the run; otherwise the newest."
    user: Annotated[str | None, Parameter(env_var="HOLDFAST_USER")] = None
    "etcd: the user."
    password_file: Annotated[str | None, Parameter(env_var="HOLDFAST_PASSWORD_FILE")] = None
    "etcd: a file with the password."
    ca_file: Annotated[str | None, Parameter(env_var="HOLDFAST_CA_FILE")] = None
    "etcd: whom to trust."
    cert_file: Annotated[str | None, Parameter(env_var="HOLDFAST_CERT_FILE")] = None
    "etcd: our certificate."
    key_file: Annotated[str | None, Parameter(env_var="HOLDFAST_KEY_FILE")] = None
    "etcd: our key."

    @contextmanager
    def open(self) -> Iterator[tuple[KeyValueStore, Keys]]:
        """The job's store, and where its keys are.

        Raises:
            UnavailableError: code "store_unavailable": nobody answers at the endpoint.
            UsageError: the endpoint, a name or what listens there is wrong.
        """
        store = open_store(
            self.endpoint,
            check_name(self.run),
            timeout_s=CONNECT_S,
            user=self.user,
            password_file=self.password_file,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            compact=False,
        )
        with closing(store):
            yield store, attempt_keys(store, None if self.attempt is None else check_name(self.attempt))

    def options(self) -> EtcdOptions:
        """How its etcd is spoken to."""
        return EtcdOptions(
            endpoints=etcd_endpoints(self.endpoint),
            user=self.user,
            password_file=self.password_file,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            compact=False,
        )


JOB = Job()


def members(*, gone: Annotated[bool, Parameter(name="--all", negative="")] = False, job: Job = JOB) -> int:
    """Say who trains and who is spare in a job, and why. Changes nothing.

    Takes about a beat, and a lease where somebody is silent. Exit code 3 if the job is not as it is wanted: a seat is
    lost, fewer nodes train than could, spares are missing, members of its etcd don't answer, there is no round yet, or
    it has failed.

    Args:
        gone: list those, too, that have left or fallen silent without a seat.
    """
    out = Out(job.json)
    with job.open() as (store, keys), out.waiting("watching the beats"):
        now = Viewer(store, keys).watch()
        if not is_tcp(job.endpoint):
            now = with_health(now, health(etcd_endpoints(job.endpoint), job.options()))
    out.data(now, lambda screen: screen.print(draw(now, gone)))
    return UNHEALTHY if now.problems else DONE


def drain(
    node: str,
    /,
    *,
    timeout: Seconds = 60.0,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    job: Job = JOB,
) -> int:
    """Take a node out of a job. If it trains, a spare takes its place at the next step boundary; it then exits with 0.

    Exit code 1 if nobody can take its place, or no answer came.

    Args:
        node: a node's name, or one of its lives as `holdfast members --json` lists them.
        timeout: for how long a step boundary is waited for (seconds).
        wait: wait until it has left.
    """
    began_s = time.monotonic()
    out = Out(job.json)
    with job.open() as (store, keys):
        now = Viewer(store, keys).watch()
        if now.outcome is not None:
            raise UsageError(
                f"the job has ended: {now.outcome.ending.value}: {now.outcome.reason}",
                code="job_over",
                hint="there is nothing to drain",
            )
        one = living(now, node)
        asked = Request(wish=Wish.DRAIN, member=one.member, timeout_s=timeout, by=_who())
        name = _ask(store, keys, asked)
        done, reason = None, f"{one.member} is asked to leave"
        if wait:
            with out.waiting(f"waiting for {one.node} to leave"):
                done, reason = _until_drained(store, keys, name, timeout)
    data = Drained(
        run=now.run,
        attempt=now.attempt,
        node=one.node,
        member=one.member,
        request=name,
        done=done,
        reason=reason,
        seconds=round(time.monotonic() - began_s, 3),
    )
    out.data(data, lambda screen: screen.print(text(reason)))
    return DONE if done or not wait else FAILED


def _until_drained(store: KeyValueStore, keys: Keys, name: str, timeout_s: float) -> tuple[bool | None, str]:
    """The answer to a drain; None: there was none in time."""
    policy = decode_control(store, keys).policy
    patience_s = timeout_s + policy.last_call_s + policy.stop_s + lease_s(policy) + PATIENCE_S

    def answered() -> tuple[bool, str] | None:
        found = store.get_listed(keys.answers, [name])
        if name in found:
            answer = decode(found[name], Answer, key=f"{keys.answers}/{name}")
            return answer.done, answer.reason
        outcome = decode_control(store, keys).outcome
        return None if outcome is None else (True, f"the job has ended: {outcome.ending.value}: {outcome.reason}")

    found = _poll(answered, patience_s)
    return (None, f"no answer in {patience_s:.0f} s; the request stands") if found is None else found


def stop(
    *,
    code: Annotated[int, Parameter(validator=Number(gte=0, lte=255))] = 0,
    timeout: Seconds = 30.0,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    job: Job = JOB,
) -> int:
    """End a job: every node ends its workers and leaves. Exit code 1 if no outcome stands in time.

    Args:
        code: what the nodes with a seat exit with.
        timeout: how long to wait until the outcome stands (seconds).
        wait: wait for it.
    """
    began_s = time.monotonic()
    out = Out(job.json)
    with job.open() as (store, keys):
        control = decode_control(store, keys)
        name, outcome = None, control.outcome
        if outcome is None:
            name = _ask(store, keys, Request(wish=Wish.STOP, code=code, by=_who()))
            if wait:
                with out.waiting("waiting for the outcome"):
                    outcome = _poll(lambda: decode_control(store, keys).outcome, timeout)
    if outcome is not None:
        reason = f"the job has ended: {outcome.ending.value}: {outcome.reason}"
    else:
        reason = f"no outcome in {timeout:g} s; the request stands" if wait else "the job is asked to stop"
    data = Stopped(
        run=control.run,
        attempt=control.attempt,
        request=name,
        outcome=outcome,
        reason=reason,
        seconds=round(time.monotonic() - began_s, 3),
    )
    out.data(data, lambda screen: screen.print(text(reason)))
    return DONE if outcome is not None or not wait else FAILED


def _ask(store: KeyValueStore, keys: Keys, request: Request) -> str:
    name = secrets.token_hex(8)
    store.put_listed(keys.requests, name, encode(request))
    return name


def _poll(look: Callable[[], T | None], patience_s: float) -> T | None:
    """What `look` finds, asked again and again; None: nothing in time.

    Raises:
        OutcomeUnknownError: code "store_lost": the store is gone for good.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            found = look()
        except UnavailableError as error:
            if error.code == "store_lost":
                raise OutcomeUnknownError(
                    f"the request was written, but then the store went away: {error.args[0]}",
                    code="store_lost",
                    hint="most likely the job has ended; its nodes' exit codes tell",
                ) from error
            found = None
        left_s = deadline_s - time.monotonic()
        if found is not None or left_s <= 0:
            return found
        threading.Event().wait(min(POLL_S, left_s))


def _who() -> str:
    """Who asks, for people to read."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def draw(now: JobView, gone: bool = False) -> Group:
    """The job as people read it; fits 80 columns."""
    from rich.console import Group

    parts: list[RenderableType] = [facts(_head(now))]
    parts += [text(f"! {problem}", "bold red") for problem in now.problems]
    parts += ["", _nodes(now, gone)] if now.nodes else ["", text("no node has come yet")]
    return Group(*parts)


def _head(now: JobView) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("job", f"{now.run}, attempt {now.attempt} ({now.store} store)")]
    if now.store_health is not None:
        rows.append(("store", now.store_health.text))
    if now.outcome is not None:
        rows.append(("outcome", f"{now.outcome.ending.value}, exit code {now.outcome.code}: {now.outcome.reason}"))
    most = str(now.max_nodes) if now.min_nodes == now.max_nodes else f"{now.min_nodes} to {now.max_nodes}"
    rows.append(("round", f"{now.round}: {now.seats} nodes of {most}" if now.round else "none yet"))
    rows.append(("spares", f"{now.spares}, {now.spares_wanted} wanted"))
    rows.append(("reason", now.reason))
    if now.proposed:
        rows.append(("proposed", f"round {now.round + 1}"))
    rows.append(("coordinator", f"{now.coordinator}, term {now.term}"))
    budget = f" of {now.restart_budget}" if now.restart_budget >= 0 else ""
    rows.append(("restarts", f"{now.restarts}{budget}"))
    rows += [("replaced", f"{member}: {why}") for member, why in now.replaced.items()]
    if now.last_change is not None:
        times = now.last_change
        noticed = f"noticed after {times.noticed_s:.1f} s, " if times.noticed_s else ""
        rows.append(("last change", f"{noticed}ready in {times.stopped_s:.1f} s, running in {times.started_s:.1f} s"))
    for one in now.requests[-REQUESTS_SHOWN:]:
        told = "no answer yet" if one.answer is None else one.answer.reason
        rows.append(("asked for", f"{one.wish} {one.member} by {one.by}: {told}".replace("  ", " ")))
    return rows


def _nodes(now: JobView, gone: bool) -> RenderableType:
    from rich.console import Group

    shown = [one for one in now.nodes if gone or one.group_rank is not None or one.life in ("beats", "unknown", "none")]
    names = labels(shown)
    domains = any(one.domain != NO_DOMAIN for one in shown)
    infra = any(one.infra_rank is not None for one in shown)
    groups = any(one.group for one in shown)
    headers = ["rank", "node", "state", "beat"]
    headers += ["infra"] * infra + ["domain"] * domains + ["group"] * groups + ["address"]
    made = table(*headers, right=("rank", "infra"))
    for one in shown:
        cells: list[object] = ["" if one.group_rank is None else one.group_rank, names[one.member], _state(one)]
        cells += [_beat(one)]
        cells += ["" if one.infra_rank is None else one.infra_rank] * infra
        cells += [one.domain] * domains + [one.group] * groups + [one.address]
        style = "" if one.life in ("beats", "unknown") else "yellow" if one.group_rank is not None else "dim"
        made.add_row(*(text(cell, style) for cell in cells))
    left = len(now.nodes) - len(shown)
    if not left:
        return made
    return Group(made, text(f"… and {left} that have left or fallen silent (--all lists them)", "dim"))


def _state(one: NodeView) -> str:
    words = ["spare" if one.spare else one.state or "has not spoken yet"]
    words += ["to be drained"] if one.draining else []
    words += [f"failed {one.failures} times" if one.failures > 1 else "failed once"] if one.failures else []
    words += [one.reason] if one.reason else []
    return ", ".join(words)


def _beat(one: NodeView) -> str:
    return f"silent for {one.silent_s:.1f} s" if one.life == "silent" else one.life
