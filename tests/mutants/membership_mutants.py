"""The rules of membership's cores, removed one at a time."""

from __future__ import annotations

from tests.mutants.drive import Mutant

_MEMBER = ("tests/spec/test_core_member.py",)
_COORDINATOR = ("tests/spec/test_core_coordinator.py",)
_SIM = ("tests/membership/test_quick_sim.py",)


def _in(file: str, tests: tuple[str, ...], *rows: tuple[str, str, str, str]) -> list[Mutant]:
    return [Mutant(name=name, rule=rule, file=file, old=old, new=new, tests=tests) for name, rule, old, new in rows]


MUTANTS = [
    *_in(
        "core/member.py",
        _MEMBER,
        (
            "member-seat",
            "a seat counts only in the committed plan",
            "return state.seat is not None and state.control is not None and state.seat.plan == state.control.plan",
            "return state.seat is not None",
        ),
        (
            "member-not-proposed",
            "nobody begins while the next round is proposed",
            "seated(state) and not control.proposed:\n        state = _say(state, State.RUNNING",
            "seated(state):\n        state = _say(state, State.RUNNING",
        ),
        (
            "member-own-plan",
            "only who said yes to the committed plan begins it",
            "    ready = state.beat.state is State.READY and state.beat.plan == control.plan\n",
            "    ready = True\n",
        ),
        (
            "member-late-answer",
            "what was found in an older plan is no seat in this one",
            "    if state.looked != control.proposed:\n",
            "    if not state.looked:\n",
        ),
        (
            "member-yes-needs-seat",
            "a spare says yes to nothing",
            "    if state.offered is not None and not said_yes",
            "    if not said_yes",
        ),
        (
            "member-bell-proposal",
            "any proposal rings the bell",
            "    return bool(control.proposed) or control.plan != state.seat.plan",
            "    return control.plan != state.seat.plan",
        ),
        (
            "member-bell-round",
            "a newer round rings the bell",
            "bool(control.proposed) or control.plan != state.seat.plan or",
            "bool(control.proposed) or",
        ),
        (
            "member-bell-outcome",
            "the outcome rings the bell",
            "control.plan != state.seat.plan or control.outcome is not None\n",
            "control.plan != state.seat.plan\n",
        ),
        (
            "member-exit-seatless",
            "a node without a seat exits with 0 on any outcome",
            "outcome.code if seated(state) else 0",
            "outcome.code",
        ),
        (
            "member-exit-seated",
            "a node with a seat exits with the outcome's code",
            "outcome.code if seated(state) else 0",
            "0",
        ),
        (
            "member-exit-workers-first",
            "the workers are ended before the agent leaves",
            "    if state.beat.state in (State.RUNNING, State.STOPPING):  # the bell rings; the workers are ended first\n        return state, ()\n",
            "",
        ),
        (
            "member-exit-barrier",
            "the exit barrier opens only if all have succeeded",
            "    if state.beat.state is State.DONE and outcome.ending is Ending.SUCCEEDED:\n",
            "    if state.beat.state is State.DONE:\n",
        ),
        (
            "member-exit-once",
            "the exit barrier opens once",
            "        if state.released:\n            return state, ()\n",
            "",
        ),
        (
            "member-drain-after-commit",
            "a drained node leaves only after the round without it is committed",
            "        if state.member in control.draining and not seated(state):\n",
            "        if state.member in control.draining:\n",
        ),
        (
            "member-done-not-failed",
            "an agent that gives up after its workers were done has not failed",
            "(failed and not state.beat.done)",
            "failed",
        ),
        (
            "member-health-no",
            "an unhealthy node says no",
            "    if state.healthy_s is None:\n        return False\n",
            "    if state.healthy_s is None:\n        return True\n",
        ),
        (
            "member-health-fresh",
            "a check that passed long ago is repeated before a yes",
            "    return idle or now_s - state.healthy_s <= HEALTH_FRESH_S\n",
            "    return True\n",
        ),
        (
            "member-stand-lease",
            "a coordinator is replaced only after a lease of silence",
            "seen.silent_s >= (0.0 if state.deserted else lease)",
            "seen.silent_s >= (0.0 if state.deserted else lease / 4.0)",
        ),
        (
            "member-stand-deserted",
            "a coordinator that has left is replaced at once",
            "(0.0 if state.deserted else lease)",
            "lease",
        ),
        (
            "member-stand-gap",
            "silence of the coordinator counts only across timely looks",
            "watch = liveness.look(watch, {member: token}, now_s, gap_s=lease / 2.0, full_lease=True, credit_s=credit_s(lease))",
            "watch = liveness.look(watch, {member: token}, now_s, gap_s=1e9)",
        ),
        (
            "member-stand-anew",
            "a coordinator that is back is watched anew",
            "            if _reign(control) != _reign(state.control):",
            "            if False:",
        ),
        (
            "member-stand-stagger",
            "the lower the group rank, the earlier",
            "    return lease / 2.0 * min(place, STAND_STEPS) / STAND_STEPS\n",
            "    return 0.0\n",
        ),
        (
            "member-stand-once",
            "one attempt at a time",
            "    if state.standing:\n        return state, ()\n",
            "",
        ),
        (
            "member-said-first",
            "a beat that changed is said before what follows from it",
            "    return state, said + effects\n",
            "    return state, effects + said\n",
        ),
    ),
    *_in(
        "core/coordinator.py",
        _COORDINATOR,
        (
            "coordinator-round",
            "a round is the next one",
            "            round=proposal.round,\n            plan=proposal.plan,\n",
            "            round=proposal.round + 1,\n            plan=proposal.plan,\n",
        ),
        (
            "coordinator-two-steps",
            "a round is committed only when all have said yes",
            "        if not missing and not gone:\n",
            "        if not gone:\n",
        ),
        (
            "coordinator-plan-first",
            "a plan stands before it is named",
            "        return state, (Prepare(rosters.writings(roster)), *effects)\n",
            "        return state, (*effects, Prepare(rosters.writings(roster)))\n",
        ),
        (
            "coordinator-unknown-write",
            "nothing is decided while it is unknown what stands",
            "            if state.dismissed or state.writing or state.control.outcome is not None:\n",
            "            if state.dismissed or state.control.outcome is not None:\n",
        ),
        (
            "coordinator-dismissed",
            "whoever was replaced decides nothing any more",
            "            if state.dismissed or state.writing or",
            "            if state.writing or",
        ),
        (
            "coordinator-term",
            "a former term is over",
            "    dismissed = (control.coordinator, control.term) != (state.member, before.term)\n",
            "    dismissed = control.coordinator != state.member\n",
        ),
        (
            "coordinator-outcome-once",
            "the outcome is written once",
            "            if state.dismissed or state.writing or state.control.outcome is not None:\n",
            "            if state.dismissed or state.writing:\n",
        ),
        (
            "coordinator-silence-lease-after-gap",
            "after a gap everybody has a full lease again",
            "liveness.look(watch, tokens, now_s, gap_s=lease / 2.0, full_lease=True, credit_s=credit_s(lease))",
            "liveness.look(watch, tokens, now_s, gap_s=lease / 2.0, credit_s=credit_s(lease))",
        ),
        (
            "coordinator-silence-timely",
            "a look that took long says nothing of silence",
            "    watch = state.watch if timely else liveness.Watch()\n",
            "    watch = state.watch\n",
        ),
        (
            "coordinator-silence-away",
            "time in which nothing could be looked at is nobody's silence",
            "liveness.look(watch, tokens, now_s, gap_s=lease / 2.0, full_lease=True, credit_s=credit_s(lease))",
            "liveness.look(watch, tokens, now_s, gap_s=1e9)",
        ),
        (
            "coordinator-resume-begin",
            "a new coordinator gives everybody the whole time",
            "    if looked_s is None:\n        return msgspec.structs.replace(state, proposed_s=now_s, ready_s=now_s, committed_s=now_s)\n",
            "    if looked_s is None:\n        return state\n",
        ),
        (
            "coordinator-resume-proposal",
            "time without looks does not count for the last call",
            "        proposed_s=state.proposed_s + away_s,\n",
            "",
        ),
        (
            "coordinator-resume-short",
            "time without looks does not count as waiting for nodes",
            "        short_s=None if state.short_s is None else state.short_s + away_s,\n",
            "",
        ),
        (
            "coordinator-gone-replaced",
            "who falls silent before it has answered is replaced",
            "if m in self.silent or not seats.may_sit(beats.get(m), self.control)]",
            "if not seats.may_sit(beats.get(m), self.control)]",
        ),
        (
            "coordinator-gone-unhealthy",
            "who cannot sit any more is replaced",
            "if m in self.silent or not seats.may_sit(beats.get(m), self.control)]",
            "if m in self.silent]",
        ),
        (
            "coordinator-last-call",
            "who beats and does not come back in time is replaced",
            "            if waited_s < self.policy.last_call_s:\n                return self.state, ()\n",
            "            return self.state, ()\n",
        ),
        (
            "coordinator-last-call-given",
            "who beats may come back",
            "            if waited_s < self.policy.last_call_s:\n                return self.state, ()\n",
            "",
        ),
        (
            "coordinator-stop-s",
            "without a spare, who is still stopping has stop_s",
            "            if not full and waited_s < self.policy.stop_s:\n                return before, ()\n",
            "",
        ),
        (
            "coordinator-late-out",
            "who was late is not placed again at once",
            "        out = self.silent | self.draining | self.state.late | frozenset(self.view.lost)\n",
            "        out = self.silent | self.draining | frozenset(self.view.lost)\n",
        ),
        (
            "coordinator-drain-no-seat",
            "a draining node is given no seat",
            "        out = self.silent | self.draining | self.state.late | frozenset(self.view.lost)\n",
            "        out = self.silent | self.state.late | frozenset(self.view.lost)\n",
        ),
        (
            "coordinator-budget",
            "one restart budget for the whole job",
            "        if self.broken and 0 <= self.policy.restart_budget < charged.restarts:\n",
            "        if False:\n",
        ),
        (
            "coordinator-budget-any",
            "a budget of -1 is any number",
            "self.broken and 0 <= self.policy.restart_budget < charged.restarts",
            "self.broken and self.policy.restart_budget < charged.restarts",
        ),
        (
            "coordinator-budget-charged",
            "a cut is charged when it is committed",
            "            restarts=proposal.restarts,\n",
            "",
        ),
        (
            "coordinator-wait-fails",
            "too few nodes for wait_s: failed",
            "        if too_few and self.now_s - since_s >= self.policy.wait_s:\n",
            "        if False:\n",
        ),
        (
            "coordinator-first-last-call",
            "the first round waits for spares until the last call is over",
            "            self._more(here < wanted or len(placed.seats) < self.policy.max_nodes)\n",
            "            self._more(False)\n",
        ),
        (
            "coordinator-first-seats",
            "the first round waits while more can be seated",
            "            self._more(here < wanted or len(placed.seats) < self.policy.max_nodes)\n",
            "            self._more(here < wanted)\n",
        ),
        (
            "coordinator-growth-call",
            "a job grows only after the last call",
            "        if since_s is None or self.now_s - since_s < self.policy.last_call_s or not self.view.all_running:\n",
            "        if since_s is None or not self.view.all_running:\n",
        ),
        (
            "coordinator-growth-running",
            "a round is not cut for more nodes before all of it runs",
            "self.policy.last_call_s or not self.view.all_running:\n",
            "self.policy.last_call_s:\n",
        ),
        (
            "coordinator-growth-lasts",
            "a round lasts stop_s before it is cut for more nodes",
            "        if self.now_s - self.state.committed_s < self.policy.stop_s:\n",
            "        if False:\n",
        ),
        (
            "coordinator-drain-time",
            "a drain waits until all can be stopped, or its time is over",
            '            return f"{\', \'.join(leaving)} is drained, with its time over" if overdue else ""\n',
            "            return f\"{', '.join(leaving)} is drained, with its time over\"\n",
        ),
        (
            "coordinator-drain-refused",
            "a drain for which there is nobody is called off",
            "                replies = self._refuse(placed)\n",
            "                replies = ()\n",
        ),
        (
            "coordinator-forget-named",
            "what control names is not forgotten",
            "    named = (control.plan, before.plan, control.proposed)\n",
            "    named = (before.plan, control.proposed)\n",
        ),
        (
            "coordinator-forget",
            "rounds that nobody can be reading are deleted",
            "    return state, ((Forget(tuple(key for keys in old for key in keys)),) if old else ())\n",
            "    return state, ()\n",
        ),
        (
            "coordinator-waiting-off",
            "what cannot be placed any more is off",
            '            return self._write(proposed="", reason=reason)\n        return self.state, ()\n',
            "            return self._write(reason=reason)\n        return self.state, ()\n",
        ),
    ),
    *_in(
        "core/seats.py",
        _COORDINATOR,
        (
            "seats-done-outranks",
            "done outranks a later silence",
            "        if beat is not None and here and beat.done:\n            done.append(member)\n        elif beat is not None and here and beat.failed:\n",
            "        if seen is None or seen.silent_s >= lease:\n            lost[member] = 'is silent'\n        elif beat is not None and here and beat.done:\n            done.append(member)\n        elif beat is not None and here and beat.failed:\n",
        ),
        (
            "seats-done-round",
            "done in a former round is not done in this one",
            "        if beat is not None and here and beat.done:\n",
            "        if beat is not None and beat.done:\n",
        ),
        (
            "seats-done-and-failed",
            "some done and one failed is failed",
            "    if why:\n        return Outcome(ending=Ending.FAILED",
            "    if False:\n        return Outcome(ending=Ending.FAILED",
        ),
        (
            "seats-done-all",
            "the job has succeeded when all are done",
            "    if len(view.done) == len(roster.seats):\n",
            "    if view.done:\n",
        ),
        (
            "seats-lost-left",
            "who says that it leaves is lost at once",
            "        elif beat is None or beat.state is State.LEFT:\n",
            "        elif beat is None:\n",
        ),
        (
            "seats-lost-begin",
            "who does not begin for stop_s is lost",
            "            if committed_for_s >= control.policy.stop_s:\n",
            "            if False:\n",
        ),
        (
            "seats-yes-plan",
            "a yes is to one plan",
            "    return beat is not None and beat.state is State.READY and beat.plan == plan\n",
            "    return beat is not None and beat.state is State.READY\n",
        ),
    ),
    *_in(
        "core/rosters.py",
        _COORDINATOR,
        (
            "rosters-charge-once",
            "a cut is charged once",
            "restarts=control.restarts + (1 if broken else 0),",
            "restarts=control.restarts + len(view.lost) + len(view.failed),",
        ),
        (
            "rosters-charge-free-will",
            "a cut of free will is not charged",
            "restarts=control.restarts + (1 if broken else 0),",
            "restarts=control.restarts + 1,",
        ),
        (
            "rosters-blame-first",
            "those that lost their peer are not to blame",
            "    return msgspec.structs.replace(proposal, replaced={**proposal.replaced, **now.replaced})\n",
            "    return now\n",
        ),
        (
            "rosters-blame-one",
            "of several that failed at once nobody is to blame",
            "(view.failed if len(view.failed) == 1 else ())",
            "view.failed",
        ),
        (
            "rosters-aside",
            "a node that failed too often is set aside",
            "    if len(trusted) < len(usable):\n",
            "    if False:\n",
        ),
        (
            "rosters-aside-replaceable",
            "only if another can take its place",
            "    return place(candidates(usable, nodes), previous.seats, policy)\n",
            "    return place(candidates(trusted, nodes), previous.seats, policy)\n",
        ),
    ),
    *_in(
        "core/placement.py",
        _COORDINATOR,
        (
            "placement-one-seat-per-name",
            "two lives of one node never sit together",
            "        other = chosen.get(one.node)\n",
            "        other = chosen.get(one.member)\n",
        ),
    ),
    *_in(
        "core/coordinator.py",
        _SIM,
        (
            "sim-two-steps",
            "a round is committed only when all have said yes",
            "        if not missing and not gone:\n",
            "        if not gone:\n",
        ),
        (
            "sim-plan-names",
            "a plan's name is never used twice",
            "        roster = rosters.seat_all(roster, self.fresh, placed, self.known.beats)\n",
            '        roster = rosters.seat_all(roster, f"round-{roster.round}", placed, self.known.beats)\n',
        ),
        (
            "sim-resume",
            "a new coordinator gives everybody the whole time",
            "    if looked_s is None:\n        return msgspec.structs.replace(state, proposed_s=now_s, ready_s=now_s, committed_s=now_s)\n",
            "    if looked_s is None:\n        return state\n",
        ),
        (
            "sim-away",
            "a store that was away ends no healthy round",
            "liveness.look(watch, tokens, now_s, gap_s=lease / 2.0, full_lease=True, credit_s=credit_s(lease))",
            "liveness.look(watch, tokens, now_s, gap_s=1e9)",
        ),
    ),
    *_in(
        "core/member.py",
        _SIM,
        (
            "sim-not-proposed",
            "nobody begins while the next round is proposed",
            "seated(state) and not control.proposed:\n        state = _say(state, State.RUNNING",
            "seated(state):\n        state = _say(state, State.RUNNING",
        ),
        (
            "sim-anew",
            "a coordinator that is back is watched anew",
            "            if _reign(control) != _reign(state.control):",
            "            if False:",
        ),
        (
            "sim-stand",
            "a lost coordinator is replaced",
            "    if _alone(state, control, now_s):\n",
            "    if False:\n",
        ),
    ),
]
