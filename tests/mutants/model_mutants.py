"""The rules of the core that hold several processes together, removed one at a time: the model itself must notice."""

from __future__ import annotations

from tests.mutants.drive import Mutant

_QUICK = "tests/model/test_quick_model.py::test_quick_I1_to_I8_hold_in_every_state"


def _mutant(file: str, configuration: str, name: str, rule: str, old: str, new: str) -> Mutant:
    return Mutant(
        name=f"model-{name}", rule=rule, file=f"core/{file}.py", old=old, new=new, tests=(f"{_QUICK}[{configuration}]",)
    )


_CONSUME = (
    (
        "rewind",
        "hold",
        "the hold is written before the sweepers are read",
        "    if mode.writes:\n        return taking, (WriteRecord(),)\n",
        "    if mode.writes:\n        return _to(taking, Phase.LOOKING), (ReadSweepers(),)\n",
    ),
    (
        "rewind",
        "look-after-hold",
        "the sweepers are read after the hold was written",
        "        case Phase.HOLDING, Written():\n            return _to(state, Phase.LOOKING), (ReadSweepers(),)\n",
        "        case Phase.HOLDING, Written():\n            return _to(state, Phase.CHECKING), (Check(state.taking),)\n",
    ),
    (
        "rewind",
        "tombstone-seen",
        "what is tombstoned at that look is given up",
        "    if state.taking in read.tombstoned:\n",
        "    if False:\n",
    ),
    (
        "entering",
        "unseen",
        "nothing is loaded in place before every sweeper has listed the consumer",
        "    if read.unseen_by and not mode.staged:\n",
        "    if False:\n",
    ),
    (
        "rewind",
        "check",
        "nothing is given that was not checked",
        "    return _to(state, Phase.CHECKING), (Check(state.taking),)\n\n\ndef _give_up",
        "    return _give(state, mode)\n\n\ndef _give_up",
    ),
    (
        "dead or alive",
        "acknowledge-look",
        "the lease is looked at before an acknowledgement",
        "return (state, (CheckLease(version),)) if mode.writes else _acknowledged(state, version, mode)",
        "return _acknowledged(state, version, mode)",
    ),
    (
        "dead or alive",
        "acknowledge-expired",
        "who was expired acknowledges nothing",
        "return _drop(state, mode) if expired else _acknowledged(state, version, mode)",
        "return _acknowledged(state, version, mode)",
    ),
    (
        "rewind",
        "position",
        "under one claim only later versions are given",
        "if version > last or version == state.again)",
        "if version != last or version == state.again)",
    ),
    (
        "rewind",
        "position-claim",
        "a lower claim than the followed one is not followed",
        "    if lineage.cycle < state.claim:\n",
        "    if False:\n",
    ),
    (
        "rewind",
        "release-while-taken",
        "a release leaves the hold of what is taken again after a rewind",
        "holds=state.holds - ({version} - {state.taking})",
        "holds=state.holds - {version}",
    ),
    (
        "other modes",
        "staged-hold",
        "a staged version is held until its copy is complete",
        "holds=(state.holds & state.given) | frozenset(ahead) if mode.writes else state.holds",
        "holds=(state.holds & state.given) | frozenset(ahead if not mode.staged else ())",
    ),
)
_SWEEP = (
    (
        "rewind",
        "tombstone-first",
        "the tombstones are written before the second look",
        "    return _record(known, Phase.MARKING, tombstones=goes)\n",
        "    after = msgspec.structs.replace(known, phase=Phase.RELOOKING, tombstones=goes)\n    return after, (Look(),)\n",
    ),
    (
        "rewind",
        "announced-only",
        "nothing is removed that was not announced",
        "doomed = frozenset(v for v in state.tombstones if v in verdicts and not verdicts[v].stays)",
        "doomed = frozenset(v for v in verdicts if not verdicts[v].stays)",
    ),
    (
        "rewind",
        "second-look",
        "what the second look finds held or needed is not removed",
        "doomed = frozenset(v for v in state.tombstones if v in verdicts and not verdicts[v].stays)",
        "doomed = state.tombstones",
    ),
    (
        "fine time",
        "settle",
        "two bounds pass between tombstone and second look",
        "return msgspec.structs.replace(state, phase=Phase.SETTLING), (Settle(state.bound_s),)",
        "return msgspec.structs.replace(state, phase=Phase.RELOOKING), (Look(),)",
    ),
    (
        "entering",
        "entering",
        "a sweeper says that it is here before it looks",
        "            if not state.entered:\n",
        "            if False:\n",
    ),
    (
        "entering",
        "entering-settle",
        "a sweeper settles after it said that it is here",
        "            return state, (Settle(state.bound_s),)\n",
        "            return msgspec.structs.replace(state, phase=Phase.LOOKING, entered=True), (Look(),)\n",
    ),
    (
        "entering",
        "seen",
        "only who was seen is listed as seen",
        "known = msgspec.structs.replace(state, seen=present,",
        "known = msgspec.structs.replace(state, seen=frozenset({'0.1', '0.2'}),",
    ),
    (
        "rewind",
        "held",
        "what is held stays",
        "        if version in holders:\n",
        "        if False:\n",
    ),
    (
        "dead or alive",
        "expired-at-second-look",
        "who is only now silent still holds at the second look",
        "    verdicts = judge(view, policy, state.expired)\n    doomed",
        "    verdicts = judge(view, policy, state.expired | view.silent)\n    doomed",
    ),
    (
        "dead or alive",
        "expired-durable",
        "who is expired stands in the record before the second look",
        "    return after, (WriteRecord(tombstones, after.seen, after.expired),)\n",
        "    return after, (WriteRecord(tombstones, after.seen, frozenset()),)\n",
    ),
    (
        "rewind",
        "fenced-first-look",
        "a fenced sweeper stops at its first look",
        "def _first_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n    if view.highest > state.cycle:\n        return _fenced(state, view)\n",
        "def _first_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n",
    ),
    (
        "rewind",
        "fenced-second-look",
        "a fenced sweeper stops at its second look",
        "def _second_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n    if view.highest > state.cycle:\n        return _fenced(state, view)\n",
        "def _second_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n",
    ),
    (
        "rewind",
        "fenced-withdraws",
        "a fenced sweeper withdraws what it announced",
        "    return _record(msgspec.structs.replace(state, fenced_by=view.highest), Phase.CLEARING, tombstones=frozenset())\n",
        "    return _record(msgspec.structs.replace(state, fenced_by=view.highest), Phase.CLEARING, tombstones=state.tombstones)\n",
    ),
    (
        "rewind",
        "late-claim",
        "versions of a claim that is not visible here yet are not judged",
        "        elif version.cycle > view.highest:",
        "        elif False:",
    ),
)
_OTHERS = (
    (
        "bounds",
        "fine time",
        "settle-twice",
        "a tombstone stands for two bounds, not one",
        "return 2.0 * bound\n",
        "return bound\n",
    ),
    (
        "retention",
        "blocked",
        "unblocked",
        "beside what a predecessor's tombstones block, the newest that they don't stays",
        " + tuple(version for version in line if version not in known.blocked)[:1]",
        "",
    ),
    (
        "lineage",
        "rewind",
        "lineage-bound",
        "what a zombie writes after the start is no ancestor",
        "return last is None or version.order < last.order or version == last",
        "return True",
    ),
    (
        "lineage",
        "rewind",
        "highest-claim",
        "the highest claim is followed",
        "claim = by_cycle.get(max(by_cycle, default=0))",
        "claim = by_cycle.get(min(by_cycle, default=0))",
    ),
)

MUTANTS = [
    *(_mutant("consume", *row) for row in _CONSUME),
    *(_mutant("sweep", *row) for row in _SWEEP),
    *(_mutant(*row) for row in _OTHERS),
]
