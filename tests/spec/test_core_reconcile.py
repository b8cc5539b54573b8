"""Reconcile: what is done to a server, in which order, and what it may be said to serve."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.core.names import Version
from holdfast.core.reconcile import Done, Event, Failed, Gone, Looked, step
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

V1, V2, V3 = (Version(1, number, 0, f"{number:06x}") for number in (1, 2, 3))
STABLE, WEIGHTS = Policy(way=Way.STABLE), Policy(way=Way.WEIGHTS)


def name(version: Version) -> str:
    return f"policy-{version}"


class Sim:
    """A server that does what it is told at once, and the machine that tells it."""

    def __init__(self, policy: Policy | None = None, **world: Any) -> None:
        self.policy = policy if policy is not None else Policy()
        self.world: dict[str, Any] = {"desired": None, "copies": frozenset(), "loaded": {}, **world}
        self.state = Server()
        self.now_s = 0.0
        self.did: list[Action] = []
        self.fails: dict[type, tuple[Reaction, str]] = {}

    def feed(self, event: Event) -> tuple[Action | Idle, ...]:
        self.state, effects = step(self.state, event, self.policy)
        assert len(effects) <= 1
        return effects

    def want(self, version: Version | None, **world: Any) -> None:
        copies = self.world["copies"] | ({version} if version else set())
        self.world |= {"desired": version, "copies": copies, **world}

    def run(self, limit: int = 60) -> list[Action]:
        """Look and act until there is nothing to do; what was done."""
        self.did = []
        for _ in range(limit):
            effects = self.feed(Looked(World(**self.world), self.now_s))
            assert self.state.serving is None or self.state.serving in self.state.proved
            if effects and isinstance(effects[0], Idle):
                return self.did
            for effect in effects:
                assert not isinstance(effect, Idle)
                self.did.append(effect)
                failure = self.fails.get(type(effect))
                if failure is not None:
                    self.feed(Failed(effect, *failure, self.now_s))
                else:
                    self.obey(effect)
                    self.feed(Done(effect, self.now_s))
        raise AssertionError(f"no end: {self.did}")

    def obey(self, action: Action) -> None:
        loaded = dict(self.world["loaded"])
        match action:
            case Load(name, version):
                assert name not in loaded
                loaded[name] = version
            case Unload(name, _):
                del loaded[name]
            case Pause():
                self.world["paused"] = True
            case Resume():
                self.world["paused"] = False
            case Unlabel():
                assert self.world["paused"], "weights change while nobody is answered"
                self.world["label"] = None
            case Label(version):
                self.world["label"] = version
        self.world["loaded"] = loaded

    def later(self, seconds: float) -> None:
        self.now_s += seconds


class Once(dict[type, tuple[Reaction, str]]):
    """Failures that happen once."""

    def get(self, key: type, default: Any = None) -> Any:
        return self.pop(key, default)


def test_a_version_is_loaded_under_a_fresh_name_proved_then_acknowledged() -> None:
    sim = Sim()
    sim.want(V1)
    assert sim.run() == [Load(name(V1), V1), Acknowledge(V1)]
    assert (sim.state.status, sim.state.serving, sim.state.reason) == (Status.READY, V1, f"serves {V1}")
    assert sim.run() == [], "and then nothing, however often it looks"


def test_the_label_never_runs_ahead_of_the_proof() -> None:
    sim = Sim()
    sim.want(V1)
    sim.feed(Looked(World(**sim.world), 0.0))
    sim.feed(Done(Load(name(V1), V1), 0.0))
    assert sim.state.serving is None, "the server has said yes, but does not list it yet"
    assert sim.run()[0] == Load(name(V1), V1), "what is not listed is not there"


def test_the_old_name_lingers_then_goes_and_its_copy_stays_until_its_requests_are_done() -> None:
    sim = Sim()
    sim.want(V1)
    sim.run()
    sim.want(V2)
    assert sim.run() == [Load(name(V2), V2), Acknowledge(V2)]
    assert set(sim.world["loaded"]) == {name(V1), name(V2)}, "clients may still ask for it"
    sim.later(1.0)
    sim.world["busy"] = frozenset({V1})
    assert sim.run() == [Unload(name(V1), V1)]
    assert V1 in sim.state.needs
    sim.later(100.0)
    sim.run()
    assert V1 in sim.state.needs, "a request still uses it"
    sim.world["busy"] = frozenset()
    sim.run()
    assert sim.state.needs == {V2}


def test_an_unloaded_version_is_not_believed_idle_at_once() -> None:
    sim = Sim(Policy(linger_s=0.0, settle_s=1.0))
    for version in (V1, V2):
        sim.want(version)
        sim.run()
    assert V1 in sim.state.needs
    sim.later(1.0)
    sim.run()
    assert sim.state.needs == {V2}


def test_waiting_for_requests_has_a_limit() -> None:
    sim = Sim(Policy(linger_s=0.0, drain_s=50.0), busy=frozenset({V1}))
    for version in (V1, V2):
        sim.want(version)
        sim.run()
    sim.later(49.0)
    sim.run()
    assert V1 in sim.state.needs
    sim.later(1.0)
    sim.run()
    assert V1 not in sim.state.needs


def test_a_server_that_counts_nothing_keeps_its_copies_for_the_whole_limit() -> None:
    sim = Sim(Policy(linger_s=0.0, drain_s=50.0), counts=False)
    for version in (V1, V2):
        sim.want(version)
        sim.run()
    sim.later(49.0)
    sim.run()
    assert V1 in sim.state.needs


def test_no_more_residents_than_allowed() -> None:
    sim = Sim(Policy(residents=2, linger_s=5.0))
    for version in (V1, V2, V3):
        sim.want(version)
        sim.run()
        assert len(sim.world["loaded"]) <= 2
    assert sim.state.status is Status.LAGGING
    assert sim.state.reason == f"waiting: {V1} may still be asked for, for 5.0 s"
    sim.later(5.0)
    assert sim.run() == [Unload(name(V1), V1), Load(name(V3), V3), Acknowledge(V3), Unload(name(V2), V2)] or (
        sim.state.serving == V3
    )


def test_a_stable_name_is_swapped_while_nobody_is_answered() -> None:
    sim = Sim(STABLE)
    sim.want(V1)
    assert sim.run() == [Load("policy", V1), Acknowledge(V1)], "nobody asks for it yet"
    sim.want(V2)
    assert sim.run() == [Pause(), Unload("policy", V1), Load("policy", V2), Resume(), Acknowledge(V2)]
    assert sim.state.serving == V2


def test_a_stable_name_is_swapped_once_in_a_pause() -> None:
    """What waits may have the adapter that was there before the swap; with an older one it would kill the server."""
    sim = Sim(STABLE)
    sim.want(V1)
    sim.run()
    sim.want(V2)
    effects = sim.feed(Looked(World(**sim.world), 0.0))
    did: list[Action] = []
    while effects:
        (effect,) = effects
        assert not isinstance(effect, Idle)
        did.append(effect)
        sim.obey(effect)
        effects = sim.feed(Done(effect, 0.0))
    assert did == [Pause(), Unload("policy", V1), Load("policy", V2)], "without a look between"
    sim.want(V3)
    assert sim.run() == [Resume(), Pause(), Unload("policy", V2), Load("policy", V3), Resume(), Acknowledge(V3)]


def test_full_weights_are_replaced_while_nobody_is_answered_and_labelled_last() -> None:
    sim = Sim(WEIGHTS)
    sim.want(V1)
    assert sim.run() == [Pause(), Unlabel(), Reload(V1), ResetCache(), Label(V1), Resume(), Acknowledge(V1)]
    assert (sim.state.status, sim.state.needs) == (Status.READY, {V1})


@pytest.mark.parametrize("policy", [Policy(linger_s=0.0), STABLE, WEIGHTS], ids=["versioned", "stable", "weights"])
def test_killed_after_any_action_it_goes_on_from_what_the_world_is(policy: Policy) -> None:
    whole = Sim(policy)
    for version in (V1, V2):
        whole.want(version)
        whole.run()
    for cut in range(12):
        sim = Sim(policy)
        sim.want(V1)
        sim.run()
        sim.want(V2)
        for _ in range(cut):
            for effect in sim.feed(Looked(World(**sim.world), sim.now_s)):
                if not isinstance(effect, Idle):
                    sim.obey(effect)
                    sim.feed(Done(effect, sim.now_s))
        sim.state = Server()
        sim.run()
        assert {**sim.world} == {**whole.world}, f"killed after {cut} actions"
        assert sim.state.serving == V2


def test_what_a_server_lists_is_taken_as_served_after_a_restart_of_ours() -> None:
    sim = Sim(loaded={name(V1): V1})
    sim.want(V1)
    assert sim.run() == [Acknowledge(V1)]


def test_a_server_that_came_back_empty_is_filled_again_at_once() -> None:
    sim = Sim()
    sim.want(V1)
    sim.run()
    sim.feed(Gone("connection refused"))
    assert (sim.state.status, sim.state.serving) == (Status.GONE, None)
    assert V1 in sim.state.needs, "it may be alive and reading"
    sim.world["loaded"] = {}
    assert sim.run() == [Load(name(V1), V1)]
    assert sim.state.status is Status.READY


def test_a_refused_version_is_not_tried_again_and_the_next_one_is_taken() -> None:
    sim = Sim()
    sim.want(V1)
    sim.run()
    sim.want(V2)
    sim.fails[Load] = (Reaction.NEXT_VERSION, "rank 16 is greater than 8")
    assert sim.run() == [Load(name(V2), V2)]
    assert (sim.state.status, sim.state.serving) == (Status.LAGGING, V1)
    assert sim.state.reason == f"{V2} is refused here: rank 16 is greater than 8"
    sim.later(100.0)
    assert sim.run() == []
    sim.fails.clear()
    sim.want(V3)
    assert sim.run()[:2] == [Load(name(V3), V3), Acknowledge(V3)]


def test_what_is_not_visible_is_tried_a_bounded_number_of_times() -> None:
    sim = Sim(Policy(tries=3))
    sim.want(V1)
    sim.fails[Load] = (Reaction.LOOK_AGAIN, "no such directory")
    tries = 0
    for _ in range(20):
        tries += sim.run().count(Load(name(V1), V1))
        sim.later(20.0)
    assert tries == 3


def test_between_two_tries_it_waits_longer_and_longer() -> None:
    sim = Sim(Policy(tries=5))
    sim.want(V1)
    sim.fails[Load] = (Reaction.LOOK_AGAIN, "no such directory")
    waits = []
    for _ in range(3):
        sim.run()
        (idle,) = sim.feed(Looked(World(**sim.world), sim.now_s))
        assert isinstance(idle, Idle)
        waits.append(idle.wait_s)
        sim.later(idle.wait_s)
    assert waits == sorted(set(waits))


def test_a_wrong_set_up_blames_no_version() -> None:
    sim = Sim(Policy(tries=2))
    sim.want(V1)
    sim.fails[Load] = (Reaction.FIX_SETUP, "set VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
    for _ in range(5):
        sim.run()
        sim.later(20.0)
    assert sim.state.refused == frozenset()
    assert sim.state.reason == "set VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    sim.fails.clear()
    sim.run()
    assert sim.state.status is Status.READY


def test_weights_that_failed_half_way_are_never_resumed() -> None:
    sim = Sim(WEIGHTS)
    sim.want(V1)
    sim.run()
    sim.want(V2)
    sim.fails[Reload] = (Reaction.NEXT_VERSION, "shape mismatch")
    assert sim.run() == [Pause(), Unlabel(), Reload(V2)]
    assert (sim.state.status, sim.state.serving) == (Status.QUARANTINED, None)
    sim.later(100.0)
    assert sim.run() == []
    sim.feed(Gone("connection refused"))
    sim.world |= {"paused": False, "label": None}
    sim.fails.clear()
    assert Reload(V1) in sim.run(), "restarted: what was served before, since the newest is refused"
    assert sim.state.serving == V1


def test_what_was_served_before_stays_at_hand_until_something_else_is() -> None:
    sim = Sim(WEIGHTS)
    sim.want(V1)
    sim.run()
    sim.want(V2)
    sim.fails[Reload] = (Reaction.NEXT_VERSION, "shape mismatch")
    sim.run()
    for _ in range(3):
        sim.later(100.0)
        sim.run()
        assert V1 in sim.state.needs


def test_a_route_that_is_switched_off_quarantines_nobody() -> None:
    sim = Sim(WEIGHTS)
    sim.want(V1)
    sim.fails[Reload] = (Reaction.FIX_SETUP, "set VLLM_SERVER_DEV_MODE=1")
    sim.run()
    assert (sim.state.status, sim.state.refused) == (Status.LAGGING, frozenset())


def test_a_stable_name_goes_back_rather_than_hold_requests_for_somebody_to_mend_the_set_up() -> None:
    sim = Sim(STABLE)
    sim.want(V1)
    sim.run()
    sim.want(V2)
    sim.fails = Once({Load: (Reaction.FIX_SETUP, "the server may not read it")})
    sim.run()
    assert (sim.world["loaded"], sim.world["paused"], sim.state.serving) == ({"policy": V1}, False, V1)


def test_a_server_that_died_while_it_loaded_is_given_the_same_version_again() -> None:
    sim = Sim(WEIGHTS)
    sim.want(V1)
    sim.fails[Reload] = (Reaction.LOOK_AGAIN, "connection reset")
    sim.run()
    sim.feed(Gone("connection refused"))
    sim.world |= {"paused": False, "label": None}
    sim.fails.clear()
    sim.run()
    assert sim.state.serving == V1


def test_a_canary_decides_before_the_label_does() -> None:
    sim = Sim(Policy(canary=True, linger_s=0.0))
    sim.want(V1)
    assert sim.run() == [Load(name(V1), V1), Canary(name(V1), V1), Acknowledge(V1)]
    sim.want(V2)
    sim.fails[Canary] = (Reaction.NEXT_VERSION, "another completion")
    assert sim.run() == [Load(name(V2), V2), Canary(name(V2), V2), Unload(name(V2), V2)]
    assert sim.state.serving == V1


def test_a_stable_name_goes_back_when_the_canary_fails() -> None:
    sim = Sim(Policy(way=Way.STABLE, canary=True))
    sim.want(V1)
    sim.run()
    sim.want(V2)
    sim.fails = Once({Canary: (Reaction.NEXT_VERSION, "another completion")})
    sim.run()
    assert sim.world["loaded"] == {"policy": V1}
    assert (sim.state.serving, sim.world["paused"]) == (V1, False)


def test_a_rewind_is_acknowledged_only_when_nothing_outside_the_lineage_answers() -> None:
    sim = Sim(Policy(linger_s=60.0))
    sim.want(V2)
    sim.run()
    sim.want(V1, outside=frozenset({V2}), busy=frozenset({V2}))
    assert sim.run() == [Load(name(V1), V1), Unload(name(V2), V2)]
    assert sim.state.acknowledged == V2
    sim.world["busy"] = frozenset()
    sim.later(1.0)
    assert sim.run() == [Acknowledge(V1)]


def test_a_rewind_to_what_is_still_there_serves_it_again() -> None:
    sim = Sim(Policy(linger_s=60.0))
    for version in (V1, V2):
        sim.want(version)
        sim.run()
    sim.want(V1, outside=frozenset({V2}))
    sim.run()
    sim.later(1.0)
    sim.run()
    assert (sim.state.serving, sim.state.acknowledged, set(sim.world["loaded"])) == (V1, V1, {name(V1)})


def test_what_is_stale_is_served_on_and_said_to_be() -> None:
    sim = Sim()
    sim.want(V1)
    sim.run()
    sim.world["outside"] = frozenset({V1})
    assert sim.run() == []
    assert (sim.state.status, sim.state.serving) == (Status.LAGGING, V1)
    assert sim.state.reason.startswith("stale")


@pytest.mark.parametrize("policy", [Policy(), STABLE])
def test_a_channel_that_ended_leaves_nothing(policy: Policy) -> None:
    sim = Sim(policy)
    sim.want(V1)
    sim.run()
    sim.want(None, retired=True)
    assert sim.run() == [Unload(policy.name(V1), V1)]
    sim.later(2.0)
    sim.run()
    assert (sim.world["loaded"], sim.state.needs) == ({}, frozenset())


def test_no_room_beside_other_channels_is_said() -> None:
    sim = Sim(room=0)
    sim.want(V1)
    assert sim.run() == []
    assert sim.state.reason == f"waiting: no room for {V1} beside other channels' versions"


def test_whoever_wants_to_hear_of_a_change_hears_of_it_before_and_after() -> None:
    sim = Sim(Policy(hooks=True))
    sim.want(V1)
    assert sim.run() == [Before(V1, None), Load(name(V1), V1), After(V1, None), Acknowledge(V1)]
    sim.want(V2)
    sim.fails[Before] = (Reaction.LOOK_AGAIN, "rollouts are being drained")
    assert sim.run() == [Before(V2, V1)]
    assert (sim.state.serving, sim.state.reason) == (V1, "rollouts are being drained")
    sim.later(20.0)
    sim.fails.clear()
    assert sim.run()[:3] == [Before(V2, V1), Load(name(V2), V2), After(V2, V1)]
