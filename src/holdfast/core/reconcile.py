"""Reconcile: bring the versions of one channel into one inference server, and say which one it serves.

Level-triggered: nothing is remembered that a look at the world can tell, so that it goes on from whatever it finds,
also after a restart of the server or of itself. One look, one decision, one action; then it looks again, but between
the actions of a swap (`todo`), while a server is paused and each moment counts:

    desired, and not there     an adapter, a name per version:  do: Load
                               an adapter, one name for all:    do: Pause, Unload, Load at one go
                               full weights:                    do: Pause; then Unlabel, Reload, ResetCache, Label
    it stands there            listed by the server, or labelled. Paused: do: Resume
                               do: Canary, if there is one; then it counts as served
    served                     do: After; Unload what lies outside the lineage; then Acknowledge
    older versions beside it   do: Unload each once `linger_s` has passed: clients may still ask for its name
    all done                   do: Idle

What a server serves is what was proved since it was last seen to come up: `serving` is set after the proof and never
before. Whatever a server may still read stays (`needs`): what it lists, what its requests use, what is to come.

An action that failed is judged by its reaction:

    LOOK_AGAIN    it may be right at the next look: again after a pause, at most `tries` times for one version
    NEXT_VERSION  this server can't use this version: it is refused here, and the next one is taken
    QUARANTINE    what the server has in memory is unknown: nothing more is done to it until it was restarted
    FIX_SETUP     somebody has to change a flag or a right: no version is to blame; again after a long pause

Full weights that could not be loaded leave unknown weights, so there every failure of Reload is a quarantine, and a
paused server stays paused.
"""

from __future__ import annotations

import msgspec

from holdfast.core.names import Version
from holdfast.core.servers import (
    Acknowledge,
    Action,
    After,
    Before,
    Canary,
    Idle,
    Label,
    Load,
    Pause,
    Policy,
    Reaction,
    Reload,
    ResetCache,
    Resume,
    Server,
    Status,
    Unlabel,
    Unload,
    Way,
    World,
)

LOOK_S = 1.0  # between two looks at a server that has what it should: how late a restart of it is noticed
PAUSE_S_MIN = 0.2
PAUSE_S_MAX = 10.0
SETUP_PAUSE_S = 10.0
REFUSED_MAX = 100


class Looked(msgspec.Struct, frozen=True):
    world: World
    now_s: float


class Gone(msgspec.Struct, frozen=True):
    """It can't be reached, or does not answer as a server should."""

    reason: str


class Done(msgspec.Struct, frozen=True):
    action: Action
    now_s: float


class Failed(msgspec.Struct, frozen=True):
    action: Action
    reaction: Reaction
    reason: str
    now_s: float


Event = Looked | Gone | Done | Failed


def step(state: Server, event: Event, policy: Policy) -> tuple[Server, tuple[Action | Idle, ...]]:
    """One transition: at most one action, or Idle; nothing: look again at once."""
    match event:
        case Gone(reason):
            return _gone(state, reason), (Idle(reason, _pause_s(1)),)
        case Looked(world, now_s):
            return _looked(state, world, now_s, policy)
        case Done(action, now_s):
            state = _done(state, action, now_s)
            return state, state.todo[:1]
        case Failed(action, reaction, reason, now_s):
            return _failed(state, action, reaction, reason, now_s, policy), ()
    raise AssertionError(event)


def _gone(state: Server, reason: str) -> Server:
    """It may be restarting, or only out of reach: its files stay; what it served has to be proved anew."""
    return msgspec.structs.replace(
        state,
        status=Status.GONE,
        reason=reason,
        serving=None,
        proved=frozenset(),
        told=None,
        todo=(),
        not_before_s=0.0,
        changing=False,
        previous=state.serving if state.serving is not None else state.previous,
    )


def _looked(state: Server, world: World, now_s: float, policy: Policy) -> tuple[Server, tuple[Action | Idle, ...]]:
    state = _remember(state, world, now_s, policy)
    if state.status is Status.QUARANTINED:
        return state, (Idle(state.reason, LOOK_S),)
    if now_s < state.not_before_s:
        return _lagging(state, state.reason, state.not_before_s - now_s)
    if state.todo and world.paused:
        return state, (state.todo[0],)
    state = msgspec.structs.replace(state, todo=())
    state = _adopt(state, world, now_s, policy)
    target = _target(state, world)
    standing = _standing(world, target, policy)
    if target is not None and not standing:
        return _bring(state, world, target, now_s, policy)
    if policy.way is not Way.VERSIONED and world.paused and (state.changing or standing):
        return _updating(state, Resume(), "to resume")
    if target is not None and target != state.serving:
        if policy.canary and target not in state.proved:
            return _updating(state, Canary(policy.name(target), target), f"to prove {target}")
        state = _proved(state, target, now_s)
    return _tidy(state, world, target, now_s, policy)


def _remember(state: Server, world: World, now_s: float, policy: Policy) -> Server:
    """What this look says of what the server may still read, and since when."""
    if policy.way is Way.WEIGHTS:  # weights in memory need no files
        here = off = frozenset[Version]()
        stands = world.label
    else:
        here = world.on_server
        off = (state.draining | world.busy | world.copies) - here - {world.desired}
        stands = state.serving if state.serving in here else None
    lost = state.serving is not None and state.serving != stands  # restarted, or on its way to another version
    wanted = frozenset({world.desired}) - {None} - {version for version, _ in state.refused}
    since_s = {version: since for version, since in state.since_s.items() if version in off | here}
    for version in (off | here) - {stands} - wanted:
        since_s.setdefault(version, now_s)
    draining = frozenset(version for version in off if _reads(version, world, now_s - since_s[version], policy))
    previous = state.serving if lost else state.previous
    serving = None if lost else state.serving
    spare = previous if serving is None and not world.retired else None  # to go back to
    return msgspec.structs.replace(
        state,
        status=Status.LAGGING if state.status in (Status.UNKNOWN, Status.GONE) else state.status,
        serving=serving,
        previous=previous,
        proved=state.proved & (here | {stands}),
        since_s=since_s,
        draining=draining,
        needs=here | draining | (frozenset({world.desired, serving, spare}) - {None}),
    )


def _reads(version: Version, world: World, off_s: float, policy: Policy) -> bool:
    """Whether requests of a version that has been off the list for `off_s` seconds may still read its files."""
    if off_s < policy.settle_s:
        return True
    return (version in world.busy or not world.counts) and off_s < policy.drain_s


def _adopt(state: Server, world: World, now_s: float, policy: Policy) -> Server:
    """What the server lists or is labelled with is what it serves, whoever brought it there."""
    if state.serving is not None or world.paused or policy.canary:
        return state
    there = world.on_server if policy.way is not Way.WEIGHTS else frozenset({world.label})
    standing = [version for version in there if version is not None and _standing(world, version, policy)]
    return _proved(state, max(standing), now_s) if standing else state


def _target(state: Server, world: World) -> Version | None:
    """What to bring: the desired version unless it is refused here; then what was served before, if it is at hand."""
    if world.retired:
        return None
    refused = {version for version, _ in state.refused}
    for version in (world.desired, state.serving, state.previous):
        if version is not None and version not in refused and version not in world.outside:
            return version
    return None


def _standing(world: World, target: Version | None, policy: Policy) -> bool:
    if target is None:
        return False
    if policy.way is Way.WEIGHTS:
        return world.label == target
    return world.loaded.get(policy.name(target)) == target


def _bring(
    state: Server, world: World, target: Version, now_s: float, policy: Policy
) -> tuple[Server, tuple[Action | Idle, ...]]:
    """The next action on the way to `target`."""
    if policy.way is Way.STABLE and world.paused:
        if world.loaded:  # one swap in one pause: what waits may have the adapter before this one, and no older one
            return _updating(state, Resume(), f"to resume before {target} is brought")
        if state.changing and target not in world.copies:
            return _updating(state, Resume(), f"to resume without {target}, which is not at hand")
    if target not in world.copies:
        return _lagging(state, f"waiting: {target} is not at hand yet", LOOK_S)
    if policy.hooks and state.told != target:
        return _updating(state, Before(target, state.serving), f"to announce {target}")
    if policy.way is Way.VERSIONED:
        return _make_room(state, world, target, now_s, policy)
    if policy.way is Way.STABLE and not world.loaded:
        return _updating(state, Load(policy.adapter, target), f"to load {target}")
    if policy.way is Way.STABLE:
        ((name, version),) = world.loaded.items()
        swap: tuple[Action, ...] = (Pause(), Unload(name, version), Load(policy.adapter, target))
        return _updating(msgspec.structs.replace(state, todo=swap), swap[0], f"to replace {version} by {target}")
    if not world.paused:
        return _updating(state, Pause(), f"to replace {state.serving or 'what is served'} by {target}")
    state = msgspec.structs.replace(state, changing=True)
    todo: tuple[Action, ...] = (Unlabel(), Reload(target), ResetCache(), Label(target))
    return _updating(msgspec.structs.replace(state, todo=todo), todo[0], f"to load {target}")


def _make_room(
    state: Server, world: World, target: Version, now_s: float, policy: Policy
) -> tuple[Server, tuple[Action | Idle, ...]]:
    name = policy.name(target)
    if name in world.loaded:  # from another path: not what we would have loaded
        return _updating(state, Unload(name, None), f"to replace what stands under {name}")
    if len(world.loaded) < policy.residents and world.room > 0:
        return _updating(state, Load(name, target), f"to load {target}")
    spare = [version for version in world.on_server if version != state.serving]
    unknown = [other for other, version in world.loaded.items() if version is None]
    if unknown:
        return _updating(state, Unload(unknown[0], None), f"to make room for {target}")
    if not spare:
        if not world.loaded:
            return _lagging(state, f"waiting: no room for {target} beside other channels' versions", 1.0)
        reason = f"waiting: {target} needs a second place beside {state.serving}, and residents leave none"
        return _lagging(state, reason, 1.0)
    oldest = min(spare, key=lambda version: state.since_s.get(version, now_s))
    left_s = _lingers_s(state, oldest, world, now_s, policy)
    if left_s > 0:
        return _lagging(state, f"waiting: {oldest} may still be asked for, for {left_s:.1f} s", left_s)
    return _updating(state, Unload(policy.name(oldest), oldest), f"to make room for {target}")


def _lingers_s(state: Server, version: Version, world: World, now_s: float, policy: Policy) -> float:
    """For how long its name goes on being served (seconds)."""
    if version in world.outside or world.retired:
        return 0.0
    return policy.linger_s - (now_s - state.since_s.get(version, now_s))


def _tidy(
    state: Server, world: World, target: Version | None, now_s: float, policy: Policy
) -> tuple[Server, tuple[Action | Idle, ...]]:
    """What is served is as good as it gets: take away the rest, tell, and wait."""
    if policy.hooks and state.told is not None and state.told == state.serving:
        return state, (After(state.told, state.previous),)
    wait_s = LOOK_S
    if policy.way is Way.VERSIONED and (state.serving is not None or world.retired or world.outside & world.on_server):
        for name, version in sorted(world.loaded.items()):
            if version is not None and version == state.serving and not world.retired:
                continue
            left_s = 0.0 if version is None else _lingers_s(state, version, world, now_s, policy)
            if left_s <= 0:
                return state, (Unload(name, version),)
            wait_s = min(wait_s, left_s)
    elif policy.way is Way.STABLE and world.retired:
        for name, version in sorted(world.loaded.items()):
            return state, (Unload(name, version),)
    outside = world.outside & (world.on_server | world.busy | state.draining)
    if state.serving is not None and state.acknowledged != state.serving and not outside:
        return state, (Acknowledge(state.serving),)
    if state.draining:
        wait_s = min(wait_s, policy.settle_s)
    if state.serving is not None and state.serving == world.desired and state.serving not in world.outside:
        return _say(state, Status.READY, f"serves {state.serving}"), (Idle("up to date", wait_s),)
    return _lagging(state, _why_lagging(state, world), wait_s)


def _why_lagging(state: Server, world: World) -> str:
    refused = dict(state.refused)
    if world.desired is None:
        return "waiting: there is nothing to serve yet" if not world.retired else "its channel has ended"
    if world.desired in refused:
        return f"{world.desired} is refused here: {refused[world.desired]}"
    if world.desired in world.outside:
        return f"stale: {world.desired} is outside the lineage, and nothing follows yet"
    return f"waiting: {world.desired} is not served yet"


def _proved(state: Server, version: Version, now_s: float) -> Server:
    since_s = dict(state.since_s)
    if state.serving is not None and state.serving != version:
        since_s[state.serving] = now_s
    since_s.pop(version, None)
    return msgspec.structs.replace(
        state,
        serving=version,
        previous=state.serving if state.serving not in (None, version) else state.previous,
        proved=state.proved | {version},
        since_s=since_s,
        failures=0,
        trying=None,
        not_before_s=0.0,
        changing=False,
    )


def _done(state: Server, action: Action, now_s: float) -> Server:
    if state.todo and state.todo[0] == action:
        state = msgspec.structs.replace(state, todo=state.todo[1:])
    match action:
        case Before(version, _):
            return msgspec.structs.replace(state, told=version)
        case After():
            return msgspec.structs.replace(state, told=None)
        case Acknowledge(version):
            return msgspec.structs.replace(state, acknowledged=version)
        case Canary(_, version):
            return _proved(state, version, now_s)
        case Pause():
            return msgspec.structs.replace(state, changing=True)
        case Unload(_, version) if version is not None:
            since_s = {**state.since_s, version: now_s}
            return msgspec.structs.replace(state, since_s=since_s, draining=state.draining | {version})
    return state


def _failed(state: Server, action: Action, reaction: Reaction, reason: str, now_s: float, policy: Policy) -> Server:
    state = msgspec.structs.replace(state, todo=())
    version = getattr(action, "version", None)
    if reaction is Reaction.QUARANTINE or (isinstance(action, Reload) and reaction is not Reaction.FIX_SETUP):
        return _quarantined(state, version, reaction, reason, policy)
    swapping = policy.way is Way.STABLE and isinstance(action, Load)  # requests are held back: go on, or go back
    if reaction is Reaction.FIX_SETUP and not swapping:
        waits = msgspec.structs.replace(state, not_before_s=now_s + SETUP_PAUSE_S)
        return _say(waits, Status.LAGGING, reason)
    about = version if isinstance(action, Load | Canary) else None
    failures = state.failures + 1 if state.trying == about else 1
    if about is not None and (reaction in (Reaction.NEXT_VERSION, Reaction.FIX_SETUP) or failures >= policy.tries):
        return _refuse(state, about, reason)
    later = msgspec.structs.replace(state, failures=failures, trying=about, not_before_s=now_s + _pause_s(failures))
    return _say(later, Status.LAGGING, reason)


def _quarantined(state: Server, version: Version | None, reaction: Reaction, reason: str, policy: Policy) -> Server:
    """Its memory is unknown. A version that it lost its life over is refused only if that happens again and again."""
    failures = state.failures + 1 if state.trying == version else 1
    if version is not None and (reaction is not Reaction.LOOK_AGAIN or failures >= policy.tries):
        state = _refuse(state, version, reason)
        failures, version = 0, None
    state = msgspec.structs.replace(
        state, serving=None, proved=frozenset(), failures=failures, trying=version, changing=False
    )
    return _say(state, Status.QUARANTINED, f"quarantined: {reason}; restart this server")


def _refuse(state: Server, version: Version, reason: str) -> Server:
    refused = frozenset(sorted(state.refused, reverse=True)[: REFUSED_MAX - 1]) | {(version, reason)}
    after = msgspec.structs.replace(state, refused=refused, failures=0, trying=None, not_before_s=0.0)
    return _say(after, Status.LAGGING, f"{version} is refused here: {reason}")


def _pause_s(failures: int) -> float:
    return float(min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(failures - 1, 10)))


def _say(state: Server, status: Status, reason: str) -> Server:
    return msgspec.structs.replace(state, status=status, reason=reason)


def _updating(state: Server, action: Action, reason: str) -> tuple[Server, tuple[Action | Idle, ...]]:
    return _say(state, Status.UPDATING, f"updating: {reason}"), (action,)


def _lagging(state: Server, reason: str, wait_s: float) -> tuple[Server, tuple[Action | Idle, ...]]:
    return _say(state, Status.LAGGING, reason), (Idle(reason, wait_s),)
